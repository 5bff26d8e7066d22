//! How much one stub and one agent can carry, on this machine's loopback: nothing is emulated.

mod agents;
mod crowd;
mod open_files;
mod streams;

pub use agents::{AgentFigures, agents};
pub use crowd::{Crowd, run_crowd};
pub use open_files::raise_limit;
pub use streams::{StreamFigures, streams};
