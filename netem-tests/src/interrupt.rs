//! Cleaning up when asked to stop (SIGINT, SIGTERM), instead of dying with programs still in their namespaces.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks whether a signal has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Somebody wants this program to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// From now on [`check`] tells whether a signal has come. To be called before any thread is started.
///
/// # Errors
/// When the thread that waits for signals cannot be started.
pub fn watch() -> io::Result<()> {
    hold_back()?;
    on_interrupt(|| INTERRUPTED.store(true, Ordering::Relaxed))
}

/// To be called now and then by whatever takes long.
///
/// # Errors
/// Once a signal has come.
pub fn check() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

/// Waits for so long.
///
/// # Errors
/// Once a signal has come.
pub fn wait(length: Duration) -> Result<(), Interrupted> {
    let end = Instant::now() + length;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_INTERVAL));
    }
}

/// Keeps both signals from the calling thread and from those it starts later, until [`on_interrupt`] takes them.
/// Programs started with [`std::process::Command`] get them as ever: it gives them an empty signal mask.
///
/// # Errors
/// Only where the kernel has no such signals.
pub fn hold_back() -> io::Result<()> {
    let signals = stop_signals();
    // SAFETY: reads the set, which is initialized, and writes nothing back.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// Runs `then` on a thread of its own when one of the signals comes, or has come since [`hold_back`].
///
/// # Errors
/// When the thread cannot be started.
pub fn on_interrupt(then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let signals = stop_signals();
        let mut signal = 0;
        // SAFETY: reads the set and writes one int; both live until it returns.
        let failed = unsafe { libc::sigwait(&signals, &mut signal) };
        if failed == 0 {
            then();
        }
    })?;
    Ok(())
}

fn stop_signals() -> libc::sigset_t {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set; both signals exist, so sigaddset cannot fail.
    unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM);
        signals.assume_init()
    }
}
