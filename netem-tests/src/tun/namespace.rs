//! A network namespace without a name, and programs in it.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A network namespace, held by a thread that lives in it. Dropping it kills every program that is still in it.
///
/// When the thread ends, whatever the reason, so do the programs it has started, and with the last program Linux
/// removes the namespace: even a SIGKILL leaves nothing but what those programs had started themselves.
#[derive(Debug)]
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// What /proc/PID/ns/net shows for those inside: `net:[NUMBER]`.
    identity: PathBuf,
}

/// A program in a namespace. Dropping it kills the program.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes a namespace in which nothing is configured, not even loopback.
    ///
    /// # Errors
    /// When this process may not make one (it needs CAP_SYS_ADMIN).
    pub fn new(name: &str) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (made, is_made) = sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("{name} side")).spawn(move || {
            // SAFETY: only the network namespace becomes this thread's own, not the table of file descriptors.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
            let identity =
                unshared.map_err(io::Error::from).and_then(|()| std::fs::read_link("/proc/thread-self/ns/net"));
            let failed = identity.is_err();
            // `new` waits for this answer.
            let _ = made.send(identity);
            if !failed {
                queue.into_iter().for_each(|job| job());
            }
        })?;
        let identity = is_made.recv().map_err(|_| gone())??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), identity })
    }

    /// Makes one with loopback.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when `ip` is not installed.
    pub fn with_loopback(name: &str) -> io::Result<Self> {
        let namespace = Self::new(name)?;
        namespace.run(|| super::ip("link set lo up"))??;
        Ok(namespace)
    }

    /// Runs a short `job` on the thread that holds this namespace and returns what it returns. Sockets that it opens
    /// stay in this namespace wherever they are used.
    ///
    /// # Errors
    /// When an earlier job has panicked.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
        let (reply, answer) = sync_channel(1);
        // The receiver below is still there.
        self.start(move || _ = reply.send(job()))?;
        answer.recv().map_err(|_| gone())
    }

    /// Runs `job` as [`run`](Self::run) does, without waiting for it.
    ///
    /// # Errors
    /// When an earlier job has panicked.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.jobs.as_ref().ok_or_else(gone)?.send(Box::new(job)).map_err(|_| gone())
    }

    /// Starts a thread that lives in this namespace, and with it all threads that it starts: a runtime made there opens
    /// its sockets here.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_thread<R: Send + 'static>(
        &self,
        name: &str,
        main: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<JoinHandle<R>> {
        let builder = std::thread::Builder::new().name(name.to_owned());
        self.run(move || builder.spawn(main))?
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Process> {
        die_with_parent(&mut command);
        let child = self.run(move || command.spawn())??;
        Ok(Process { child })
    }

    /// Kills what programs have left behind, and what that starts meanwhile.
    fn kill_everything_inside(&self) {
        let rounds = 100;
        for _ in 0..rounds {
            let inside = processes_in(&self.identity);
            if inside.is_empty() {
                return;
            }
            // One that has ended by itself is as good.
            inside.into_iter().for_each(|process| _ = kill_process(process, Signal::KILL));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.kill_everything_inside();
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A job that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Process {
    /// Its process id, as in /proc.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself: its pipes, its exit status.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither fails but for a child that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes in a network namespace, but for this one, whose thread is there.
fn processes_in(namespace: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let process = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let is_inside = std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|link| link == namespace);
            (is_inside && process != rustix::process::getpid()).then_some(process)
        })
        .collect()
}

/// Has Linux kill the program when the thread that started it is gone.
fn die_with_parent(command: &mut Command) {
    let request = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; this is one prctl, without allocation.
    unsafe { command.pre_exec(request) };
}

fn gone() -> io::Error {
    io::Error::other("the thread that holds the network namespace is gone")
}
