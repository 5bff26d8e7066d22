//! Runs a link in real time: one thread takes packets from its ends, and delivers each when the model says so.

mod lateness;
mod load;
mod punctual;
mod thread;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, eventfd};

pub use lateness::{MAX_LATENESS, P99_LATENESS};

use crate::histogram::Quantiles;
use crate::link::{Counters, Direction, Packet, Path};
use crate::profile::{Action, Event, Profile};

/// Both directions of a link.
#[derive(Debug)]
pub struct Link<T> {
    /// From the agent to the stub.
    pub up: Path<T>,
    /// From the stub to the agent.
    pub down: Path<T>,
}

/// Where packets come from and go to.
pub trait Ends: Send + 'static {
    /// What this backend notes on a packet.
    type Tag: Clone + Send;

    /// Hands some of the packets that wait to `link`; returns how many. Never blocks.
    ///
    /// # Errors
    /// When no more packets can be had; the emulation ends.
    fn receive(&mut self, link: &mut Link<Self::Tag>) -> io::Result<usize>;

    /// Delivers a packet that has travelled in this direction. Never blocks; what cannot be delivered is lost, as on
    /// any network.
    ///
    /// # Errors
    /// When no more packets can be delivered; the emulation ends.
    fn send(&mut self, direction: Direction, packet: Packet<Self::Tag>) -> io::Result<()>;

    /// What to wait for until [`receive`](Self::receive) is worth calling.
    fn sources<'a>(&'a self, sources: &mut Vec<PollFd<'a>>);

    /// When to call [`receive`](Self::receive) again even if no source is ready.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// The NAT in front of the agent forgets its mappings.
    ///
    /// # Errors
    /// When the new mappings cannot be made.
    fn rebind_nat(&mut self) -> io::Result<()>;

    /// The agent's side gets another address.
    ///
    /// # Errors
    /// When there is no other address to be had.
    fn change_address(&mut self) -> io::Result<()>;
}

/// A link that is being emulated. Dropping it ends the emulation.
pub struct Emulator {
    control: Control,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Changes a link while it is being emulated; may be cloned, and outlive it.
#[derive(Clone)]
pub struct Control {
    commands: Sender<Command>,
    /// An eventfd that interrupts the thread's wait.
    wake: Arc<OwnedFd>,
}

/// What an emulated link has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// What became of the packets from the agent to the stub.
    pub up: Counters,
    /// What became of the packets from the stub to the agent.
    pub down: Counters,
    /// How long packets from the agent to the stub waited for the link, their own sending included.
    pub up_wait: Quantiles,
    /// The same for packets from the stub to the agent.
    pub down_wait: Quantiles,
    /// How much later than the model said packets were delivered.
    pub lateness: Quantiles,
    /// What the emulator itself took of the cores it shares with the programs under test.
    pub processor_time: Duration,
    /// Its share of one core in the busiest second.
    pub peak_load: f64,
}

/// An emulator busier than this in any second makes a run invalid: packets have waited before it could take them,
/// which their lateness does not show.
pub const PEAK_LOAD: f64 = 0.9;

impl Report {
    /// Whether what was measured over this link says anything about the programs, and not about a machine too busy
    /// to emulate it.
    pub fn is_valid(&self) -> bool {
        lateness::is_acceptable(&self.lateness) && self.peak_load <= PEAK_LOAD
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "up:       {}", self.up)?;
        writeln!(f, "down:     {}", self.down)?;
        writeln!(f, "queue:    up {}; down {}", self.up_wait, self.down_wait)?;
        writeln!(f, "lateness: {}", self.lateness)?;
        let (used, peak) = (self.processor_time.as_secs_f64(), self.peak_load * 100.0);
        write!(f, "emulator: {used:.2} s of processor time, {peak:.0}% of a core in the busiest second")?;
        if !self.is_valid() {
            write!(f, "\nINVALID:  the machine was too busy to emulate this link (p99 lateness at most ")?;
            write!(
                f,
                "{} us, max {} us, load {:.0}%)",
                P99_LATENESS.as_micros(),
                MAX_LATENESS.as_micros(),
                PEAK_LOAD * 100.0
            )?;
        }
        Ok(())
    }
}

enum Command {
    Apply(Action, SyncSender<io::Result<()>>),
    Report(SyncSender<Report>),
    Stop,
}

impl<T: Clone> Link<T> {
    /// A link as `profile` describes it.
    pub fn new(profile: &Profile, seed: u64) -> Self {
        Self { up: Path::new(&profile.up, seed, Direction::Up), down: Path::new(&profile.down, seed, Direction::Down) }
    }

    /// One of the two directions.
    pub fn path(&mut self, direction: Direction) -> &mut Path<T> {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

impl Emulator {
    /// Starts to move packets between `ends`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<E: Ends>(name: &str, link: Link<E::Tag>, ends: E) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, received): (_, Receiver<Command>) = channel();
        let runner = thread::Runner::new(link, ends, received, Arc::clone(&wake));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || runner.run())?;
        Ok(Self { control: Control { commands, wake }, thread: Some(thread) })
    }

    /// What the link has done so far.
    ///
    /// # Errors
    /// When the emulation has ended on an error: that error.
    pub fn report(&mut self) -> io::Result<Report> {
        let (reply, answer) = sync_channel(1);
        self.control.send(Command::Report(reply));
        answer.recv().map_err(|_| self.join().err().unwrap_or_else(has_ended))
    }

    /// A handle that changes the link.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the emulator's thread has panicked")))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.control.send(Command::Stop);
        // Whoever cares for the error has asked for the report.
        let _ = self.join();
    }
}

impl Control {
    /// Makes this happen, and returns when it has begun.
    ///
    /// # Errors
    /// When the backend cannot do it, or the emulation has ended.
    pub fn apply(&self, action: Action) -> io::Result<()> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Apply(action, reply));
        answer.recv().unwrap_or_else(|_| Err(has_ended()))
    }

    fn send(&self, command: Command) {
        // A thread that has ended has no use for commands; the report tells why it has ended.
        if self.commands.send(command).is_ok() {
            // Fails when the counter is full, and then the thread is about to wake.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

fn has_ended() -> io::Error {
    io::Error::other("the emulator has ended")
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").finish_non_exhaustive()
    }
}

/// The events of a profile as they happen. Dropping it ends the script.
#[derive(Debug)]
pub struct Script {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    /// Starts now: each event happens at its time, and `apply` is called with it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(events: Vec<Event>, apply: impl Fn(Event) + Send + 'static) -> io::Result<Self> {
        let start = Instant::now();
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::Builder::new().name("script".to_owned()).spawn(move || {
            for event in events {
                let wait = (start + event.at).saturating_duration_since(Instant::now());
                if stopped.recv_timeout(wait) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
                apply(event);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
