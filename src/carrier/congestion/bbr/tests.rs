//! The controller on a path of one queue, in simulated time: the example tests of the draft's appendix and some more.
//! `netem-tests` tries it with quinn's connections on worse paths.

use std::collections::VecDeque;

use super::loss::{LossRate, OwnLoss};
use super::*;

const MSS: u64 = 1200;

/// Ten packets per millisecond.
const BANDWIDTH: f64 = 12_000_000.0;

const RTT: Duration = Duration::from_millis(40);

/// Bytes that fill the path.
const BDP: u64 = 480_000;

/// A sender that always has something to send, and the path before it.
struct Sender {
    bbr: Bbr,
    now: Instant,
    start: Instant,
    in_flight: u64,
    next_packet: u64,
    /// When each packet that is under way will be acknowledged, or missed, and when it was sent.
    under_way: VecDeque<(Instant, u64, Instant, bool)>,
    link_is_free: Instant,
    /// Bytes per second that the path delivers.
    bandwidth: f64,
    /// The round trip without the queue.
    round_trip: Duration,
    /// Every so many packets one is lost; 0: none.
    loses_one_in: u64,
}

impl Sender {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            bbr: Bbr::new(start, MSS, SmallRng::seed_from_u64(1)),
            now: start,
            start,
            in_flight: 0,
            next_packet: 0,
            under_way: VecDeque::new(),
            link_is_free: start,
            bandwidth: BANDWIDTH,
            round_trip: RTT,
            loses_one_in: 0,
        }
    }

    /// Sends what may be sent and takes the next acknowledgement.
    fn step(&mut self) {
        while self.in_flight + MSS < self.bbr.window() {
            self.link_is_free = self.link_is_free.max(self.now) + Duration::from_secs_f64(MSS as f64 / self.bandwidth);
            let is_lost = self.loses_one_in > 0 && self.next_packet.is_multiple_of(self.loses_one_in);
            self.under_way.push_back((self.link_is_free + self.round_trip, self.next_packet, self.now, is_lost));
            self.bbr.on_sent(self.now, MSS, self.next_packet);
            self.in_flight += MSS;
            self.next_packet += 1;
        }
        let (due, packet, sent, is_lost) = self.under_way.pop_front().expect("something is under way");
        self.now = due;
        self.in_flight -= MSS;
        if is_lost {
            self.bbr.on_congestion_event(due, sent, false, MSS);
        } else {
            self.bbr.on_packet_acked(due, sent, MSS, false, self.round_trip);
            self.bbr.on_end_acks(due, self.in_flight, false, Some(packet));
        }
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Bbr) -> bool) {
        let deadline = self.now + Duration::from_secs(30);
        while !done(&self.bbr) {
            assert!(self.now < deadline, "{what} took more than 30 s of simulated time");
            self.step();
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn run_until_state(&mut self, state: State) {
        self.run_until(&format!("{state:?}"), |bbr| bbr.state == state);
    }
}

fn is_about(value: f64, expected: f64) -> bool {
    (value / expected - 1.0).abs() < 0.02
}

#[test]
fn startup_ends_when_the_path_is_full_and_its_bandwidth_known() {
    let mut sender = Sender::new();
    sender.run_until("Startup", |bbr| bbr.state != State::Startup);
    let bw = sender.bbr.model.bw().unwrap();
    assert!(is_about(bw, BANDWIDTH), "{bw}");
    let took = sender.now - sender.start;
    assert!(took < 16 * RTT, "{took:?}");
    assert!(sender.in_flight < 2 * BDP + 100 * MSS, "{}", sender.in_flight);
}

#[test]
fn the_queue_made_in_startup_is_drained() {
    let mut sender = Sender::new();
    sender.run_until_state(State::Drain);
    let entered = sender.now;
    sender.run_until("Drain", |bbr| bbr.state != State::Drain);
    assert!(sender.now - entered < 4 * RTT);
    assert!(sender.in_flight <= BDP + 20 * MSS, "{}", sender.in_flight);
}

#[test]
fn probing_goes_through_its_phases_in_order() {
    let mut sender = Sender::new();
    for state in [
        State::ProbeBwDown,
        State::ProbeBwCruise,
        State::ProbeBwRefill,
        State::ProbeBwUp,
        State::ProbeBwDown,
        State::ProbeBwCruise,
    ] {
        sender.run_until_state(state);
    }
}

#[test]
fn cruising_fills_the_path_and_no_queue() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    sender.run_for(RTT * 2);
    assert_eq!(sender.bbr.state, State::ProbeBwCruise);
    assert!(is_about(sender.in_flight as f64, BDP as f64 * 0.99), "{}", sender.in_flight);
}

#[test]
fn a_path_shorter_than_the_turns_of_the_programs_at_its_ends_may_hold_a_millisecond() {
    let mut sender = Sender::new();
    sender.bandwidth = 100.0 * BANDWIDTH;
    sender.round_trip = Duration::from_micros(50);
    sender.run_until_state(State::ProbeBwCruise);
    let (cwnd, millisecond) = (sender.bbr.control.cwnd() as f64, sender.bandwidth / 1000.0);
    assert!((0.9 * millisecond..2.0 * millisecond).contains(&cwnd), "{cwnd}");
}

#[test]
fn bandwidth_that_becomes_free_is_found() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    sender.bandwidth = 2.0 * BANDWIDTH;
    sender.run_for(Duration::from_secs(10));
    let bw = sender.bbr.model.bw().unwrap();
    assert!(bw > 1.8 * BANDWIDTH, "{bw}");
}

