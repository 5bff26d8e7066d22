//! `run`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use netem_tests::contender::{Carrier, Congestion, Contender};
use netem_tests::interrupt;
use netem_tests::record::Seen;
use netem_tests::report::{Latency, Outcome, comparison};
use netem_tests::run::Plan;
use netem_tests::scenario::Scenario;
use netem_tests::testbed::Program;

use super::profiles;

/// What to measure.
#[derive(Args)]
pub struct RunArgs {
    /// The networks, by name; see `list`.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    profile: Vec<String>,
    /// Profiles of your own, in the form of profiles.toml.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// The uses of the tunnel, by name; see `list`.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    scenario: Vec<String>,
    /// What moves streams.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "quic,tcp-yamux")]
    carrier: Vec<Carrier>,
    /// What controls congestion: qtunnel's own for QUIC, the kernel's for TCP. Each carrier is measured with each.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "bbr,cubic")]
    congestion: Vec<Congestion>,
    /// How long to measure each; longer where the events of a network take longer.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Which packets are lost, as far as real time lets that be said again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often to measure each; what comes out is put together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Write all numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program under test, if not the one of this workspace.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Measures everything asked for, and prints a table for each network and use.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let program = match &args.program {
        Some(path) => Program::at(path.clone()),
        None => Program::of_workspace()?,
    };
    let profiles = profiles(args.profiles.clone())?;
    let mut all = Vec::new();
    for scenario in &args.scenario {
        let scenario = Scenario::get(scenario)?;
        for profile in &args.profile {
            let profile = profiles.get(profile)?;
            let plan = |contender| Plan {
                program: &program,
                profile,
                scenario,
                contender,
                length: Duration::from_secs(args.seconds),
                seed: args.seed,
            };
            let outcomes: anyhow::Result<Vec<_>> =
                args.contenders().map(|contender| measure(plan(contender), args.repeat)).collect();
            let outcomes = outcomes?;
            println!("\n{}", comparison(&outcomes));
            all.extend(outcomes);
        }
    }
    if let Some(file) = &args.json {
        write_json(file, &all)?;
    }
    Ok(if all.iter().all(|outcome| outcome.valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl RunArgs {
    fn contenders(&self) -> impl Iterator<Item = Contender> {
        let of = |carrier| self.congestion.iter().map(move |&congestion| Contender { carrier, congestion });
        self.carrier.iter().flat_map(move |&carrier| of(carrier))
    }
}

/// Measures one contender as often as asked, with another seed each time.
fn measure(plan: Plan<'_>, repeat: u64) -> anyhow::Result<Outcome> {
    let Plan { profile, scenario, contender, .. } = plan;
    let runs = (0..repeat).map(|number| {
        let what = format!("{} on {} over {contender}", scenario.name, profile.name);
        let plan = Plan { seed: plan.seed + number, ..plan };
        let progress = Progress::new(what.clone());
        plan.run(|elapsed, seen| progress.show(elapsed, seen)).with_context(|| what)
    });
    let runs: Vec<_> = runs.collect::<anyhow::Result<_>>()?;
    Ok(Outcome::of(&profile.name, scenario.name, contender, &runs))
}

fn write_json(file: &Path, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(outcomes)?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// One line on the terminal that changes; one line in all where there is none.
struct Progress {
    what: String,
    is_terminal: bool,
}

impl Progress {
    fn new(what: String) -> Self {
        eprintln!("{what}");
        Self { what, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, elapsed: Duration, seen: &Seen) {
        if !self.is_terminal {
            return;
        }
        let p99 = |name: &str, samples: &[netem_tests::record::Sample]| {
            let latency = Latency::of(samples.iter().map(|sample| sample.took));
            latency.map_or_else(String::new, |latency| format!("  {name} p99 {:.0} ms", latency.p99))
        };
        let bits = seen.bulk.iter().rev().skip(1).take(10).sum::<u64>() as f64 * 8.0;
        let bulk = if seen.bulk.is_empty() { String::new() } else { format!("  bulk {:.0} Mbit/s", bits / 1e6) };
        let (gets, lines, echoes) = (p99("GET", &seen.gets), p99("log", &seen.lines), p99("echo", &seen.echoes));
        // Clears to the end of the line, so that a shorter one leaves nothing of a longer one.
        eprint!("\r{:>3} s{gets}{lines}{echoes}{bulk}  lost {}\x1b[K", elapsed.as_secs(), seen.lost_streams);
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K\x1b[A\x1b[K{}\n", self.what);
        }
    }
}
