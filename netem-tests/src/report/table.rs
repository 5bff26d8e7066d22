//! Contenders side by side, in Markdown.

use std::fmt::Write;

use super::{Latency, Outcome};

/// A table of outcomes of one network and one use of the tunnel, and after each but the first the ratio of the first to it.
/// What was not measured has no row; what is invalid has no numbers.
pub fn comparison(outcomes: &[Outcome]) -> String {
    let mut table = Table::default();
    let heading = outcomes.first().map(|first| format!("{}, {}", first.scenario, first.profile));
    table.row(heading.unwrap_or_default(), headings(outcomes));
    table.row("---".to_owned(), headings(outcomes).map(|_| "---".to_owned()));
    for (name, value) in ROWS {
        let values: Vec<_> = outcomes.iter().map(|outcome| value(outcome).filter(|_| outcome.valid)).collect();
        if values.iter().any(Option::is_some) {
            table.row((*name).to_owned(), cells(&values));
        }
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.valid) {
        // The reader should know why there is nothing to read.
        let Outcome { contender, emulator_p99, emulator_max, emulator_load, .. } = outcome;
        let _ = writeln!(
            table.text,
            "\nINVALID: {contender}: the machine was too busy to emulate the network (lateness p99 {emulator_p99:.2} ms, \
             max {emulator_max:.1} ms, load {:.0}%)",
            emulator_load * 100.0
        );
    }
    table.text
}

/// A number of an outcome.
type Value = fn(&Outcome) -> Option<f64>;

const ROWS: &[(&str, Value)] = &[
    ("GET p50, ms", |o| o.gets.map(p50)),
    ("GET p95, ms", |o| o.gets.map(p95)),
    ("GET p99, ms", |o| o.gets.map(p99)),
    ("GETs that failed", |o| o.gets.map(|_| o.failed_gets as f64)),
    ("log line p50, ms", |o| o.lines.map(p50)),
    ("log line p95, ms", |o| o.lines.map(p95)),
    ("log line p99, ms", |o| o.lines.map(p99)),
    ("echo p50, ms", |o| o.echoes.map(p50)),
    ("echo p95, ms", |o| o.echoes.map(p95)),
    ("echo p99, ms", |o| o.echoes.map(p99)),
    ("bulk, Mbit/s", |o| o.mbit_per_second),
    ("plain TCP beside it, Mbit/s", |o| o.beside_mbit_per_second),
    ("longest silence, ms", |o| Some(o.longest_silence)),
    ("the same without the outage, ms", |o| o.back_after),
    ("streams lost", |o| Some(o.lost_streams as f64)),
    ("queue of the link p50, ms", |o| Some(o.queue_p50)),
    ("queue of the link p99, ms", |o| Some(o.queue_p99)),
    ("packets lost, %", |o| Some(o.packets_lost * 100.0)),
    ("stub: CPU, s", |o| Some(o.stub.cpu_seconds)),
    ("stub: peak memory, MiB", |o| Some(o.stub.peak_mebibytes)),
    ("stub: waited for a core, s", |o| Some(o.stub.waited_seconds)),
    ("agent: CPU, s", |o| Some(o.agent.cpu_seconds)),
    ("agent: peak memory, MiB", |o| Some(o.agent.peak_mebibytes)),
    ("agent: waited for a core, s", |o| Some(o.agent.waited_seconds)),
    ("emulator late p99, ms", |o| Some(o.emulator_p99)),
    ("emulator late max, ms", |o| Some(o.emulator_max)),
];

fn p50(latency: Latency) -> f64 {
    latency.p50
}

fn p95(latency: Latency) -> f64 {
    latency.p95
}

fn p99(latency: Latency) -> f64 {
    latency.p99
}

#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn row(&mut self, first: String, rest: impl Iterator<Item = String>) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "| {first:<32}");
        for cell in rest {
            let _ = write!(self.text, "| {cell:>16} ");
        }
        self.text.push_str("|\n");
    }
}

fn headings(outcomes: &[Outcome]) -> impl Iterator<Item = String> {
    outcomes.iter().enumerate().flat_map(|(index, outcome)| {
        let ratio = (index > 0).then(|| "ratio".to_owned());
        std::iter::once(outcome.contender.clone()).chain(ratio)
    })
}

fn cells(values: &[Option<f64>]) -> impl Iterator<Item = String> {
    let first = values.first().copied().flatten();
    values.iter().enumerate().flat_map(move |(index, value)| {
        let ratio = first.zip(*value).filter(|(_, other)| *other != 0.0).map(|(first, other)| number(first / other));
        let ratio = (index > 0).then(|| ratio.unwrap_or_default());
        std::iter::once(value.map(number).unwrap_or_default()).chain(ratio)
    })
}

/// With three digits that matter.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 || magnitude == 0.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
