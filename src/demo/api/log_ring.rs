//! What a container has written: a bounded ring of lines. A ticking container's lines come into being when somebody
//! looks, so that an idle sample API does nothing, and ten thousand followers share one ring.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Lines kept; older ones are forgotten.
const CAPACITY: usize = 4096;
/// Longest line kept; the rest of a longer one is left out (as container runtimes cut lines, at 16 KiB).
const MAX_LINE: usize = 16 * 1024;

/// The log of one container.
pub(super) struct LogRing {
    ring: Mutex<Ring>,
    /// Number of lines ever written.
    written: watch::Sender<u64>,
    ticks: Option<Ticks>,
}

/// A line every so often.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    since: Timestamp,
    interval: SignedDuration,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Line>,
    /// Number of lines ever written.
    written: u64,
    /// Ticks so far.
    ticked: i64,
}

/// One line with its newline.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// When it was written.
    pub time: Timestamp,
    /// The text, ending in a newline.
    pub text: Bytes,
}

impl LogRing {
    /// A log that only what is appended gets into.
    pub fn quiet() -> Self {
        Self { ring: Mutex::default(), written: watch::Sender::new(0), ticks: None }
    }

    /// A log that gets so many lines a second (1 to 1000), the first at `since`.
    pub fn ticking(since: Timestamp, per_second: u32) -> Self {
        let interval = SignedDuration::from_micros(1_000_000 / i64::from(per_second.clamp(1, 1000)));
        Self { ticks: Some(Ticks { since, interval }), ..Self::quiet() }
    }

    /// Adds one line.
    pub fn append(&self, text: &[u8]) {
        let mut ring = self.lock();
        let text = text.get(..MAX_LINE).unwrap_or(text);
        let text = if text.ends_with(b"\n") { Bytes::copy_from_slice(text) } else { [text, b"\n"].concat().into() };
        ring.push(Line { time: Timestamp::now(), text });
        self.written.send_replace(ring.written);
    }

    /// The lines from number `from` on that are still there, and the number of the next one.
    pub fn read(&self, from: u64) -> (Vec<Line>, u64) {
        let mut ring = self.lock();
        self.catch_up(&mut ring);
        let oldest = ring.written - ring.lines.len() as u64;
        let skipped = usize::try_from(from.saturating_sub(oldest)).unwrap_or(usize::MAX).min(ring.lines.len());
        (ring.lines.range(skipped..).cloned().collect(), ring.written)
    }

    /// The number of the next line.
    pub fn end(&self) -> u64 {
        let mut ring = self.lock();
        self.catch_up(&mut ring);
        ring.written
    }

    /// Waits until there is, or should be, a line of that number.
    pub async fn wait_beyond(&self, number: u64) {
        let mut written = self.written.subscribe();
        let due = async {
            match self.next_tick_in() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let appended = written.wait_for(|written| *written > number);
        tokio::select! {
            // The sender lives in `self`: waiting cannot fail.
            _ = appended => {}
            () = due => {}
        }
    }

    fn next_tick_in(&self) -> Option<Duration> {
        let ticks = self.ticks?;
        let due = ticks.time_of(self.lock().ticked);
        Some(Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO))
    }

    /// Writes the ticks that are due, as if each had been written in time.
    fn catch_up(&self, ring: &mut Ring) {
        let Some(ticks) = self.ticks else { return };
        let elapsed = Timestamp::now().duration_since(ticks.since);
        let due = i64::try_from(elapsed.as_micros() / ticks.interval.as_micros() + 1).unwrap_or(ring.ticked);
        if due <= ring.ticked || elapsed.is_negative() {
            return;
        }
        // Ticks that would be forgotten at once are only counted.
        let first = ring.ticked.max(due - CAPACITY as i64);
        ring.written += (first - ring.ticked).cast_unsigned();
        for tick in first..due {
            let time = ticks.time_of(tick);
            let text = format!("tick {tick} {}\n", time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"));
            ring.push(Line { time, text: text.into() });
        }
        ring.ticked = due;
        self.written.send_replace(ring.written);
    }

    // A panic elsewhere leaves whole lines behind, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, line: Line) {
        if self.lines.len() == CAPACITY {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        self.written += 1;
    }
}

impl Ticks {
    fn time_of(self, tick: i64) -> Timestamp {
        let after = i32::try_from(tick).map_or(SignedDuration::MAX, |tick| self.interval.saturating_mul(tick));
        self.since.saturating_add(after).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_the_past_are_there_when_somebody_looks() {
        let log = LogRing::ticking(Timestamp::now() - SignedDuration::from_millis(10_500), 1);
        let (lines, next) = log.read(0);
        assert_eq!((lines.len(), next), (11, 11));
        assert!(lines[0].text.starts_with(b"tick 0 "));
        assert!(log.read(next).0.is_empty());
    }

    #[test]
    fn a_long_past_is_cut_to_the_capacity() {
        let log = LogRing::ticking(Timestamp::now() - SignedDuration::from_hours(1000), 1000);
        let (lines, next) = log.read(0);
        assert_eq!(lines.len(), CAPACITY);
        assert!(next > 3_000_000_000);
    }

    #[tokio::test]
    async fn a_follower_wakes_for_an_appended_line() {
        let log = LogRing::quiet();
        let (_, next) = log.read(0);
        let wait = log.wait_beyond(next);
        log.append(b"hello");
        tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap();
        assert_eq!(log.read(next).0[0].text, "hello\n");
    }
}
