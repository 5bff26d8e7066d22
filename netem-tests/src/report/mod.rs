//! What came of it, for people and for programs.

mod outcome;
mod table;

pub use outcome::{Latency, Outcome};
pub use table::comparison;
