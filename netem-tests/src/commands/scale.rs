//! `scale`, and `agents` that it starts.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use netem_tests::contender::{Carrier, Congestion, Contender};
use netem_tests::interrupt;
use netem_tests::scale::{self, AgentFigures, Crowd, StreamFigures};
use netem_tests::testbed::Program;
use qtunnel::agent::StubAddress;
use qtunnel::pki::JoinToken;
use serde_json::json;

use super::measure::write;

/// What a program has open besides connections.
const SPARE_FILES: u64 = 500;

/// How much to try.
#[derive(Args)]
pub struct ScaleArgs {
    /// How many `logs -f` to open on one agent.
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
    /// How many agents to connect to one stub.
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Write all numbers to this file, for `matrix --scale`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program under test, if not the one of this workspace.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Which agents to run.
#[derive(Args)]
pub struct AgentsArgs {
    /// Where the stub is.
    #[arg(long, value_name = "HOST:PORT")]
    stub: StubAddress,
    /// Where they keep their keys.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Join tokens, one in each line.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// The number of the first.
    #[arg(long)]
    first: usize,
    /// How many.
    #[arg(long)]
    count: usize,
}

/// Measures both and prints Markdown.
pub fn scale(args: &ScaleArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let open_files = scale::raise_limit()?;
    let needed = args.streams.max(args.agents) as u64 + SPARE_FILES;
    ensure!(open_files >= needed, "needs {needed} open files, and the system allows {open_files} (ulimit -Hn)");
    let program = Program::choose(args.program.as_deref())?;
    let mut figures = json!({});
    println!("| what | measured |\n| --- | --- |");
    for (carrier, congestion) in [(Carrier::Quic, Congestion::Bbr), (Carrier::TcpYamux, Congestion::Cubic)] {
        if args.streams > 0 {
            let measured = scale::streams(&program, Contender { carrier, congestion }, args.streams)?;
            print_streams(&measured);
            figures["streams"][measured.contender.as_str()] = serde_json::to_value(&measured)?;
        }
    }
    if args.agents > 0 {
        let measured = scale::agents(&program, args.agents)?;
        print_agents(&measured);
        figures["agents"] = serde_json::to_value(&measured)?;
    }
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs agents until this process is killed.
pub fn agents(args: &AgentsArgs) -> anyhow::Result<ExitCode> {
    let tokens = fs::read_to_string(&args.tokens).context("cannot read the join tokens")?;
    let tokens = tokens.lines().map(str::parse::<JoinToken>).collect::<Result<_, _>>()?;
    scale::run_crowd(&Crowd {
        stub: args.stub.clone(),
        directory: args.directory.clone(),
        tokens,
        first: args.first,
        count: args.count,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn print_streams(figures: &StreamFigures) {
    let StreamFigures { contender, streams, gets_without, gets_with, stub_kibibytes_each, agent_kibibytes_each } =
        figures;
    println!(
        "| {contender}: small GET p50 / p99, no stream open | {:.2} / {:.2} ms |",
        gets_without.p50, gets_without.p99
    );
    println!("| the same, {streams} `logs -f` open | {:.2} / {:.2} ms |", gets_with.p50, gets_with.p99);
    println!("| ratio of p99 | {:.2} |", gets_with.p99 / gets_without.p99);
    println!("| stub's memory for each stream and its client | {stub_kibibytes_each:.1} KiB |");
    println!("| agent's memory for each stream | {agent_kibibytes_each:.1} KiB |");
}

fn print_agents(figures: &AgentFigures) {
    let AgentFigures { agents, joined_in, connected_in, kibibytes_each, idle_load } = figures;
    println!("| {agents} agents joined and connected in | {joined_in:.1} s |");
    println!("| {agents} agents connected after a restart of the stub in | {connected_in:.1} s |");
    println!("| stub's memory for each idle agent | {kibibytes_each:.1} KiB |");
    println!("| stub's share of a core with {agents} idle agents | {:.1}% |", idle_load * 100.0);
}
