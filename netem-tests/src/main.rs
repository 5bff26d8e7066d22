//! The command line of the network emulator.

mod commands;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::NetworkArgs;
use commands::link::link;
use commands::list::list;
use commands::matrix::{MatrixArgs, matrix};
use commands::relay::relay;
use commands::run::{RunArgs, run};
use commands::scale::{AgentsArgs, ScaleArgs, agents, scale};
use commands::simulate::{SimulateArgs, simulate};

/// Run programs over bad networks.
#[derive(Parser)]
#[command(name = "netem-tests", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the profiles, the scenarios, and the backends this machine has.
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
    /// Measure what users of the tunnel see on a bad network, with the real stub and agent, and compare carriers (needs root).
    Run(RunArgs),
    /// Measure what RESULTS.md shows and write it there, with charts beside it (needs root, and a quiet machine).
    Matrix(MatrixArgs),
    /// Measure how much one stub and one agent can carry: many open streams, many agents (needs root).
    Scale(ScaleArgs),
    /// Run many agents in this process, for `scale`.
    #[command(hide = true)]
    Agents(AgentsArgs),
    /// Compare congestion controllers over a link in simulated time, one bulk transfer each; prints Markdown.
    ///
    /// Nothing is sent anywhere, so it needs no privileges and does not depend on how busy the machine is.
    Simulate(SimulateArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::List { profiles } => list(profiles),
        Task::Link { network, public, command } => link(&network, public.as_deref(), &command),
        Task::Relay { network, to } => relay(&network, to),
        Task::Run(args) => run(&args),
        Task::Matrix(args) => matrix(&args),
        Task::Scale(args) => scale(&args),
        Task::Agents(args) => agents(&args),
        Task::Simulate(args) => simulate(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
