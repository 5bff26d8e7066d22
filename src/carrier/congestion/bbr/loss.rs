//! How much loss is a sign of congestion.

use super::Bbr;
use super::delivery::{Loss, Sample};
use super::probe_bw::AckPhase;
use super::state::State;

/// `BBR.LossThresh`: loss that is no sign of congestion on any path.
const LOSS_THRESHOLD: f64 = 0.02;

/// The most that a path is believed to lose by itself.
const MAX_OWN_LOSS: f64 = 0.1;

/// What a path loses by itself is judged after so many packets.
const PACKETS_TO_JUDGE_BY: f64 = 64.0;

/// Of more packets than this the older ones count half.
const PACKETS_REMEMBERED: u64 = 4096;

/// What was lost of what was in flight.
///
/// The draft compares the share of the two with 2%. On a path that loses 2% by itself that is tossing a coin in every
/// round, and of a few packets one lost by chance is more than 2%. So loss is too high where it exceeds the threshold by
/// more than two standard deviations of a binomial distribution, which chance does once in forty times: of 25 packets that
/// is 2, of 100 it is 5, of 1,000 it is 29; of many it is the draft's 2%. In simulations at 2% loss that makes 225 of 300
/// Mbit/s out of 132, and hardly changes what is left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LossRate {
    pub(super) lost: u64,
    pub(super) in_flight: u64,
}

/// What the path loses by itself, however little is sent.
///
/// A path that loses 5% by itself would never get more than a few packets, as any probe finds more than 2%. But such loss
/// is told from that of a queue which overflows: it is there while no more is sent than the path delivers and the round
/// trip time shows no queue. So only such rounds are counted, and loss is too high where it exceeds what they lost. Where a
/// queue is too short to show in the round trip time, flows that share it lose little except while one of them probes: on
/// 60 Mbit/s with a queue of 25 packets Cubic keeps 33 to 37 Mbit/s beside BBR, with this and without (three seeds).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OwnLoss {
    delivered: u64,
    lost: u64,
    delivered_before: u64,
    lost_before: u64,
}

impl LossRate {
    /// Whether this is more than chance makes of what any path may lose, and of what this one loses by itself.
    pub(super) fn is_too_high(self, own: &OwnLoss, mss: u64) -> bool {
        let mss = mss as f64;
        let (lost, packets) = (self.lost as f64 / mss, self.in_flight as f64 / mss);
        // What is expected after some packets is itself uncertain by what chance makes of those.
        let uncertainty = packets * packets / own.packets(mss);
        lost > most_lost(LOSS_THRESHOLD, packets, 0.0)
            && own.share(mss).is_none_or(|share| lost > most_lost(share, packets, uncertainty))
    }
}

impl Sample {
    pub(super) fn loss_rate(&self) -> LossRate {
        LossRate { lost: self.lost, in_flight: self.tx_in_flight }
    }
}

impl Loss {
    pub(super) fn rate(&self) -> LossRate {
        LossRate { lost: self.lost, in_flight: self.tx_in_flight }
    }

    /// `InflightAtLoss`: with how much in flight the loss crossed the threshold.
    pub(super) fn inflight_at_loss(&self, threshold: f64) -> u64 {
        let inflight_before = self.tx_in_flight.saturating_sub(self.newly_lost) as f64;
        let lost_before = self.lost.saturating_sub(self.newly_lost) as f64;
        let lost_prefix = (threshold * inflight_before - lost_before) / (1.0 - threshold);
        (inflight_before + lost_prefix.max(0.0)) as u64
    }
}

impl OwnLoss {
    /// What may be lost without being a sign of congestion, chance aside.
    pub(super) fn threshold(&self, mss: u64) -> f64 {
        self.share(mss as f64).map_or(LOSS_THRESHOLD, |share| share.max(LOSS_THRESHOLD))
    }

    /// The share of packets that is lost, once there were enough to judge by.
    fn share(&self, mss: f64) -> Option<f64> {
        let packets = self.packets(mss);
        (packets >= PACKETS_TO_JUDGE_BY).then(|| (self.lost as f64 / mss / packets).min(MAX_OWN_LOSS))
    }

    /// The packets that were counted.
    fn packets(&self, mss: f64) -> f64 {
        (self.delivered + self.lost) as f64 / mss
    }

    /// Takes the totals at the end of a round, and counts the round if it `tells`.
    fn on_round_end(&mut self, delivered: u64, lost: u64, tells: bool, mss: u64) {
        if tells {
            self.delivered += delivered - self.delivered_before;
            self.lost += lost - self.lost_before;
            if self.delivered > PACKETS_REMEMBERED * mss {
                self.delivered /= 2;
                self.lost /= 2;
            }
        }
        self.delivered_before = delivered;
        self.lost_before = lost;
    }
}

impl Bbr {
    /// `IsInflightTooHigh`.
    pub(super) fn is_too_high(&self, loss: LossRate) -> bool {
        loss.is_too_high(&self.model.own_loss, self.control.mss())
    }

    /// What may be lost without being a sign of congestion.
    pub(super) fn loss_threshold(&self) -> f64 {
        self.model.own_loss.threshold(self.control.mss())
    }

    /// Counts the round that has ended, if it tells what the path loses by itself.
    pub(super) fn update_own_loss(&mut self, sample: &Sample) {
        let tells = self.cycle.ack_phase == AckPhase::Init
            && matches!(self.state, State::Startup | State::ProbeBwDown | State::ProbeBwCruise)
            && !self.has_queue()
            && (self.state != State::Startup || !self.is_too_high(sample.loss_rate()));
        let (delivered, lost) = (self.delivery.delivered(), self.delivery.lost());
        self.model.own_loss.on_round_end(delivered, lost, tells, self.control.mss());
    }
}

/// How many of `packets` chance may take if `share` is lost: two standard deviations more than the mean. `uncertainty` is
/// what is added to the number of packets in the variance.
fn most_lost(share: f64, packets: f64, uncertainty: f64) -> f64 {
    const DEVIATIONS: f64 = 2.0;
    packets * share + DEVIATIONS * (share * (1.0 - share) * (packets + uncertainty)).sqrt()
}
