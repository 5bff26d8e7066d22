//! The emulator's thread: wait, take, deliver.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::clock_nanosleep_relative;
use rustix::time::ClockId;

use super::load::Load;
use super::punctual::be_punctual;
use super::{Command, Ends, Link, Report};
use crate::histogram::Histogram;
use crate::link::{Direction, Output};
use crate::profile::Action;

/// The kernel wakes us about this late; the rest of the way to a deadline is spent awake.
const SPIN: Duration = Duration::from_micros(30);

/// poll(2) may be late by a thousandth of its timeout, whatever the timer slack (`select_estimate_accuracy` in Linux's
/// fs/select.c). A longer wait is made of shorter ones, so that this stays below [`SPIN`].
const LONGEST_WAIT: Duration = Duration::from_millis(20);

pub(super) struct Runner<E: Ends> {
    link: Link<E::Tag>,
    ends: E,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    lateness: Histogram,
    load: Load,
    /// See [`grain`].
    grain: Duration,
    woken: Instant,
}

impl<E: Ends> Runner<E> {
    pub(super) fn new(link: Link<E::Tag>, ends: E, commands: Receiver<Command>, wake: Arc<OwnedFd>) -> Self {
        let grain = grain(link.up.delay().min(link.down.delay()));
        let (lateness, load) = (Histogram::new(), Load::new());
        Self { link, ends, commands, wake, lateness, load, grain, woken: Instant::now() }
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        be_punctual();
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return Ok(()),
                    // Whoever asked may have stopped waiting.
                    Command::Apply(action, reply) => _ = reply.try_send(self.apply(action)),
                    Command::Report(reply) => _ = reply.try_send(self.report()),
                }
            }
            let received = self.ends.receive(&mut self.link)?;
            let deadlines = [self.deliver(Direction::Up)?, self.deliver(Direction::Down)?, self.ends.wake_at()];
            if received == 0 {
                self.wait(deadlines.into_iter().flatten().min())?;
            }
        }
    }

    fn apply(&mut self, action: Action) -> io::Result<()> {
        match action {
            Action::Blackout(lasts) => {
                let now = Instant::now();
                self.link.up.black_out(now, now + lasts);
                self.link.down.black_out(now, now + lasts);
                Ok(())
            }
            Action::NatRebind => self.ends.rebind_nat(),
            Action::AddressChange => self.ends.change_address(),
        }
    }

    fn report(&self) -> Report {
        Report {
            up: self.link.up.counters(),
            down: self.link.down.counters(),
            up_wait: self.link.up.wait(),
            down_wait: self.link.down.wait(),
            lateness: self.lateness.quantiles(),
            processor_time: Load::used(),
            peak_load: self.load.peak(),
        }
    }

    /// Delivers all that is due; returns when the next packet is.
    fn deliver(&mut self, direction: Direction) -> io::Result<Option<Instant>> {
        loop {
            let now = Instant::now();
            match self.link.path(direction).poll_output(now) {
                Output::Packet { due, packet } => {
                    self.lateness.record(now - due);
                    self.ends.send(direction, packet)?;
                }
                Output::Deadline(deadline) => return Ok(Some(deadline)),
                Output::Idle => return Ok(None),
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.load.observe(Instant::now());
        self.rest();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            left.saturating_sub(SPIN).min(LONGEST_WAIT)
        });
        if timeout != Some(Duration::ZERO) {
            let mut sources = vec![PollFd::new(&self.wake, PollFlags::IN)];
            self.ends.sources(&mut sources);
            match poll(&mut sources, timeout.map(timespec).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        self.woken = Instant::now();
        Ok(())
    }

    /// Sleeps, whatever comes, until a grain after the last time we woke.
    fn rest(&self) {
        let left = (self.woken + self.grain).saturating_duration_since(Instant::now());
        if !left.is_zero() {
            // Ended early by a signal, it only makes for a smaller grain.
            let _ = clock_nanosleep_relative(ClockId::Monotonic, &timespec(left));
        }
    }
}

/// How long packets may gather before they are taken or delivered together on a link of this delay: a fifth of it, at
/// most 100 us. Without it dense traffic keeps a whole core awake, which the programs under test then lack.
fn grain(delay: Duration) -> Duration {
    (delay / 5).min(Duration::from_micros(100))
}

/// A wait that is shorter than a second.
fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() }
}
