//! `link`.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use netem_tests::emulator::Script;
use netem_tests::interrupt;
use netem_tests::tun::{PRIVATE_ADDRESS, PUBLIC_ADDRESS, TunNetwork};
use rustix::process::{Pid, Signal, kill_process};

use super::{NetworkArgs, announce};

/// Runs a program in the agent's place, and maybe another in the stub's.
pub fn link(args: &NetworkArgs, public: Option<&str>, command: &[String]) -> anyhow::Result<ExitCode> {
    // Before any thread is started, so that all of them leave the signals to one.
    interrupt::hold_back()?;
    let profile = args.profile()?;
    let mut network = TunNetwork::start(&profile, args.seed)?;
    eprintln!("profile {}, backend tun: {PRIVATE_ADDRESS} <-> {PUBLIC_ADDRESS}", profile.name);
    let public_words: Vec<&str> = public.unwrap_or_default().split_whitespace().collect();
    let _server = match public_words.split_first() {
        Some((program, arguments)) => {
            let mut server = Command::new(program);
            server.args(arguments);
            let started = network.public().spawn(server);
            Some(started.with_context(|| format!("cannot start `{program}` on the public side"))?)
        }
        None => None,
    };
    let Some((program, arguments)) = command.split_first() else { bail!("no program given") };
    let mut client = Command::new(program);
    client.args(arguments);
    let control = network.control();
    let script = Script::start(profile.events.clone(), move |event| announce(event, control.apply(event.action)))?;
    let mut client = network.private().spawn(client).with_context(|| format!("cannot start `{program}`"))?;
    // Once the program has ended, all goes on as if it had ended by itself.
    interrupt::on_interrupt(kill_later(client.id()))?;
    let status = client.child().wait()?;
    drop(script);
    eprintln!("{}", network.report()?);
    // A program that was ended by a signal has no code of its own.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn kill_later(process: u32) -> impl FnOnce() + Send + 'static {
    move || {
        if let Some(process) = Pid::from_raw(process.cast_signed()) {
            // It may have ended already.
            let _ = kill_process(process, Signal::KILL);
        }
    }
}
