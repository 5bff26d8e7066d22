//! Which ways of emulating a network this machine has.

use std::io;
use std::process::Command;

use crate::tun::{self, Namespace};

/// A way of emulating a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// [`tun`].
    Tun,
    /// [`relay`](crate::relay).
    Relay,
    /// Linux's own emulator, `tc qdisc add ... netem`. It is looked for and reported, and not used: it does not tell how
    /// late it was, so a run on it cannot be judged.
    Netem,
}

impl Backend {
    /// All of them; those that are used come in the order in which they are preferred.
    pub const ALL: [Self; 3] = [Self::Tun, Self::Relay, Self::Netem];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Relay => "relay",
            Self::Netem => "netem",
        }
    }

    /// What it is, in one line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Tun => "two network namespaces: unchanged programs, QUIC and TCP alike (root)",
            Self::Relay => "sockets on loopback: UDP as packets, TCP as delayed bytes (no privileges)",
            Self::Netem => "the kernel's own emulator (only reported; profiles run on the others)",
        }
    }

    /// Whether this machine has it.
    ///
    /// # Errors
    /// Why it has not.
    pub fn probe(self) -> Result<(), String> {
        match self {
            Self::Tun => tun::probe().map_err(|error| error.to_string()),
            Self::Relay => Ok(()),
            Self::Netem => probe_netem().map_err(|error| error.to_string()),
        }
    }
}

/// Asks for the queueing discipline where it can do no harm: on the loopback device of a namespace of its own.
fn probe_netem() -> io::Result<()> {
    let namespace = Namespace::new("probe")?;
    let mut add = Command::new("tc");
    add.args(["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]);
    let output = namespace.run(move || add.output())??;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("no sch_netem in this kernel: {}", reason.trim())))
}
