//! What came of it, for people and for programs.

mod chart;
mod outcome;
mod plots;
mod table;
pub mod template;

pub use chart::{Axis, Chart, Line, Mark, Scale};
pub use outcome::{Cost, Latency, Outcome};
pub use plots::charts;
pub use table::comparison;

use crate::run::Run;

/// What was measured of one contender, in numbers and as it was seen.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The numbers.
    pub outcome: Outcome,
    /// The runs they are from.
    pub runs: Vec<Run>,
}
