//! What the tests that use real time have in common.

use std::sync::{Mutex, MutexGuard, PoisonError};

use netem_tests::profile::{Profile, Profiles};

/// One test at a time: they measure time on cores they share.
pub fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn profile(name: &str) -> Profile {
    Profiles::built_in().unwrap().get(name).unwrap().clone()
}
