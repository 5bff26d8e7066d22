//! Every parser of bytes that come from the network, for a short time: random bytes, and good ones that were damaged.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use targets::{TARGETS, Target};

/// How long one parser is tried at most.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is tried.
const CASES: u32 = 4000;

#[test]
fn no_parser_panics_whatever_it_is_given() {
    for target in TARGETS {
        let begun = Instant::now();
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let tried = TestRunner::new(config).run(&input(target), |bytes| {
            // A slow machine tries less.
            if begun.elapsed() < PATIENCE {
                (target.run)(&bytes);
            }
            Ok(())
        });
        tried.unwrap_or_else(|error| panic!("{}: {error}", target.name));
    }
}

#[test]
fn the_seeds_pass() {
    for target in TARGETS {
        assert!(!target.seeds().is_empty(), "{} begins with nothing", target.name);
        target.seeds().iter().for_each(|seed| (target.run)(seed));
    }
}

/// A change of one byte: it is replaced, left out, or another one is put before it.
type Damage = (Index, u8, u8);

fn input(target: &'static Target) -> impl Strategy<Value = Vec<u8>> {
    let random = vec(any::<u8>(), 0..600);
    let damage = vec((any::<Index>(), 0_u8..3, any::<u8>()), 0..6);
    prop_oneof![
        random,
        (proptest::sample::select(target.seeds()), damage).prop_map(|(seed, damage)| damaged(seed, &damage))
    ]
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for (place, kind, byte) in damage {
        let place = place.index(bytes.len() + 1);
        match kind {
            0 if place < bytes.len() => bytes[place] = *byte,
            1 if place < bytes.len() => drop(bytes.remove(place)),
            _ => bytes.insert(place, *byte),
        }
    }
    bytes
}
