//! Makes the emulator's thread run when it should.

#![allow(unsafe_code)]

use std::num::NonZeroU64;

/// Timers that fire at their time, and a place before every ordinary program: on a busy machine the scheduler would
/// otherwise keep the thread waiting for milliseconds. What may not be had is done without; the lateness tells.
///
/// The lowest real-time priority is enough to go before all that has none. The kernel keeps 5% of each core from
/// real-time threads (`sched_rt_runtime_us`), so even an emulator with too much to do leaves the machine usable.
pub(super) fn be_punctual() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one `sched_param` that lives until it returns; 0 is the calling thread.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &lowest) } != 0;
    if refused {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -20);
    }
}
