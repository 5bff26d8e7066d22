//! Properties of the model, in simulated time.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// A packet handed in: after how many microseconds, how long.
type Arrival = (u64, usize);

/// A packet that came out.
#[derive(Debug, Clone, PartialEq)]
struct Delivery {
    at: Duration,
    packet: Packet<usize>,
}

fn any_probability() -> impl Strategy<Value = Probability> {
    (0.0..=0.5f64).prop_map(probability)
}

fn any_loss() -> impl Strategy<Value = Loss> {
    let bursts = (any_probability(), any_probability(), any_probability(), any_probability())
        .prop_map(|(enter, leave, loss, loss_between)| Loss::Bursts(Bursts { enter, leave, loss, loss_between }));
    prop_oneof![any_probability().prop_map(Loss::Independent), bursts]
}

prop_compose! {
    fn any_settings()(
        corrupt in any_probability(),
        loss in any_loss(),
        duplicate in any_probability(),
        queue in (0..200_000usize, 0..200usize).prop_map(|(bytes, packets)| QueueLimit { bytes, packets }),
        rate in proptest::option::of((1_000..1_000_000_000u64).prop_map(|bits| Rate::new(bits).unwrap())),
        delay in (0..100_000u64).prop_map(Duration::from_micros),
        jitter_share in 0..=100u32,
        reorder: bool,
    ) -> PathSettings {
        PathSettings { corrupt, loss, duplicate, queue, rate, delay, jitter: delay * jitter_share / 100, reorder }
    }
}

fn any_arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    proptest::collection::vec((0..2_000u64, 0..1_500usize), 0..300)
}

fn probability(share: f64) -> Probability {
    Probability::new(share).unwrap()
}

/// Packet `i` carries `i` as its tag and bytes made of it.
fn packet(index: usize, length: usize) -> Packet<usize> {
    Packet { bytes: vec![index as u8; length], wire_length: length, tag: index }
}

/// Runs a link as a perfect backend would: every packet is taken at the moment it is due.
fn run(settings: &PathSettings, seed: u64, arrivals: &[Arrival]) -> (Vec<Delivery>, Counters) {
    let start = Instant::now();
    let mut path = Path::new(settings, seed, Direction::Up);
    let mut deliveries = Vec::new();
    let mut now = start;
    for (index, (wait, length)) in arrivals.iter().enumerate() {
        let next = now + Duration::from_micros(*wait);
        take_until(&mut path, start, Some(next), &mut deliveries);
        path.handle_packet(next, packet(index, *length));
        now = next;
    }
    take_until(&mut path, start, None, &mut deliveries);
    (deliveries, path.counters())
}

