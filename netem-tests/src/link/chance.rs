//! Random decisions, each stage on a stream of its own.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Direction;
use crate::units::Probability;

/// A stage that draws random numbers. The number is part of the stream's name: it never changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Corruption = 0,
    Loss = 1,
    Duplication = 2,
    Delay = 3,
}

/// An event that strikes each packet with the same probability.
#[derive(Debug)]
pub(super) struct Chance {
    probability: Probability,
    random: ChaCha8Rng,
}

impl Chance {
    pub(super) fn new(probability: Probability, random: ChaCha8Rng) -> Self {
        Self { probability, random }
    }

    /// The stream of one stage: ChaCha has 2^64 independent ones for each seed.
    pub(super) fn random(seed: u64, direction: Direction, stage: Stage) -> ChaCha8Rng {
        let direction = match direction {
            Direction::Up => 0,
            Direction::Down => 1,
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(direction << 8 | stage as u64);
        random
    }

    pub(super) fn strikes(&mut self) -> bool {
        self.random.random_bool(self.probability.share())
    }

    pub(super) fn invert_one_bit(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let bit = self.random.random_range(0..bytes.len() * 8);
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }
}
