//! `relay`.

use std::io::Read;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use netem_tests::emulator::Script;
use netem_tests::relay::Relay;

use super::{NetworkArgs, announce};

/// Stands in front of an address until standard input ends.
pub fn relay(args: &NetworkArgs, to: SocketAddr) -> anyhow::Result<ExitCode> {
    let profile = args.profile()?;
    let mut relay = Relay::start(&profile, args.seed, to)?;
    eprintln!("profile {}, backend relay; end standard input (^D) to stop", profile.name);
    println!("{}", relay.address());
    let control = relay.control();
    let _script = Script::start(profile.events.clone(), move |event| announce(event, control.apply(event.action)))?;
    std::io::stdin().lock().read_to_end(&mut Vec::new()).context("cannot wait for the end of standard input")?;
    eprintln!("{}", relay.report()?);
    Ok(ExitCode::SUCCESS)
}
