//! How busy the emulator's thread was.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Over what time load is averaged.
const WINDOW: Duration = Duration::from_secs(1);

/// The processor time of the calling thread, and its share of the busiest second.
#[derive(Debug)]
pub(super) struct Load {
    window: Instant,
    used_before: Duration,
    peak: f64,
}

impl Load {
    pub(super) fn new() -> Self {
        Self { window: Instant::now(), used_before: Duration::ZERO, peak: 0.0 }
    }

    /// To be called on the measured thread, several times a second while it is busy.
    pub(super) fn observe(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.window);
        if elapsed < WINDOW {
            return;
        }
        let used = Self::used();
        self.peak = self.peak.max((used - self.used_before).div_duration_f64(elapsed));
        (self.window, self.used_before) = (now, used);
    }

    pub(super) fn peak(&self) -> f64 {
        self.peak
    }

    /// What the calling thread has used of all cores.
    pub(super) fn used() -> Duration {
        clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
    }
}
