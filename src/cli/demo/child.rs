//! A command that runs in the demo, as if it ran alone: with its own input and output, told of signals, and with its
//! status.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use anyhow::Context;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};

use super::Signals;

/// What shells end with when a command cannot be run, and when there is none of that name (POSIX, Shell Command Language,
/// section 2.8.2).
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs the command to its end and gives its status.
pub async fn run(
    program: &OsString,
    arguments: &[OsString],
    kubeconfig: &Path,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let mut child = match Command::new(program).args(arguments).env("KUBECONFIG", kubeconfig).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("error: cannot run {}: {error}", program.display());
            return Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }));
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status.context("cannot wait for the command")?)),
            signal = signals.next() => pass_on(signal, &child),
        }
    }
}

/// What shells end with for a command that a signal has ended.
pub fn exit_code_of(signal: Signal) -> ExitCode {
    by_signal(signal.as_raw())
}

fn code(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        // The system gives the low eight bits of what a process ends with.
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => by_signal(signal.unwrap_or_default()),
    }
}

fn by_signal(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// Ctrl-C at a terminal reaches the command without us: a second one would end commands that finish cleanly after the first.
fn pass_on(signal: Signal, child: &Child) {
    if matches!(signal, Signal::INT | Signal::QUIT) && in_foreground() {
        return;
    }
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        // A command that has just ended needs no signal.
        let _ = kill_process(id, signal);
    }
}

/// Whether the keys of a terminal signal this process and, as they are in one group, its child.
fn in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp()))
}
