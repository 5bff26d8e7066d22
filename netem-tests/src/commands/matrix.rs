//! `matrix`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use netem_tests::contender::{Carrier, Congestion, Contender};
use netem_tests::interrupt;
use netem_tests::profile::Profiles;
use netem_tests::report::template::fill;
use netem_tests::report::{Measured, Outcome, comparison};
use netem_tests::run::{Plan, Records};
use netem_tests::scenario::Scenario;
use serde_json::{Value, json};

use super::measure::{MeasureArgs, write};

/// Where and how to measure.
#[derive(Args)]
pub struct MatrixArgs {
    /// The file that is written.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md"))]
    results: PathBuf,
    /// The text that figures are put into.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.template.md"))]
    template: PathBuf,
    /// What `scale --json` has measured, if the text is to have that as well.
    #[arg(long, value_name = "FILE")]
    scale: Option<PathBuf>,
    /// How long to measure each; longer where the events of a network take longer.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only what is measured for these scenarios.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How to measure.
    #[command(flatten)]
    how: MeasureArgs,
}

/// Where in the text all tables go.
const TABLES: &str = "<!-- tables -->\n";

/// Where charts are, beside the file of results.
const PLOTS: &str = "results";

const QUIC_BBR: Contender = Contender { carrier: Carrier::Quic, congestion: Congestion::Bbr };
const QUIC_CUBIC: Contender = Contender { carrier: Carrier::Quic, congestion: Congestion::Cubic };
const TCP_BBR: Contender = Contender { carrier: Carrier::TcpYamux, congestion: Congestion::Bbr };
const TCP_CUBIC: Contender = Contender { carrier: Carrier::TcpYamux, congestion: Congestion::Cubic };

const ALL: &[Contender] = &[QUIC_BBR, QUIC_CUBIC, TCP_BBR, TCP_CUBIC];
const BESIDE_CUBIC: &[Contender] = &[QUIC_BBR, QUIC_CUBIC, TCP_CUBIC];
const QUIC_AND_BOTH_TCP: &[Contender] = &[QUIC_BBR, TCP_BBR, TCP_CUBIC];
const QUIC_AND_TCP: &[Contender] = &[QUIC_BBR, TCP_CUBIC];

/// What is measured: a use of the tunnel, the networks, the contenders, and whether charts show it. It takes less than 25 minutes: some 20 s for
/// each contender, and 85 s where the network is gone for a minute.
const MATRIX: &[(&str, &[&str], &[Contender], Charts)] = &[
    ("mixed", &["lossy-2"], ALL, Charts::Shown),
    ("mixed", &["wifi-1", "burst"], ALL, Charts::None),
    ("mixed", &["lossy-5"], QUIC_AND_BOTH_TCP, Charts::None),
    ("mixed", &["lte", "satellite"], QUIC_AND_TCP, Charts::None),
    ("gets", &["clean", "lan", "wan-50ms", "lossy-2"], QUIC_AND_TCP, Charts::None),
    ("bulk", &["wan-50ms", "lossy-2", "bufferbloat-10mbit"], ALL, Charts::None),
    ("beside-tcp", &["wan-50ms", "bufferbloat-10mbit"], BESIDE_CUBIC, Charts::None),
    ("exec", &["lossy-2", "bufferbloat-10mbit"], BESIDE_CUBIC, Charts::None),
    ("logs-1000", &["lossy-2"], QUIC_AND_TCP, Charts::None),
    ("port-forward", &["lossy-2"], QUIC_AND_TCP, Charts::None),
    ("address-change", &["address-change"], QUIC_AND_TCP, Charts::Shown),
    ("address-change", &["nat-rebind"], QUIC_AND_TCP, Charts::None),
    ("blackout", &["blackout-5s"], QUIC_AND_TCP, Charts::Shown),
    ("blackout", &["blackout-60s"], QUIC_AND_TCP, Charts::None),
    ("stub-restart", &["wan-50ms"], QUIC_AND_TCP, Charts::None),
    ("fresh", &["wan-50ms"], QUIC_AND_TCP, Charts::None),
];

/// Whether there are pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charts {
    Shown,
    None,
}

