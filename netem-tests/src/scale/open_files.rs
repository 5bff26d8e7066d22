//! Each connection is an open file.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process, and those it starts, have as many files open as the system allows. Returns how many that are.
///
/// # Errors
/// Only where the kernel knows no such limit.
pub fn raise_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    // `None` is no limit.
    Ok(maximum.unwrap_or(u64::MAX))
}
