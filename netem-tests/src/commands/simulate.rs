//! `simulate`.

use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use netem_tests::link::Direction;
use netem_tests::simulation::{CongestionControl, Flow, FlowReport, Scenario};

use super::profiles;

/// What to simulate.
#[derive(Args)]
pub struct SimulateArgs {
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

/// Compares controllers and prints Markdown.
pub fn simulate(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
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
