//! An emulator of bad networks, for sockets and for unchanged programs.
//!
//! - [`link`]: what a link does to packets, as a state machine without IO.
//! - [`backend`]: which ways of emulating a network this machine has.
//! - [`emulator`]: runs a link in real time, and measures how late it was.
//! - [`interrupt`]: cleaning up when asked to stop.
//! - [`profile`]: networks by name, in TOML.
//! - [`relay`]: a backend in this process, for sockets on loopback; needs no privileges.
//! - [`simulation`]: QUIC over a link in simulated time.
//! - [`tun`]: a backend for unchanged programs, between two network namespaces; needs root.
//! - [`units`]: rates, probabilities, times and sizes as people write them.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod backend;
pub mod emulator;
pub mod interrupt;
pub mod link;
pub mod profile;
pub mod relay;
pub mod simulation;
pub mod tun;
pub mod units;
