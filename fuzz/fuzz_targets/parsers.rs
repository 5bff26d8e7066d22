//! Runs the target that the variable QTUNNEL_FUZZ_TARGET names, from its seeds on.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets.rs"]
mod targets;

use targets::Target;

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("QTUNNEL_FUZZ_TARGET").expect("QTUNNEL_FUZZ_TARGET names a target of fuzz/targets.rs");
    targets::TARGETS.iter().find(|target| target.name == name).expect("a target of fuzz/targets.rs")
});

/// Puts the seeds where libFuzzer looks for inputs to begin with, which it does after this.
fn plant_seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(CHOSEN.name);
    fs::create_dir_all(&folder).expect("a folder for inputs");
    for (number, seed) in CHOSEN.seeds().iter().enumerate() {
        fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed");
    }
}

fuzz_target!(init: plant_seeds(), |data: &[u8]| (CHOSEN.run)(data));
