//! The charts of a comparison.

use std::time::Duration;

use super::Measured;
use super::chart::{Axis, Chart, Line, Mark, Scale};
use crate::profile::Action;
use crate::record::{SLICE, Sample, Seen};
use crate::scenario::{Event, Happening};

/// Points of a line at most: what can be told apart at the width of the picture.
const POINTS: usize = 240;

/// One kind of what clients saw.
type Samples = fn(&Seen) -> &[Sample];

/// The charts of contenders in the same network and use of the tunnel, each with a name that may be a file's.
pub fn charts(measured: &[Measured]) -> Vec<(&'static str, Chart)> {
    let kinds: [(&str, &str, Samples); 3] = [
        ("gets", "small GETs", |seen| &seen.gets),
        ("lines", "log lines", |seen| &seen.lines),
        ("echoes", "keystrokes", |seen| &seen.echoes),
    ];
    let mut charts = Vec::new();
    let has_events = measured.iter().flat_map(|measured| &measured.runs).any(|run| !run.events.is_empty());
    // Where something happened, when it was slow says more than how often.
    let chart = if has_events { over_time } else { distribution };
    for (name, what, samples) in kinds {
        if measured.iter().flat_map(|measured| &measured.runs).any(|run| !samples(&run.seen).is_empty()) {
            charts.push((name, chart(measured, what, samples)));
        }
    }
    if measured.iter().flat_map(|measured| &measured.runs).any(|run| !run.seen.bulk.is_empty()) {
        charts.push(("bulk", throughput(measured)));
    }
    charts
}

/// Which share took no longer than so many milliseconds.
fn distribution(measured: &[Measured], what: &str, samples: Samples) -> Chart {
    let line = |measured: &Measured| {
        let mut sorted: Vec<_> =
            measured.runs.iter().flat_map(|run| samples(&run.seen)).map(|sample| millis(sample.took)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len();
        let step = count.div_ceil(POINTS).max(1);
        let last = count.checked_sub(1);
        let indices = (0..count).step_by(step).chain(last);
        let points = indices.filter_map(|index| Some((*sorted.get(index)?, (index + 1) as f64 / count as f64 * 100.0)));
        Line { name: measured.outcome.contender.clone(), points: points.collect() }
    };
    Chart {
        title: title(measured, what),
        x: Axis { label: "took at most, ms", scale: Scale::Logarithmic },
        y: Axis { label: "share, %", scale: Scale::Linear },
        lines: measured.iter().map(line).collect(),
        marks: Vec::new(),
    }
}

/// The slowest of each slice of time, of the first run.
fn over_time(measured: &[Measured], what: &str, samples: Samples) -> Chart {
    let line = |measured: &Measured| {
        let slices = measured.runs.first().map_or(0, |run| (run.length.as_nanos() / SLICE.as_nanos()) as usize);
        let mut slowest = vec![0.0_f64; slices];
        for sample in measured.runs.first().into_iter().flat_map(|run| samples(&run.seen)) {
            if let Some(slot) = slowest.get_mut((sample.at.as_nanos() / SLICE.as_nanos()) as usize) {
                *slot = slot.max(millis(sample.took));
            }
        }
        let points =
            slowest.into_iter().enumerate().filter(|(_, took)| *took > 0.0).map(|(slice, took)| (at(slice), took));
        Line { name: measured.outcome.contender.clone(), points: points.collect() }
    };
    Chart {
        title: title(measured, what),
        x: Axis { label: "began at, s", scale: Scale::Linear },
        y: Axis { label: "slowest of 0.1 s, ms", scale: Scale::Logarithmic },
        lines: measured.iter().map(line).collect(),
        marks: marks(measured),
    }
}

/// The bulk transfer of the first run.
fn throughput(measured: &[Measured]) -> Chart {
    let line = |measured: &Measured| {
        let bulk = measured.runs.first().map(|run| run.seen.bulk.as_slice()).unwrap_or_default();
        // Of half a second each: a tenth jumps about with the sizes of reads.
        let per_point = 5;
        let points = bulk.chunks(per_point).enumerate().map(|(index, slices)| {
            let seconds = slices.len() as f64 * SLICE.as_secs_f64();
            (at(index * per_point), slices.iter().sum::<u64>() as f64 * 8.0 / 1e6 / seconds)
        });
        Line { name: measured.outcome.contender.clone(), points: points.collect() }
    };
    Chart {
        title: title(measured, "one bulk transfer"),
        x: Axis { label: "s", scale: Scale::Linear },
        y: Axis { label: "Mbit/s", scale: Scale::Linear },
        lines: measured.iter().map(line).collect(),
        marks: marks(measured),
    }
}

fn title(measured: &[Measured], what: &str) -> String {
    let first = measured.first().map(|measured| &measured.outcome);
    first.map_or_else(String::new, |first| format!("{what}: {} on {}", first.scenario, first.profile))
}

fn marks(measured: &[Measured]) -> Vec<Mark> {
    let events = measured.first().and_then(|measured| measured.runs.first()).map(|run| run.events.as_slice());
    let mark = |event: &Event| Mark {
        from: event.at.as_secs_f64(),
        until: event.end().as_secs_f64(),
        name: match event.what {
            Happening::Network(Action::Blackout(_)) => "blackout".to_owned(),
            Happening::Network(Action::NatRebind) => "new port at the NAT".to_owned(),
            Happening::Network(Action::AddressChange) => "new address".to_owned(),
            Happening::StubRestart => "stub restarts".to_owned(),
        },
    };
    events.unwrap_or_default().iter().map(mark).collect()
}

/// When a slice begins, in seconds.
fn at(slice: usize) -> f64 {
    slice as f64 * SLICE.as_secs_f64()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
