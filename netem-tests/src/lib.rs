//! An emulator of bad networks, for sockets and for unchanged programs.
//!
//! - [`link`]: what a link does to packets, as a state machine without IO.
//! - [`profile`]: networks by name, in TOML.
//! - [`units`]: rates, probabilities, times and sizes as people write them.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod link;
pub mod profile;
pub mod units;
