//! What `run` and `matrix` have in common: measuring contenders one after the other, with a word about how it goes.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use netem_tests::record::{Sample, Seen};
use netem_tests::report::{Chart, Latency, Measured, Outcome, charts};
use netem_tests::run::Plan;
use netem_tests::testbed::Program;

/// How to measure, whatever it is.
#[derive(Args)]
pub struct MeasureArgs {
    /// Which packets are lost, as far as real time lets that be said again.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often to measure each, with another seed each time; what comes out is put together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub repeat: u64,
    /// Write all numbers to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The program under test, if not the one of this workspace.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl MeasureArgs {
    /// The program under test, built if need be.
    pub fn program(&self) -> anyhow::Result<Program> {
        Program::choose(self.program.as_deref())
    }

    /// Measures one contender as often as asked.
    pub fn measure(&self, plan: Plan<'_>) -> anyhow::Result<Measured> {
        let Plan { profile, scenario, contender, .. } = plan;
        let runs = (0..self.repeat).map(|number| {
            let what = format!("{} on {} over {contender}", scenario.name, profile.name);
            let plan = Plan { seed: plan.seed + number, ..plan };
            let progress = Progress::start(&what);
            plan.run(|elapsed, seen| progress.show(elapsed, seen)).context(what)
        });
        let runs: Vec<_> = runs.collect::<anyhow::Result<_>>()?;
        Ok(Measured { outcome: Outcome::of(&profile.name, scenario.name, contender, &runs), runs })
    }

    /// Writes the charts of a comparison into a directory; gives the names of their files.
    pub fn write_charts(&self, directory: &Path, measured: &[Measured]) -> anyhow::Result<Vec<String>> {
        let Some(Measured { outcome, .. }) = measured.first() else { return Ok(Vec::new()) };
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let write = |(name, chart): (&str, Chart)| {
            let file = format!("{}-{}-{name}.svg", outcome.scenario, outcome.profile);
            write(&directory.join(&file), &chart.to_svg()).map(|()| file)
        };
        charts(measured).into_iter().map(write).collect()
    }

    /// Writes all numbers, if they are wanted.
    pub fn write_json(&self, outcomes: &[Outcome]) -> anyhow::Result<()> {
        match &self.json {
            Some(file) => write(file, &serde_json::to_string_pretty(outcomes)?),
            None => Ok(()),
        }
    }
}

/// Writes a file, or says which one cannot be written.
pub fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// One line about a run; on a terminal another one below it that changes.
struct Progress {
    is_terminal: bool,
}

impl Progress {
    fn start(what: &str) -> Self {
        eprintln!("{what}");
        Self { is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, elapsed: Duration, seen: &Seen) {
        if !self.is_terminal {
            return;
        }
        let p99 = |name: &str, samples: &[Sample]| {
            let latency = Latency::of(samples.iter().map(|sample| sample.took));
            latency.map_or_else(String::new, |latency| format!("  {name} p99 {:.0} ms", latency.p99))
        };
        // Of the last second that is over.
        let bits = seen.bulk.iter().rev().skip(1).take(10).sum::<u64>() as f64 * 8.0;
        let bulk = if seen.bulk.is_empty() { String::new() } else { format!("  bulk {:.0} Mbit/s", bits / 1e6) };
        let (gets, lines, echoes) = (p99("GET", &seen.gets), p99("log", &seen.lines), p99("echo", &seen.echoes));
        let clear_to_end = "\x1b[K";
        eprint!("\r{:>3} s{gets}{lines}{echoes}{bulk}  lost {}{clear_to_end}", elapsed.as_secs(), seen.lost_streams);
        // A terminal that is gone needs no progress.
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