fn take_until(path: &mut Path<usize>, start: Instant, end: Option<Instant>, deliveries: &mut Vec<Delivery>) {
    let mut now = start;
    loop {
        match path.poll_output(now) {
            Output::Packet { due, packet } => deliveries.push(Delivery { at: due - start, packet }),
            Output::Deadline(deadline) if end.is_none_or(|end| deadline <= end) => now = deadline,
            Output::Deadline(_) | Output::Idle => return,
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_invented_and_everything_is_accounted_for(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(),
    ) {
        let (deliveries, counters) = run(&settings, seed, &arrivals);
        prop_assert_eq!(counters.offered as usize, arrivals.len());
        prop_assert_eq!(counters.delivered as usize, deliveries.len());
        prop_assert_eq!(
            counters.offered + counters.duplicated,
            counters.lost + counters.blacked_out + counters.queue_dropped + counters.delivered
        );
        let mut inverted_bits = 0;
        let mut seen = HashSet::new();
        let mut copies = 0;
        for Delivery { packet: delivered, .. } in &deliveries {
            let sent = packet(delivered.tag, arrivals[delivered.tag].1);
            prop_assert_eq!(delivered.bytes.len(), sent.bytes.len());
            let differing: u32 = delivered.bytes.iter().zip(&sent.bytes).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert!(differing <= 1);
            if seen.insert(delivered.tag) { inverted_bits += u64::from(differing) } else { copies += 1 }
        }
        prop_assert!(inverted_bits <= counters.corrupted);
        prop_assert!(copies <= counters.duplicated);
    }

    #[test]
    fn the_rate_is_not_exceeded_over_any_window(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(), bits in 1_000..1_000_000_000u64,
    ) {
        let rate = Rate::new(bits).unwrap();
        let settings = PathSettings { rate: Some(rate), jitter: Duration::ZERO, ..settings };
        let (deliveries, _) = run(&settings, seed, &arrivals);
        // Each packet's last bit arrives at `at`, so what arrives after `first` until `last` was sent in that window.
        for (index, first) in deliveries.iter().enumerate() {
            let mut bytes = 0;
            for last in &deliveries[index + 1..] {
                bytes += last.packet.wire_length;
                prop_assert!(rate.time_to_send(bytes) <= last.at - first.at + Duration::from_nanos(1));
            }
        }
    }

    #[test]
    fn order_is_kept_unless_reordering_is_asked_for(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(),
    ) {
        let (deliveries, _) = run(&PathSettings { reorder: false, ..settings }, seed, &arrivals);
        prop_assert!(deliveries.windows(2).all(|pair| pair[0].packet.tag <= pair[1].packet.tag));
    }

    #[test]
    fn a_packet_arrives_within_its_delay_its_jitter_and_its_wait_in_the_queue(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(),
    ) {
        let settings = PathSettings { rate: None, reorder: true, ..settings };
        let (deliveries, _) = run(&settings, seed, &arrivals);
        let mut entered = Duration::ZERO;
        let entries: Vec<_> = arrivals.iter().map(|(wait, _)| { entered += Duration::from_micros(*wait); entered }).collect();
        for delivery in &deliveries {
            let travelled = delivery.at - entries[delivery.packet.tag];
            prop_assert!(travelled + settings.jitter >= settings.delay);
            prop_assert!(travelled <= settings.delay + settings.jitter);
        }
    }

    #[test]
    fn the_queue_never_holds_more_than_its_limits(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(), bits in 1_000..100_000_000u64,
    ) {
        let rate = Rate::new(bits).unwrap();
        let settings =
            PathSettings { rate: Some(rate), jitter: Duration::ZERO, delay: Duration::ZERO, ..settings };
        let (deliveries, _) = run(&settings, seed, &arrivals);
        let mut entered = Duration::ZERO;
        let entries: Vec<_> = arrivals.iter().map(|(wait, _)| { entered += Duration::from_micros(*wait); entered }).collect();
        for (index, last) in deliveries.iter().enumerate() {
            // What was in the queue when this packet came: those that left later than it came, and before it.
            let came = entries[last.packet.tag];
            let ahead: Vec<_> = deliveries[..index].iter().filter(|other| other.at > came).collect();
            let waiting = ahead.get(1..).unwrap_or_default();
            let waiting_bytes: usize = waiting.iter().map(|other| other.packet.wire_length).sum();
            if !ahead.is_empty() {
                prop_assert!(waiting.len() < settings.queue.packets);
                prop_assert!(waiting_bytes + last.packet.wire_length <= settings.queue.bytes);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run(settings in any_settings(), seed: u64, arrivals in any_arrivals()) {
        prop_assert_eq!(run(&settings, seed, &arrivals), run(&settings, seed, &arrivals));
    }

    #[test]
    fn asking_late_changes_nothing_but_the_time_of_asking(
        settings in any_settings(), seed: u64, arrivals in any_arrivals(),
    ) {
        let start = Instant::now();
        let mut path = Path::new(&settings, seed, Direction::Up);
        let mut now = start;
        for (index, (wait, length)) in arrivals.iter().enumerate() {
            now += Duration::from_micros(*wait);
            path.handle_packet(now, packet(index, *length));
        }
        let mut late = Vec::new();
        take_until(&mut path, start, None, &mut late);
        prop_assert_eq!(late, run(&settings, seed, &arrivals).0);
    }
}

/// Measures a loss over many packets; it may be off by four standard deviations, which chance exceeds once in 16,000
/// runs. `widening` is what correlated packets add to the binomial variance.
fn assert_measured_loss(loss: Loss, seed: u64, widening: f64) {
    let packets = 100_000;
    let settings = PathSettings { loss, ..PathSettings::default() };
    let (_, counters) = run(&settings, seed, &vec![(1, 100); packets]);
    let expected = loss.long_run();
    let measured = counters.lost as f64 / packets as f64;
    let deviation = (expected * (1.0 - expected) / packets as f64 * widening).sqrt();
    assert!((measured - expected).abs() <= 4.0 * deviation, "{measured} lost, {expected} asked for, seed {seed}");
}

#[test]
fn independent_loss_is_within_the_binomial_interval() {
    for (seed, share) in [0.001, 0.01, 0.02, 0.05, 0.5].into_iter().enumerate() {
        assert_measured_loss(Loss::Independent(probability(share)), seed as u64, 1.0);
    }
}

#[test]
fn loss_in_bursts_has_the_long_run_share_and_burst_length_asked_for() {
    let bursts = Bursts {
        enter: probability(0.01),
        leave: probability(0.2),
        loss: probability(1.0),
        loss_between: Probability::NEVER,
    };
    let loss = Loss::Bursts(bursts);
    assert!((loss.long_run() - 0.01 / 0.21).abs() < 1e-9);
    // Neighbours are correlated by 1 - enter - leave = 0.79, which widens the variance by (1 + 0.79) / (1 - 0.79).
    assert_measured_loss(loss, 7, 8.6);

    let settings = PathSettings { loss, ..PathSettings::default() };
    let packets = 100_000;
    let (deliveries, counters) = run(&settings, 7, &vec![(1, 100); packets]);
    let gaps = deliveries.windows(2).filter(|pair| pair[1].packet.tag - pair[0].packet.tag > 1).count();
    let mean_burst = counters.lost as f64 / gaps as f64;
    assert!((4.5..5.5).contains(&mean_burst), "bursts of {mean_burst} packets, 5 asked for");
}

#[test]
fn a_blackout_takes_what_is_sent_during_it_and_nothing_else() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let settings = PathSettings { delay: Duration::from_millis(30), ..PathSettings::default() };
    let mut path = Path::new(&settings, 1, Direction::Down);
    path.black_out(at(10), at(20));
    for (index, millis) in [9, 10, 19, 20].into_iter().enumerate() {
        path.handle_packet(at(millis), packet(index, 100));
    }
    let mut deliveries = Vec::new();
    take_until(&mut path, start, None, &mut deliveries);
    assert_eq!(deliveries.iter().map(|delivery| delivery.packet.tag).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(path.counters().blacked_out, 2);
}

#[test]
fn turning_on_another_stage_does_not_change_which_packets_are_lost() {
    let lossy = PathSettings { loss: Loss::Independent(probability(0.1)), ..PathSettings::default() };
    let more = PathSettings { corrupt: probability(0.3), jitter: Duration::from_millis(1), ..lossy.clone() };
    let tags = |settings| -> Vec<_> {
        run(settings, 3, &vec![(10, 100); 1_000]).0.into_iter().map(|delivery| delivery.packet.tag).collect()
    };
    assert_eq!(tags(&lossy), tags(&more));
}

#[test]
fn the_two_directions_are_not_the_same_dice() {
    let settings = PathSettings { loss: Loss::Independent(probability(0.5)), ..PathSettings::default() };
    let lost = |direction| {
        let now = Instant::now();
        let mut path = Path::new(&settings, 9, direction);
        (0..64)
            .map(|index| {
                path.handle_packet(now, packet(index, 1));
                path.counters().lost
            })
            .collect::<Vec<_>>()
    };
    assert_ne!(lost(Direction::Up), lost(Direction::Down));
}

#[test]
fn a_full_queue_drops_the_newcomer() {
    let settings = PathSettings {
        rate: Rate::new(8_000),
        queue: QueueLimit { bytes: 250, packets: 10 },
        ..PathSettings::default()
    };
    // One packet of 100 bytes takes 100 ms: the first is being sent, two wait, the others find no room.
    let (deliveries, counters) = run(&settings, 1, &[(0, 100); 5]);
    assert_eq!(deliveries.iter().map(|delivery| delivery.at.as_millis()).collect::<Vec<_>>(), [100, 200, 300]);
    assert_eq!(counters.queue_dropped, 2);
}
