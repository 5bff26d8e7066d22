//! A network namespace without a name, and programs in it.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A network namespace, held by a thread that lives in it. When the thread ends, so do the programs it has started,
/// and Linux removes the namespace; that includes the death of this process by any signal.
#[derive(Debug)]
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A program in a namespace. Dropping it kills the program and what it has started in its process group.
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
            let failed = unshared.is_err();
            // `new` waits for this answer.
            let _ = made.send(unshared);
            if !failed {
                queue.into_iter().for_each(|job| job());
            }
        })?;
        is_made.recv().map_err(|_| gone())??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `job` on a thread in this namespace and returns what it returns. Sockets that it opens stay in this
    /// namespace wherever they are used.
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

    /// Starts a program in the background.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Process> {
        command.process_group(0);
        die_with_parent(&mut command);
        let child = self.run(move || command.spawn())??;
        Ok(Process { child })
    }

    /// Runs a program in the foreground, where it shares our terminal and its signals, and waits for its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_to_end(&self, mut command: Command) -> io::Result<ExitStatus> {
        die_with_parent(&mut command);
        self.run(move || command.spawn())??.wait()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
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
        // A child that has been waited for may have left its group to somebody else.
        if let Ok(None) = self.child.try_wait()
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
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
