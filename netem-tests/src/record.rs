//! What the clients of a run have seen, while it runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes are counted in slices of time this long.
pub const SLICE: Duration = Duration::from_millis(100);

/// A long stream that has heard nothing for so long at the end is lost, even if nobody has told its client.
pub const STUCK: Duration = Duration::from_secs(5);

/// Gathers what clients see during the measured window; what is before or after it is left out.
#[derive(Debug, Default)]
pub struct Recorder {
    window: OnceLock<Window>,
    seen: Mutex<Seen>,
}

/// From when on, and for how long, is measured.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The time that all others are counted from.
    pub start: Instant,
    /// How long it is.
    pub length: Duration,
}

/// All that was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Small GETs, from when each was due to the end of its answer.
    pub gets: Vec<Sample>,
    /// Log lines, from when each was written to when its follower had it.
    pub lines: Vec<Sample>,
    /// Keystrokes, from the key to its echo.
    pub echoes: Vec<Sample>,
    /// Bytes of the bulk transfer through the tunnel, for each [`SLICE`].
    pub bulk: Vec<u64>,
    /// Bytes of the transfer over plain TCP beside the tunnel, for each [`SLICE`].
    pub beside: Vec<u64>,
    /// Small GETs that failed.
    pub failed_gets: u64,
    /// Long streams (logs, exec, port-forward, bulk) that broke off, or had been silent for [`STUCK`] at the end.
    pub lost_streams: u64,
    /// The longest time in which some client that waited for something got nothing.
    pub longest_silence: Duration,
}

/// One thing that took time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When it began, from the start of the window.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
}

/// What can take time.
#[derive(Debug, Clone, Copy)]
pub enum Timed {
    /// See [`Seen::gets`].
    Get,
    /// See [`Seen::lines`].
    Line,
    /// See [`Seen::echoes`].
    Echo,
}

/// Whose bytes.
#[derive(Debug, Clone, Copy)]
pub enum Transfer {
    /// See [`Seen::bulk`].
    Tunnelled,
    /// See [`Seen::beside`].
    Beside,
}

impl Recorder {
    /// Begins to measure, now and for so long. Later calls change nothing.
    pub fn open_window(&self, length: Duration) -> Window {
        *self.window.get_or_init(|| Window { start: Instant::now(), length })
    }

    /// Something that began then has been completed now.
    pub fn completed(&self, what: Timed, began: Instant) {
        let took = began.elapsed();
        let Some(at) = self.in_window(began) else { return };
        let mut seen = self.lock();
        let samples = match what {
            Timed::Get => &mut seen.gets,
            Timed::Line => &mut seen.lines,
            Timed::Echo => &mut seen.echoes,
        };
        samples.push(Sample { at, took });
    }

    /// Bytes have come.
    pub fn received(&self, transfer: Transfer, bytes: usize) {
        let Some(at) = self.in_window(Instant::now()) else { return };
        let slice = (at.as_nanos() / SLICE.as_nanos()) as usize;
        let mut seen = self.lock();
        let slices = match transfer {
            Transfer::Tunnelled => &mut seen.bulk,
            Transfer::Beside => &mut seen.beside,
        };
        if slices.len() <= slice {
            slices.resize(slice + 1, 0);
        }
        // Just made long enough.
        slices[slice] += bytes as u64;
    }

    /// A small GET that began then has failed.
    pub fn get_failed(&self, began: Instant) {
        if self.in_window(began).is_some() {
            self.lock().failed_gets += 1;
        }
    }

    /// A long stream has broken off.
    pub fn stream_lost(&self) {
        if self.in_window(Instant::now()).is_some() {
            self.lock().lost_streams += 1;
        }
    }

    /// All that was seen so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// How far into the window this is, if it is in it.
    fn in_window(&self, instant: Instant) -> Option<Duration> {
        let window = self.window.get()?;
        instant.checked_duration_since(window.start).filter(|at| *at < window.length)
    }

    /// The part of a silence that lies in the window.
    fn silent(&self, from: Instant, until: Instant) {
        let Some(window) = self.window.get() else { return };
        let (from, until) = (from.max(window.start), until.min(window.start + window.length));
        let silence = until.saturating_duration_since(from);
        let mut seen = self.lock();
        seen.longest_silence = seen.longest_silence.max(silence);
    }

    // A panic elsewhere leaves whole samples behind, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices how long one client hears nothing. It outlives the streams that the client opens one after the other.
#[derive(Debug)]
pub struct Listener<'a> {
    recorder: &'a Recorder,
    hears: Hears,
    last: Instant,
}

/// What a client listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    /// One long stream, or the next one when that breaks off.
    Stream,
    /// The answers to many requests.
    Answers,
}

impl<'a> Listener<'a> {
    /// A client that begins to listen.
    pub fn new(recorder: &'a Recorder, hears: Hears) -> Self {
        Self { recorder, hears, last: Instant::now() }
    }

    /// It has heard something.
    pub fn heard(&mut self) {
        let now = Instant::now();
        self.recorder.silent(self.last, now);
        self.last = now;
    }
}

impl Drop for Listener<'_> {
    /// Whoever heard nothing until the end was silent until the end.
    fn drop(&mut self) {
        let end = self.recorder.window.get().map(|window| window.start + window.length);
        if self.hears == Hears::Stream && end.is_some_and(|end| end.saturating_duration_since(self.last) >= STUCK) {
            self.recorder.lock().lost_streams += 1;
        }
        self.heard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_the_window_is_left_out() {
        let recorder = Recorder::default();
        let before = Instant::now();
        recorder.completed(Timed::Get, before);
        recorder.received(Transfer::Tunnelled, 10);
        let window = recorder.open_window(Duration::from_secs(60));
        recorder.completed(Timed::Get, before - Duration::from_secs(1));
        recorder.completed(Timed::Get, window.start + Duration::from_secs(60));
        assert!(recorder.seen().gets.is_empty() && recorder.seen().bulk.is_empty());
        recorder.completed(Timed::Get, window.start);
        recorder.received(Transfer::Tunnelled, 10);
        assert_eq!(recorder.seen().gets.len(), 1);
        assert_eq!(recorder.seen().bulk.iter().sum::<u64>(), 10);
    }

    #[test]
    fn a_silence_before_the_window_does_not_count() {
        let recorder = Recorder::default();
        let mut listener = Listener::new(&recorder, Hears::Stream);
        listener.last = Instant::now() - Duration::from_secs(10);
        recorder.open_window(Duration::from_secs(60));
        listener.heard();
        assert!(recorder.seen().longest_silence < Duration::from_secs(5));
    }

    #[test]
    fn who_hears_nothing_until_the_end_was_silent_until_the_end() {
        let recorder = Recorder::default();
        let window = recorder.open_window(Duration::from_millis(20));
        let listener = Listener::new(&recorder, Hears::Stream);
        std::thread::sleep(Duration::from_millis(30));
        drop(listener);
        let silence = recorder.seen().longest_silence;
        assert!(silence > Duration::from_millis(10) && silence <= window.length, "{silence:?}");
    }
}
