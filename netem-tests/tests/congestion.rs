//! What the congestion controllers do on bad networks, in simulated time. Runs are the same on every machine, so the
//! margins are of what may change with the implementation, not of chance.

use std::time::Duration;

use netem_tests::link::{Direction, Loss, PathSettings, QueueLimit};
use netem_tests::profile::{Profile, Profiles};
use netem_tests::simulation::{CongestionControl, Flow, FlowReport, Scenario};
use netem_tests::units::{Probability, Rate};

/// Flows that start together; measured is what comes after `warm_up` seconds.
fn run(profile: &str, controls: &[CongestionControl], warm_up: u64, seconds: u64) -> Vec<FlowReport> {
    let profiles = Profiles::built_in().unwrap();
    run_on(profiles.get(profile).unwrap(), controls, warm_up, seconds)
}

fn run_on(profile: &Profile, controls: &[CongestionControl], warm_up: u64, seconds: u64) -> Vec<FlowReport> {
    run_with(1, profile, controls, warm_up, seconds)
}

fn run_with(
    seed: u64,
    profile: &Profile,
    controls: &[CongestionControl],
    warm_up: u64,
    seconds: u64,
) -> Vec<FlowReport> {
    let flows: Vec<_> = controls.iter().map(|&control| Flow { control, start: Duration::ZERO }).collect();
    let scenario = Scenario {
        profile,
        direction: Direction::Up,
        flows: &flows,
        measure_from: Duration::from_secs(warm_up),
        end: Duration::from_secs(seconds),
        seed,
    };
    scenario.run().unwrap()
}

fn alone(profile: &str, control: CongestionControl, seconds: u64) -> FlowReport {
    run(profile, &[control], 0, seconds).remove(0)
}

fn alone_on(profile: &Profile, control: CongestionControl, seconds: u64) -> FlowReport {
    run_on(profile, &[control], 0, seconds).remove(0)
}

/// What BBR carries on a path with each of five seeds, in bits per second: the least of it first.
fn with_five_seeds(profile: &Profile, seconds: u64) -> Vec<f64> {
    let goodput = |seed| run_with(seed, profile, &[CongestionControl::Bbr], 0, seconds).remove(0).goodput;
    let mut goodputs: Vec<_> = (1..=5).map(goodput).collect();
    goodputs.sort_unstable_by(f64::total_cmp);
    goodputs
}

/// A path of 50 ms that loses packets by itself.
fn lossy(megabits: u64, loss: f64) -> Profile {
    let mut profile = queued(megabits, 5 * megabits as usize);
    profile.up.loss = Loss::Independent(Probability::new(loss).unwrap());
    profile
}

