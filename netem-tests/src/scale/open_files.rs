//! Each connection is an open file.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What ten thousand connections need, at both ends, with what is behind them.
const WANTED: u64 = 1 << 17;

/// Lets this process, and those it starts, have many files open.
///
/// # Errors
/// When the system allows fewer than are needed and this process may not change that.
pub fn raise_limit() -> io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if now.current.is_none_or(|current| current >= WANTED) {
        return Ok(());
    }
    let maximum = now.maximum.map(|maximum| maximum.max(WANTED));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(WANTED), maximum })?)
}
