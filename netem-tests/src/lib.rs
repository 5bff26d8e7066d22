//! An emulator of bad networks, for sockets and for unchanged programs.
//!
//! - [`clients`]: who uses the tunnel in a run.
//! - [`contender`]: carriers and congestion controllers to compare.
//! - [`histogram`]: counting durations in constant memory.
//! - [`link`]: what a link does to packets, as a state machine without IO.
//! - [`backend`]: which ways of emulating a network this machine has.
//! - [`emulator`]: runs a link in real time, and measures how late it was.
//! - [`interrupt`]: cleaning up when asked to stop.
//! - [`profile`]: networks by name, in TOML.
//! - [`record`]: what clients have seen.
//! - [`relay`]: a backend in this process, for sockets on loopback; needs no privileges.
//! - [`report`]: tables and plots.
//! - [`run`]: one measurement from beginning to end.
//! - [`scale`]: how much one stub and one agent can carry.
//! - [`scenario`]: what goes on while a network is bad.
//! - [`simulation`]: QUIC over a link in simulated time.
//! - [`testbed`]: the real stub, agent and API server in their namespaces.
//! - [`tun`]: a backend for unchanged programs, between two network namespaces; needs root.
//! - [`units`]: rates, probabilities, times and sizes as people write them.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod backend;
pub mod clients;
pub mod contender;
pub mod emulator;
pub mod histogram;
pub mod interrupt;
pub mod link;
pub mod profile;
pub mod record;
pub mod relay;
pub mod report;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod simulation;
pub mod testbed;
pub mod tun;
pub mod units;
