//! Loss by chance: independent, or in bursts.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::units::Probability;

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each with the same probability, whatever happened to the others (Bernoulli).
    Independent(Probability),
    /// In bursts (Gilbert-Elliott).
    Bursts(Bursts),
}

/// The Gilbert-Elliott model: the link is in a good or in a bad state, and changes between them packet by packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// From the good to the bad state, for each packet.
    pub enter: Probability,
    /// From the bad to the good state, for each packet: bursts last `1 / leave` packets on average.
    pub leave: Probability,
    /// Packets lost in the bad state.
    pub loss: Probability,
    /// Packets lost in the good state.
    pub loss_between: Probability,
}

impl Default for Loss {
    fn default() -> Self {
        Self::Independent(Probability::NEVER)
    }
}

impl Loss {
    /// The share of packets that is lost in the long run.
    pub fn long_run(&self) -> f64 {
        match self {
            Self::Independent(probability) => probability.share(),
            Self::Bursts(bursts) => {
                let (enter, leave) = (bursts.enter.share(), bursts.leave.share());
                let bad = if enter == 0.0 { 0.0 } else { enter / (enter + leave) };
                bad * bursts.loss.share() + (1.0 - bad) * bursts.loss_between.share()
            }
        }
    }
}

/// The loss stage: the model and where it is.
#[derive(Debug)]
pub(super) struct LossStage {
    loss: Loss,
    in_burst: bool,
    random: ChaCha8Rng,
}

impl LossStage {
    pub(super) fn new(loss: Loss, random: ChaCha8Rng) -> Self {
        Self { loss, in_burst: false, random }
    }

    pub(super) fn strikes(&mut self) -> bool {
        let probability = match self.loss {
            Loss::Independent(probability) => probability,
            Loss::Bursts(bursts) => {
                let change = if self.in_burst { bursts.leave } else { bursts.enter };
                self.in_burst ^= self.random.random_bool(change.share());
                if self.in_burst { bursts.loss } else { bursts.loss_between }
            }
        };
        self.random.random_bool(probability.share())
    }
}