#[test]
fn bandwidth_that_is_gone_is_forgotten() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    sender.bandwidth = BANDWIDTH / 2.0;
    sender.run_for(Duration::from_secs(12));
    let bw = sender.bbr.model.bw().unwrap();
    assert!(bw < 0.6 * BANDWIDTH, "{bw}");
}

#[test]
fn the_round_trip_time_is_measured_again_after_ten_seconds_with_half_of_the_path_empty() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeRtt);
    assert!(sender.now - sender.start > Duration::from_secs(10));
    sender.run_for(RTT * 2);
    assert!(sender.in_flight <= BDP / 2 + MSS, "{}", sender.in_flight);
    let window_before = sender.bbr.control.cwnd();
    sender.run_until_state(State::ProbeBwCruise);
    assert!(sender.bbr.control.cwnd() > window_before);
    assert!(sender.bbr.model.min_rtt().unwrap() < RTT + Duration::from_millis(1));
    sender.run_for(RTT * 4);
    assert!(
        sender.in_flight < BDP * 9 / 8 + 20 * MSS,
        "what was not sent meanwhile was sent later: {}",
        sender.in_flight
    );
}

#[test]
fn a_path_that_loses_one_packet_in_a_hundred_is_still_filled() {
    let mut sender = Sender::new();
    sender.loses_one_in = 100;
    sender.run_for(Duration::from_secs(5));
    let packets = sender.next_packet;
    sender.run_for(Duration::from_secs(20));
    let rate = (sender.next_packet - packets) as f64 * MSS as f64 / 20.0;
    assert!(rate > 0.75 * BANDWIDTH, "{rate}");
}

#[test]
fn a_path_that_loses_one_packet_in_twenty_by_itself_is_filled_in_the_end() {
    let mut sender = Sender::new();
    sender.loses_one_in = 20;
    sender.run_for(Duration::from_secs(15));
    assert!(is_about(sender.bbr.loss_threshold(), 0.05), "{}", sender.bbr.loss_threshold());
    let packets = sender.next_packet;
    sender.run_for(Duration::from_secs(10));
    let rate = (sender.next_packet - packets) as f64 * MSS as f64 / 10.0;
    assert!(rate > 0.75 * BANDWIDTH, "{rate}");
}

#[test]
fn loss_on_a_clean_path_is_never_taken_for_its_own() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    sender.run_for(Duration::from_secs(1));
    assert_eq!(sender.bbr.loss_threshold(), 0.02);
}

#[test]
fn loss_far_above_the_threshold_bounds_what_is_in_flight() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwUp);
    sender.loses_one_in = 5;
    sender.run_until("a bound", |bbr| bbr.model.inflight_longterm.is_some());
    assert_ne!(sender.bbr.state, State::ProbeBwUp);
    let bound = sender.bbr.model.inflight_longterm.unwrap();
    assert!((BDP / 2..BDP * 3 / 2).contains(&bound), "{bound}");
}

#[test]
fn loss_is_too_high_only_when_chance_does_not_explain_it() {
    let is_too_high =
        |lost, packets| LossRate { lost: lost * MSS, in_flight: packets * MSS }.is_too_high(&OwnLoss::default(), MSS);
    for (most, packets) in [(1, 20), (4, 100), (28, 1_000), (2_080, 100_000)] {
        assert!(!is_too_high(most, packets), "{most} of {packets}");
        assert!(is_too_high(most + most.div_ceil(20), packets), "more than {most} of {packets}");
    }
}

#[test]
fn an_application_that_pauses_may_send_a_path_full_afterwards() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    let (due, packet, sent, _) = sender.under_way.pop_back().unwrap();
    sender.bbr.on_packet_acked(due, sent, MSS, true, RTT);
    sender.bbr.on_end_acks(due, 0, true, Some(packet));
    let window = sender.bbr.window();
    assert!((BDP * 9 / 10..BDP * 11 / 10).contains(&window), "{window}");
}

#[test]
fn persistent_congestion_leaves_four_packets() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    let &(due, _, sent, _) = sender.under_way.back().unwrap();
    sender.bbr.on_congestion_event(due, sent, true, sender.in_flight);
    assert_eq!(sender.bbr.control.cwnd(), 4 * MSS);
    assert_eq!(sender.bbr.window(), 4 * MSS);
}

#[test]
fn a_mark_counts_as_loss_but_takes_nothing_out_of_flight() {
    let mut sender = Sender::new();
    sender.run_until_state(State::ProbeBwCruise);
    let in_flight = sender.bbr.delivery.in_flight();
    let &(due, _, sent, _) = sender.under_way.back().unwrap();
    sender.bbr.on_congestion_event(due, sent, false, 0);
    assert_eq!(sender.bbr.delivery.in_flight(), in_flight);
    assert!(sender.bbr.model.loss_events_in_round > 0);
}

#[test]
fn calls_that_make_no_sense_do_no_harm() {
    let start = Instant::now();
    let mut bbr = Bbr::new(start, MSS, SmallRng::seed_from_u64(1));
    let later = start + RTT;
    bbr.on_congestion_event(start, start, true, 10 * MSS);
    bbr.on_end_acks(start, 0, true, None);
    bbr.on_packet_acked(start, later, MSS, false, Duration::ZERO);
    bbr.on_end_acks(start, u64::MAX / 2, false, Some(u64::MAX));
    bbr.on_sent(start, MSS, 0);
    bbr.on_packet_acked(start, start, MSS, false, Duration::ZERO);
    bbr.on_end_acks(start, 0, false, Some(0));
    assert!(bbr.window() >= 4 * MSS);
}