/// A path of 50 ms with such a rate and room for so many packets to wait.
fn queued(megabits: u64, packets: usize) -> Profile {
    let profiles = Profiles::built_in().unwrap();
    let path = PathSettings {
        rate: Rate::new(megabits * 1_000_000),
        queue: QueueLimit { packets, ..QueueLimit::default() },
        delay: Duration::from_millis(25),
        ..PathSettings::default()
    };
    Profile { up: path.clone(), down: path, ..profiles.get("clean").unwrap().clone() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let report = || alone("lossy-5", CongestionControl::Bbr, 3);
    assert_eq!(report(), report());
}

#[test]
fn bbr_uses_a_third_of_a_path_that_loses_two_percent_and_cubic_next_to_nothing() {
    let bbr = alone("lossy-2", CongestionControl::Bbr, 15).goodput;
    let cubic = alone("lossy-2", CongestionControl::Cubic, 15).goodput;
    assert!(bbr > 100e6, "{bbr}");
    assert!(cubic < 10e6, "{cubic}");
}

#[test]
fn bbr_fills_most_of_a_path_that_loses_two_percent_and_acknowledges_unevenly() {
    let mut profile = lossy(60, 0.02);
    for path in [&mut profile.up, &mut profile.down] {
        path.jitter = Duration::from_millis(8);
    }
    let goodputs = with_five_seeds(&profile, 12);
    assert!(goodputs[0] > 0.6 * 60e6, "{goodputs:?}");
}

#[test]
fn bbr_fills_most_of_a_wifi_whose_delays_vary_by_more_than_the_shortest_round_trip() {
    let profiles = Profiles::built_in().unwrap();
    let goodputs = with_five_seeds(profiles.get("wifi-1").unwrap(), 10);
    assert!(goodputs[0] > 65e6, "{goodputs:?}");
}

#[test]
fn bbr_fills_most_of_a_path_that_loses_five_percent_whatever_is_sent() {
    let goodputs = with_five_seeds(&lossy(60, 0.05), 15);
    assert!(goodputs[0] > 0.2 * 60e6, "{goodputs:?}");
    assert!(goodputs[2] > 0.6 * 60e6, "half of them: {goodputs:?}");
}

#[test]
fn a_cubic_flow_keeps_its_share_beside_bbr_where_the_queue_is_too_short_to_show() {
    for seed in 1..=3 {
        let flows = [CongestionControl::Bbr, CongestionControl::Cubic];
        let [bbr, cubic] = run_with(seed, &queued(60, 25), &flows, 15, 45).try_into().unwrap();
        assert!(cubic.goodput > 0.7 * bbr.goodput, "{bbr:?} {cubic:?}");
        assert!(bbr.goodput > 0.2 * cubic.goodput, "{bbr:?} {cubic:?}");
    }
}

#[test]
fn bbr_fills_a_clean_path_without_a_queue() {
    let report = run("wan-50ms", &[CongestionControl::Bbr], 2, 15).remove(0);
    assert!(report.goodput > 0.93 * 300e6, "{report:?}");
    assert!(report.rtt_p50 < Duration::from_millis(60), "{report:?}");
    assert!(report.retransmitted < 0.01, "{report:?}");
}

#[test]
fn bbr_keeps_a_deep_queue_short_where_cubic_fills_it() {
    let bbr = alone("bufferbloat-10mbit", CongestionControl::Bbr, 20);
    let cubic = alone("bufferbloat-10mbit", CongestionControl::Cubic, 20);
    assert!(bbr.goodput > 0.9 * cubic.goodput, "{bbr:?} {cubic:?}");
    assert!(bbr.rtt_p99 < cubic.rtt_p50 / 4, "{bbr:?} {cubic:?}");
}

#[test]
fn a_cubic_flow_beside_bbr_keeps_a_share_of_the_path() {
    let [bbr, cubic] = run("wan-50ms", &[CongestionControl::Bbr, CongestionControl::Cubic], 20, 60).try_into().unwrap();
    assert!(cubic.goodput > 0.2 * bbr.goodput, "{bbr:?} {cubic:?}");
    assert!(bbr.goodput > 0.2 * cubic.goodput, "{bbr:?} {cubic:?}");
}

#[test]
fn two_bbr_flows_share_a_path() {
    let [one, other] = run("wan-50ms", &[CongestionControl::Bbr; 2], 10, 30).try_into().unwrap();
    assert!(one.goodput < 2.0 * other.goodput && other.goodput < 2.0 * one.goodput, "{one:?} {other:?}");
}

#[test]
fn slow_start_without_a_limit_can_cost_a_connection_its_life() {
    // quinn keeps at most 1,024 pieces of a stream apart and ends the connection when there are more.
    let report = alone("wan-50ms", CongestionControl::QuinnCubic, 5);
    assert!(report.broken.is_some_and(|reason| reason.contains("too many gaps")));
}

#[test]
fn no_queue_costs_a_connection_its_life_and_a_gigabit_is_reached_all_the_same() {
    for (megabits, queue) in [(300, 125), (300, 1250), (1000, 50), (1000, 420), (1000, 4200)] {
        for control in [CongestionControl::Cubic, CongestionControl::Bbr] {
            let report = alone_on(&queued(megabits, queue), control, 4);
            assert_eq!(report.broken, None, "{megabits} Mbit/s, a queue of {queue} packets: {report:?}");
            // Cubic needs a queue to fill a path, and 50 packets are a hundredth of what this one holds.
            let share = if (megabits, queue, control) == (1000, 50, CongestionControl::Cubic) { 0.2 } else { 0.4 };
            assert!(
                report.goodput > share * 1e6 * megabits as f64,
                "{megabits} Mbit/s, a queue of {queue} packets: {report:?}"
            );
        }
    }
}

#[test]
fn a_path_that_loses_packets_by_itself_costs_no_connection_its_life() {
    for loss in [0.001, 0.01, 0.05] {
        for control in [CongestionControl::Cubic, CongestionControl::Bbr] {
            let mut profile = queued(1000, 2000);
            profile.up.loss = Loss::Independent(Probability::new(loss).unwrap());
            let report = alone_on(&profile, control, 3);
            assert_eq!(report.broken, None, "{loss}: {report:?}");
        }
    }
}
