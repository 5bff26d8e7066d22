//! Runs the target that the variable QTUNNEL_FUZZ_TARGET names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets.rs"]
mod targets;

static CHOSEN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("QTUNNEL_FUZZ_TARGET").expect("QTUNNEL_FUZZ_TARGET names a target of fuzz/targets.rs");
    targets::TARGETS.iter().find(|target| target.name == name).expect("a target of fuzz/targets.rs").run
});

fuzz_target!(|data: &[u8]| CHOSEN(data));
