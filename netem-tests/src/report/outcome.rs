//! What was measured, in numbers.

use std::time::Duration;

use serde::Serialize;

use crate::contender::Contender;
use crate::record::{SLICE, Sample};
use crate::run::Run;
use crate::testbed::Usage;

/// What came of all runs of one contender with one network and one use of the tunnel. Times are in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The network.
    pub profile: String,
    /// The use of the tunnel.
    pub scenario: String,
    /// The carrier and its congestion control.
    pub contender: String,
    /// How often it was measured.
    pub runs: usize,
    /// How long each time.
    pub seconds: f64,
    /// Of small GETs, from when each was due to the end of its answer.
    pub gets: Option<Latency>,
    /// Small GETs that failed.
    pub failed_gets: u64,
    /// Of log lines, from when each was written to when its follower had it.
    pub lines: Option<Latency>,
    /// Of keystrokes, from the key to its echo.
    pub echoes: Option<Latency>,
    /// Of the bulk transfer through the tunnel.
    pub mbit_per_second: Option<f64>,
    /// Of plain TCP beside the tunnel.
    pub beside_mbit_per_second: Option<f64>,
    /// The longest time in which some client that waited for something got nothing.
    pub longest_silence: f64,
    /// What of that was not because the network was gone.
    pub back_after: Option<f64>,
    /// Long streams that broke off.
    pub lost_streams: u64,
    /// Half of the packets to the stub waited no longer in the link's queue.
    pub queue_p50: f64,
    /// 99 of 100 packets waited no longer.
    pub queue_p99: f64,
    /// Packets lost on the way to the stub, by chance or at a full queue, of those sent.
    pub packets_lost: f64,
    /// The stub.
    pub stub: Cost,
    /// The agent.
    pub agent: Cost,
    /// 99 of 100 packets were emulated no later.
    pub emulator_p99: f64,
    /// No packet was emulated later.
    pub emulator_max: f64,
    /// The emulator's share of one core in its busiest second.
    pub emulator_load: f64,
    /// Whether the machine was fast enough for the emulator in all runs. If not, the numbers say nothing.
    pub valid: bool,
}

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: usize,
    /// Half of them took no longer.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All of them.
    pub max: f64,
}

/// What a program used, on average over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Seconds on all cores while it was measured.
    pub cpu_seconds: f64,
    /// Seconds that its threads were ready to run and had to wait for a core meanwhile.
    pub waited_seconds: f64,
    /// The most memory it had, in MiB.
    pub peak_mebibytes: f64,
}

impl Outcome {
    /// What came of these runs; there is at least one.
    pub fn of(profile: &str, scenario: &str, contender: Contender, runs: &[Run]) -> Self {
        let worst = |number: fn(&Run) -> f64| runs.iter().map(number).fold(0.0, f64::max);
        let mean = |number: fn(&Run) -> f64| runs.iter().map(number).sum::<f64>() / runs.len() as f64;
        let pooled = |samples: fn(&Run) -> &[Sample]| Latency::of(runs.iter().flat_map(samples).map(|s| s.took));
        let has_events = runs.iter().any(|run| !run.events.is_empty());
        let has = |bytes: fn(&Run) -> &[u64]| runs.iter().any(|run| !bytes(run).is_empty());
        Self {
            profile: profile.to_owned(),
            scenario: scenario.to_owned(),
            contender: contender.to_string(),
            runs: runs.len(),
            seconds: mean(|run| run.length.as_secs_f64()),
            gets: pooled(|run| &run.seen.gets),
            failed_gets: runs.iter().map(|run| run.seen.failed_gets).sum(),
            lines: pooled(|run| &run.seen.lines),
            echoes: pooled(|run| &run.seen.echoes),
            mbit_per_second: has(|run| &run.seen.bulk).then(|| mean(|run| rate(&run.seen.bulk, run.length))),
            beside_mbit_per_second: has(|run| &run.seen.beside).then(|| mean(|run| rate(&run.seen.beside, run.length))),
            longest_silence: worst(|run| millis(run.seen.longest_silence)),
            back_after: has_events.then(|| worst(back_after)),
            lost_streams: runs.iter().map(|run| run.seen.lost_streams).sum(),
            queue_p50: mean(|run| millis(run.network.link.up_wait.p50)),
            queue_p99: mean(|run| millis(run.network.link.up_wait.p99)),
            packets_lost: mean(|run| {
                let up = run.network.link.up;
                (up.lost + up.queue_dropped) as f64 / up.offered.max(1) as f64
            }),
            stub: Cost::of(runs.iter().map(|run| run.stub)),
            agent: Cost::of(runs.iter().map(|run| run.agent)),
            emulator_p99: worst(|run| millis(run.network.link.lateness.p99)),
            emulator_max: worst(|run| millis(run.network.link.lateness.max)),
            emulator_load: worst(|run| run.network.link.peak_load),
            valid: runs.iter().all(Run::is_valid),
        }
    }
}

impl Cost {
    fn of(usages: impl ExactSizeIterator<Item = Usage> + Clone) -> Self {
        let runs = usages.len() as f64;
        Self {
            cpu_seconds: usages.clone().map(|usage| usage.processor_time.as_secs_f64()).sum::<f64>() / runs,
            waited_seconds: usages.clone().map(|usage| usage.waited.as_secs_f64()).sum::<f64>() / runs,
            peak_mebibytes: usages.map(|usage| usage.peak_memory as f64 / f64::from(1 << 20)).fold(0.0, f64::max),
        }
    }
}

impl Latency {
    /// `None` where nothing was measured.
    pub fn of(durations: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<_> = durations.collect();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        // The smallest that is no shorter than this share of all of them.
        let quantile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |duration| millis(*duration))
        };
        Some(Self { count: sorted.len(), p50: quantile(50), p95: quantile(95), p99: quantile(99), max: millis(max) })
    }
}

/// A silence that began before the network was gone cannot end before it is back.
fn back_after(run: &Run) -> f64 {
    let gone = run.events.iter().map(|event| event.duration()).max().unwrap_or_default();
    millis(run.seen.longest_silence.saturating_sub(gone))
}

/// In Mbit/s.
fn rate(slices: &[u64], length: Duration) -> f64 {
    let length = length.max(SLICE).as_secs_f64();
    slices.iter().sum::<u64>() as f64 * 8.0 / length / 1e6
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let latency = Latency::of((1..=200).map(Duration::from_millis)).unwrap();
        assert_eq!((latency.p50, latency.p95, latency.p99, latency.max), (100.0, 190.0, 198.0, 200.0));
        let one = Latency::of(std::iter::once(Duration::from_millis(7))).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Latency::of(std::iter::empty()), None);
    }

    #[test]
    fn a_rate_is_that_of_the_whole_window() {
        assert!((rate(&[125_000, 0, 125_000], Duration::from_secs(2)) - 1.0).abs() < 1e-9);
    }
}
