//! `run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use netem_tests::contender::{Carrier, Congestion, Contender};
use netem_tests::interrupt;
use netem_tests::report::{Measured, comparison};
use netem_tests::run::{Plan, Records};
use netem_tests::scenario::Scenario;

use super::measure::MeasureArgs;
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
    /// Write charts (SVG) into this directory.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Write what passes the stub's device to this file (pcap), for one run only.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Write what stub and agent did with QUIC (qlog) into this directory, a directory in it for each network, use and
    /// contender.
    #[arg(long, value_name = "DIR")]
    qlog: Option<PathBuf>,
    /// How to measure.
    #[command(flatten)]
    how: MeasureArgs,
}

/// Measures everything asked for, and prints a table for each network and use. Fails when a run was invalid.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let runs = args.profile.len() * args.scenario.len() * args.contenders().count();
    ensure!(args.pcap.is_none() || runs == 1 && args.how.repeat == 1, "--pcap is for one run, and this would be more");
    let program = args.how.program()?;
    let profiles = profiles(args.profiles.clone())?;
    let mut outcomes = Vec::new();
    for scenario in &args.scenario {
        let scenario = Scenario::get(scenario)?;
        for profile in &args.profile {
            let profile = profiles.get(profile)?;
            let measure = |contender: Contender| {
                let qlog = args.qlog.as_ref().map(|directory| {
                    let contender = contender.to_string().replace('/', "-");
                    directory.join(format!("{}-{}-{contender}", scenario.name, profile.name))
                });
                args.how.measure(Plan {
                    program: &program,
                    profile,
                    scenario,
                    contender,
                    length: Duration::from_secs(args.seconds),
                    seed: args.how.seed,
                    records: Records { capture: args.pcap.as_deref(), qlog: qlog.as_deref() },
                })
            };
            let measured: Vec<Measured> = args.contenders().map(measure).collect::<anyhow::Result<_>>()?;
            if let Some(directory) = &args.plot {
                args.how.write_charts(directory, &measured)?;
            }
            let compared: Vec<_> = measured.into_iter().map(|measured| measured.outcome).collect();
            println!("\n{}", comparison(&compared));
            outcomes.extend(compared);
        }
    }
    args.how.write_json(&outcomes)?;
    Ok(if outcomes.iter().all(|outcome| outcome.valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl RunArgs {
    fn contenders(&self) -> impl Iterator<Item = Contender> {
        let of = |carrier| self.congestion.iter().map(move |&congestion| Contender { carrier, congestion });
        self.carrier.iter().flat_map(move |&carrier| of(carrier))
    }
}
