//! The emulated link inside this process, between loopback sockets: no privileges, but less of a network.
//!
//! The agent is pointed at the relay's address instead of the stub's. UDP datagrams pass the model as packets. TCP is
//! ended at the relay and begun anew, so of the model it meets only rate, delay, jitter and the queue's limits (as
//! backpressure); a blackout holds its bytes back.
//!
//! What it cannot do: lose, duplicate or corrupt segments of TCP, whose congestion control therefore sees loopback;
//! delay TCP's handshake; carry ECN marks or ICMP; share one rate between UDP and TCP; limit the size of datagrams.
//! Comparisons of QUIC with TCP need [`tun`](crate::tun).

mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use crate::emulator::{Control, Emulator, Link, Report};
use crate::link::{Loss, PathSettings};
use crate::profile::{Action, Profile};
use crate::units::Probability;

/// A link that stands in front of one address. Dropping it ends all that passes it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    udp: Emulator,
    tcp: Emulator,
}

/// What a relay has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelayReport {
    /// Of datagrams.
    pub udp: Report,
    /// Of pieces of TCP streams.
    pub tcp: Report,
}

/// Changes a relay's link while it is used.
#[derive(Clone)]
pub struct RelayControl {
    udp: Control,
    tcp: Control,
}

impl Relay {
    /// Starts a link to `target`, on loopback, for both UDP and TCP.
    ///
    /// # Errors
    /// When no port can be had or no thread started.
    pub fn start(profile: &Profile, seed: u64, target: SocketAddr) -> io::Result<Self> {
        let (listener, socket) = same_port()?;
        let address = listener.local_addr()?;
        let udp = udp::UdpEnds::new(socket, target, profile.udp_blocked)?;
        let udp = Emulator::start("udp relay", Link::new(profile, seed), udp)?;
        let streams = Profile { up: lossless(&profile.up), down: lossless(&profile.down), ..profile.clone() };
        let tcp = tcp::TcpEnds::new(listener, target)?;
        let tcp = Emulator::start("tcp relay", Link::new(&streams, seed), tcp)?;
        Ok(Self { address, udp, tcp })
    }

    /// Where the agent finds the stub.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that changes the link.
    pub fn control(&self) -> RelayControl {
        RelayControl { udp: self.udp.control(), tcp: self.tcp.control() }
    }

    /// What the relay has done so far.
    ///
    /// # Errors
    /// When the emulation has ended on an error: that error.
    pub fn report(&mut self) -> io::Result<RelayReport> {
        Ok(RelayReport { udp: self.udp.report()?, tcp: self.tcp.report()? })
    }
}

impl RelayReport {
    /// Whether what was measured over this relay says anything.
    pub fn is_valid(&self) -> bool {
        self.udp.is_valid() && self.tcp.is_valid()
    }
}

impl fmt::Display for RelayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UDP\n{}\nTCP\n{}", self.udp, self.tcp)
    }
}

impl RelayControl {
    /// Makes this happen, and returns when it has begun.
    ///
    /// # Errors
    /// When the target is not on loopback, where the relay has only one address, or the emulation has ended.
    pub fn apply(&self, action: Action) -> io::Result<()> {
        self.udp.apply(action)?;
        self.tcp.apply(action)
    }
}

/// A TCP listener and a UDP socket on the same port of loopback, as the stub has them.
fn same_port() -> io::Result<(TcpListener, UdpSocket)> {
    let attempts = 16;
    let mut refused = None;
    for _ in 0..attempts {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// The stages that pieces of a stream survive.
fn lossless(settings: &PathSettings) -> PathSettings {
    PathSettings {
        corrupt: Probability::NEVER,
        loss: Loss::default(),
        duplicate: Probability::NEVER,
        reorder: false,
        ..settings.clone()
    }
}