/// Measures all of it and writes the file of results. Fails when a run was invalid twice; its table then says so.
pub fn matrix(args: &MatrixArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let template = read(&args.template)?;
    let scale = args.scale.as_deref().map(read).transpose()?.map(|text| serde_json::from_str(&text)).transpose()?;
    let scale: Value = scale.unwrap_or_default();
    // A text that cannot be filled in should fail now and not after all the measuring.
    results(&template, "", &figures(&[], scale.clone())?)?;
    let (program, profiles, began) = (args.how.program()?, Profiles::built_in()?, Instant::now());
    let (mut text, mut outcomes, mut heading) = (machine(), Vec::new(), "");
    for (scenario, networks, contenders, charts) in MATRIX {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == scenario) {
            continue;
        }
        let scenario = Scenario::get(scenario)?;
        if heading != scenario.name {
            heading = scenario.name;
            writeln!(text, "\n### `{heading}`: {}", scenario.about)?;
        }
        for network in *networks {
            let profile = profiles.get(network)?;
            let plan = |contender| Plan {
                program: &program,
                profile,
                scenario,
                contender,
                length: Duration::from_secs(args.seconds),
                seed: args.how.seed,
                records: Records::default(),
            };
            let measured = contenders.iter().map(|&contender| args.measure_validly(plan(contender)));
            let measured: Vec<_> = measured.collect::<anyhow::Result<_>>()?;
            let compared: Vec<_> = measured.iter().map(|measured| measured.outcome.clone()).collect();
            let table = comparison(&compared);
            println!("\n{table}");
            writeln!(text, "\n{table}")?;
            if *charts == Charts::Shown {
                text.push_str(&args.charts(&measured)?);
            }
            outcomes.extend(compared);
        }
    }
    args.how.write_json(&outcomes)?;
    eprintln!("{} contenders in {} s", outcomes.len(), began.elapsed().as_secs());
    write(&args.results, &results(&template, &text, &figures(&outcomes, scale)?)?)?;
    Ok(if outcomes.iter().all(|outcome| outcome.valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl MatrixArgs {
    /// Measures, and once more when the machine was too busy for the emulator.
    fn measure_validly(&self, plan: Plan<'_>) -> anyhow::Result<Measured> {
        let measured = self.how.measure(plan)?;
        if measured.outcome.valid {
            return Ok(measured);
        }
        eprintln!("invalid: the machine was too busy; once more");
        self.how.measure(plan)
    }

    /// Writes charts; gives the Markdown that shows them, with paths from where the file of results is.
    fn charts(&self, measured: &[Measured]) -> anyhow::Result<String> {
        let directory = self.results.parent().unwrap_or(Path::new("")).join(PLOTS);
        let files = self.how.write_charts(&directory, measured)?;
        let show = |file: String| format!("\n![{}]({PLOTS}/{file})\n", file.trim_end_matches(".svg"));
        Ok(files.into_iter().map(show).collect())
    }
}

/// The text with everything that was measured in it.
fn results(template: &str, tables: &str, figures: &Value) -> anyhow::Result<String> {
    let (before, after) = template.split_once(TABLES).with_context(|| format!("the text has no line {TABLES:?}"))?;
    Ok(format!("{}{tables}{}", fill(before, figures)?, fill(after, figures)?))
}

/// Everything that a place in the text can name: the use of the tunnel, the network, the contender, and the figure; and what
/// `scale` has measured.
fn figures(outcomes: &[Outcome], scale: Value) -> anyhow::Result<Value> {
    let mut figures = json!({ "scale": scale });
    for outcome in outcomes {
        let Outcome { scenario, profile, contender, .. } = outcome;
        figures[scenario.as_str()][profile.as_str()][contender.as_str()] = serde_json::to_value(outcome)?;
    }
    Ok(figures)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What it was measured on, and when.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let processor = information.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let processor = processor.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo").split_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok());
    let memory = memory.unwrap_or_default() / (1 << 20);
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let buffer = read("/proc/sys/net/core/rmem_max");
    let load = load.split_whitespace().next().unwrap_or_default();
    format!(
        "Measured on {}, on {cores} cores ({processor}) with {memory} GiB, Linux {}, `net.core.rmem_max` {}; load before it \
         began: {load}. Emulator, stub, agent, API server and clients share those cores.\n",
        Timestamp::now().strftime("%Y-%m-%d"),
        kernel.trim(),
        buffer.trim(),
    )
}

#[cfg(test)]
mod tests {
    use netem_tests::report::template::paths;

    use super::*;

    fn template() -> String {
        read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.template.md"))).unwrap()
    }

    #[test]
    fn the_text_without_figures_says_what_was_not_measured() {
        let text = results(&template(), "the tables\n", &figures(&[], Value::Null).unwrap()).unwrap();
        assert!(text.contains("\nthe tables\n") && text.contains("not measured") && !text.contains("{{"), "{text}");
        assert!(results("no place for tables", "", &Value::Null).is_err());
    }

    #[test]
    fn the_text_asks_for_nothing_that_is_not_measured() {
        let template = template();
        for path in paths(&template).unwrap() {
            if path.first() == Some(&"scale") {
                continue;
            }
            let [scenario, network, contender, ..] = path.as_slice() else { panic!("{path:?}") };
            let is_measured = MATRIX.iter().any(|(name, networks, contenders, _)| {
                name == scenario
                    && networks.contains(network)
                    && contenders.iter().any(|other| other.to_string() == **contender)
            });
            assert!(is_measured, "{path:?}");
        }
    }

    #[test]
    fn the_matrix_names_what_there_is() {
        let profiles = Profiles::built_in().unwrap();
        for (scenario, networks, contenders, _) in MATRIX {
            assert!(Scenario::get(scenario).is_ok() && !contenders.is_empty());
            assert!(networks.iter().all(|network| profiles.get(network).is_ok()));
        }
    }
}
