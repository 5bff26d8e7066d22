//! On how many threads a program runs.

use std::io;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::thread::available_parallelism;

use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};

/// How many threads do the work of a program: 1 to 65,535.
///
/// More threads do more in total, and take more CPU time for the same: the state of a QUIC connection is behind one lock, so
/// threads that serve its streams wait for each other. Measured on two cores, a small GET takes a fifth more CPU time in all with
/// a stub on two threads and an agent on two than with one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Threads(NonZeroU16);

impl Threads {
    /// One thread: the default of agents. A cluster that needs more than one core has for it has several agents.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// One less than there are cores for this process, and at least one: the default of stubs. The kernel needs the rest, to
    /// carry the packets.
    pub fn beside_the_kernel() -> Self {
        let cores = available_parallelism().map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX));
        NonZeroU16::new(cores - 1).map_or(Self::ONE, Self)
    }

    /// What runs asynchronous work on these threads. With one, that is the thread that calls [`Runtime::block_on`].
    ///
    /// # Errors
    ///
    /// The system gives no threads or file descriptors.
    pub fn runtime(self) -> io::Result<Runtime> {
        match self {
            Self::ONE => Builder::new_current_thread().enable_all().build(),
            Self(several) => Builder::new_multi_thread().worker_threads(several.get().into()).enable_all().build(),
        }
    }
}

impl FromStr for Threads {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_thread() {
        assert!("0".parse::<Threads>().is_err());
        assert_eq!("1".parse(), Ok(Threads::ONE));
        for threads in [Threads::ONE, Threads::beside_the_kernel(), "3".parse().unwrap()] {
            let runtime = threads.runtime().unwrap();
            assert_eq!(runtime.metrics().num_workers(), usize::from(threads.0.get()));
            assert_eq!(runtime.block_on(async { tokio::spawn(async { 5 }).await.unwrap() }), 5);
        }
    }
}
