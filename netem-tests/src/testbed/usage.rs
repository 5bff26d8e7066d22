//! What a process has used, from /proc.

use std::fs;
use std::io;
use std::ops::Sub;
use std::time::Duration;

use serde::Serialize;

/// Processor time and memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// On all cores, in user and in kernel mode. Linux counts in hundredths of a second.
    pub processor_time: Duration,
    /// How long its threads were ready to run and had to wait for a core, added up. Threads that have ended are left out.
    pub waited: Duration,
    /// The most memory it ever had, in bytes (VmHWM).
    pub peak_memory: u64,
    /// The memory it has now, in bytes (VmRSS).
    pub memory: u64,
}

/// `sysconf(_SC_CLK_TCK)`, which Linux has as 100 on every architecture that matters (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

impl Usage {
    /// Of a process that runs.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(process: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let usage = parse(&stat, &status).map(|usage| Self { waited: waited(process), ..usage });
        usage.ok_or_else(|| io::Error::other(format!("/proc/{process} is not understood")))
    }
}

impl Sub for Usage {
    type Output = Self;

    /// What was used since `earlier`; memory is what it is now.
    fn sub(self, earlier: Self) -> Self {
        Self {
            processor_time: self.processor_time.saturating_sub(earlier.processor_time),
            waited: self.waited.saturating_sub(earlier.waited),
            ..self
        }
    }
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name before it may have spaces and parentheses in it. `utime` and `stime` are fields 14 and 15 (proc_pid_stat(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Usage {
        processor_time: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
        peak_memory: kibibytes(status, "VmHWM:")? * 1024,
        memory: kibibytes(status, "VmRSS:")? * 1024,
        waited: Duration::ZERO,
    })
}

/// The second field of `schedstat` of each thread, in nanoseconds (Documentation/scheduler/sched-stats.rst in Linux).
fn waited(process: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Duration::ZERO };
    let waited = threads.filter_map(|thread| {
        // A thread may end while we look.
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    });
    waited.sum()
}

fn kibibytes(status: &str, key: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        let status = "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let usage = parse(stat, status).unwrap();
        let (processor_time, waited) = (Duration::from_secs(3), Duration::ZERO);
        let expected = Usage { processor_time, waited, peak_memory: 2 << 20, memory: 1 << 20 };
        assert_eq!(usage, expected);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.peak_memory >= usage.memory && usage.memory > 0);
    }
}
