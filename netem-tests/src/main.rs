//! The command line of the network emulator.

use std::io::Read;
use std::iter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use netem_tests::backend::Backend;
use netem_tests::emulator::Script;
use netem_tests::interrupt;
use netem_tests::link::{Direction, PathSettings};
use netem_tests::profile::{Event, Profile, Profiles};
use netem_tests::relay::Relay;
use netem_tests::simulation::{CongestionControl, Flow, FlowReport, Scenario};
use netem_tests::tun::{PRIVATE_ADDRESS, PUBLIC_ADDRESS, TunNetwork};
use rustix::process::{Pid, Signal, kill_process};

/// Run programs over bad networks.
#[derive(Parser)]
#[command(name = "netem-tests", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the profiles, and the backends this machine has.
    List {
        /// Profiles of your own, in the form of profiles.toml.
        #[arg(long, value_name = "FILE")]
        profiles: Option<PathBuf>,
    },
    /// Run a program behind an emulated link, in a network namespace (needs root).
    ///
    /// The program runs on the agent's side. It finds the other side at 10.77.0.1 and is itself at 10.77.1.1.
    Link {
        #[command(flatten)]
        network: NetworkArgs,
        /// A program that runs on the stub's side meanwhile; its arguments are separated by spaces.
        #[arg(long, value_name = "COMMAND")]
        public: Option<String>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Put an emulated link in front of an address on loopback, for UDP and TCP, until standard input ends.
    Relay {
        #[command(flatten)]
        network: NetworkArgs,
        /// Where the link leads.
        #[arg(long, value_name = "ADDRESS:PORT")]
        to: SocketAddr,
    },
    /// Compare congestion controllers over a link in simulated time, one bulk transfer each; prints Markdown.
    ///
    /// Nothing is sent anywhere, so it needs no privileges and does not depend on how busy the machine is.
    Simulate(SimulateArgs),
}

#[derive(Args)]
struct SimulateArgs {
    /// The networks, by name; see `list`.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    profile: Vec<String>,
    /// Profiles of your own, in the form of profiles.toml.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// The congestion controllers.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    control: Vec<CongestionControl>,
    /// Each shares the link with another transfer, which this one controls.
    #[arg(long, value_name = "NAME")]
    beside: Option<CongestionControl>,
    /// Bytes go from the stub to the agent instead of from the agent to the stub.
    #[arg(long)]
    down: bool,
    /// How long the transfers take, in simulated seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// What is measured begins after so many seconds.
    #[arg(long, default_value_t = 0)]
    warm_up: u64,
    /// The same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct NetworkArgs {
    /// The network, by name; see `list`.
    #[arg(long, value_name = "NAME")]
    profile: String,
    /// Profiles of your own, in the form of profiles.toml.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// The same seed and the same packets give the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::List { profiles } => list(profiles),
        Task::Link { network, public, command } => link(&network, public.as_deref(), &command),
        Task::Relay { network, to } => relay(&network, to),
        Task::Simulate(args) => simulate(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn list(file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    println!("Profiles:");
    for profile in profiles(file)?.iter() {
        println!("  {:<20}{}", profile.name, profile.about);
        if profile.up == profile.down {
            println!("  {:<20}  both ways: {}", "", settings(&profile.up));
        } else {
            println!("  {:<20}  up: {}; down: {}", "", settings(&profile.up), settings(&profile.down));
        }
    }
    println!("\nBackends:");
    for backend in Backend::ALL {
        let state = backend.probe().map_or_else(|reason| format!("not here: {reason}"), |()| "available".to_owned());
        println!("  {:<20}{}\n  {:<20}  {state}", backend.name(), backend.about(), "");
    }
    Ok(ExitCode::SUCCESS)
}

fn link(args: &NetworkArgs, public: Option<&str>, command: &[String]) -> anyhow::Result<ExitCode> {
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

fn relay(args: &NetworkArgs, to: SocketAddr) -> anyhow::Result<ExitCode> {
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

fn simulate(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let profiles = profiles(args.profiles.clone())?;
    println!("| link | controller | Mbit/s | RTT p50 | RTT p99 | sent again | broken by |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for profile in &args.profile {
        for &control in &args.control {
            let others = args.beside.map(|control| Flow { control, start: Duration::ZERO });
            let flows: Vec<_> = iter::once(Flow { control, start: Duration::ZERO }).chain(others).collect();
            let scenario = Scenario {
                profile: profiles.get(profile)?,
                direction: if args.down { Direction::Down } else { Direction::Up },
                flows: &flows,
                measure_from: Duration::from_secs(args.warm_up),
                end: Duration::from_secs(args.seconds),
                seed: args.seed,
            };
            for report in scenario.run()? {
                print_row(profile, &report);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_row(profile: &str, report: &FlowReport) {
    let FlowReport { control, goodput, rtt_p50, rtt_p99, retransmitted, broken } = report;
    println!(
        "| {profile} | {control} | {:.1} | {:.0} ms | {:.0} ms | {:.2}% | {} |",
        goodput / 1e6,
        rtt_p50.as_secs_f64() * 1e3,
        rtt_p99.as_secs_f64() * 1e3,
        retransmitted * 100.0,
        broken.as_deref().unwrap_or_default()
    );
}

fn announce(event: Event, happened: std::io::Result<()>) {
    match happened {
        Ok(()) => eprintln!("at {:?}: {:?}", event.at, event.action),
        Err(error) => eprintln!("at {:?}: {:?} failed: {error}", event.at, event.action),
    }
}

fn profiles(file: Option<PathBuf>) -> anyhow::Result<Profiles> {
    Ok(file.map_or_else(Profiles::built_in, |file| Profiles::with_file(&file))?)
}

impl NetworkArgs {
    fn profile(&self) -> anyhow::Result<Profile> {
        Ok(profiles(self.profiles.clone())?.get(&self.profile)?.clone())
    }
}

/// One direction in one line.
fn settings(path: &PathSettings) -> String {
    let mut parts = vec![format!("delay {:?}", path.delay)];
    if !path.jitter.is_zero() {
        parts.push(format!("jitter {:?}", path.jitter));
    }
    if let Some(rate) = path.rate {
        parts.push(format!("rate {rate}"));
    }
    let loss = path.loss.long_run();
    if loss > 0.0 {
        parts.push(format!("loss {:.2}%", loss * 100.0));
    }
    parts.join(", ")
}
