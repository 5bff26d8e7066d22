//! Two network namespaces, joined by the emulated link: every packet of every program in them passes the model.
//!
//! Each namespace has a TUN device that is its default route. Nothing has a name outside this process: namespaces and
//! devices vanish with it, even when it is killed. Needs root and the `ip` program (iproute2).
//!
//! TUN devices are asked for no offloads, so Linux cuts super-packets (TSO, GSO) to the MTU and fills in every
//! checksum before a packet reaches the model.

mod capture;
mod device;
mod namespace;
mod nat;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

pub use namespace::{Namespace, Process};

use crate::emulator::{Control, Emulator, Ends, Link, Report};
use crate::link::{Direction, Packet};
use crate::profile::Profile;
use capture::Capture;
use nat::Nat;

/// The address of the stub's side. It never changes.
pub const PUBLIC_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));

/// The first address of the agent's side; each change of address adds one to its third number.
pub const PRIVATE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1));

/// The device that is the link, in both namespaces.
const DEVICE: &str = "link0";

/// What waits in a device for the emulator. The default of 500 packets overflows, without a word, whenever the
/// emulator sleeps a few milliseconds; this is half a second at 500 Mbit/s. The model's queue is what should be full.
const DEVICE_QUEUE: u32 = 20_000;

/// Whether this machine lets us make such a network.
///
/// # Errors
/// Why not.
pub fn probe() -> Result<(), TunError> {
    Namespace::new("probe")
        .map_err(failed("make a network namespace"))?
        .run(|| device::open(DEVICE).and_then(|_device| ip("link set lo up")))
        .and_then(|probed| probed)
        .map_err(failed("open a TUN device and configure a network namespace"))
}

/// Two namespaces and the link between them. Dropping it removes everything.
#[derive(Debug)]
pub struct TunNetwork {
    // In this order: the emulator's thread ends before the namespaces that hold its devices.
    emulator: Emulator,
    public: Arc<Namespace>,
    private: Arc<Namespace>,
}

/// What a network has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TunReport {
    /// What the link has done.
    pub link: Report,
    /// Packets that Linux has dropped at the devices, past the model. A run with any is invalid.
    pub device_drops: u64,
}

/// A network cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {reason} (two network namespaces need root, /dev/net/tun and iproute2)")]
pub struct TunError {
    what: &'static str,
    reason: io::Error,
}

impl TunNetwork {
    /// Makes the namespaces and starts to emulate the link between them.
    ///
    /// # Errors
    /// When Linux refuses, or `ip` is not installed.
    pub fn start(profile: &Profile, seed: u64) -> Result<Self, TunError> {
        Self::start_with(profile, seed, None)
    }

    /// The same, and writes what passes the stub's device to `capture`: the start of each packet as a pcap file.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when the file cannot be made.
    pub fn start_with(profile: &Profile, seed: u64, capture: Option<&Path>) -> Result<Self, TunError> {
        let capture = capture.map(Capture::start).transpose().map_err(failed("write the capture file"))?;
        let (public, public_device) = side("public", PUBLIC_ADDRESS, profile)?;
        let (private, private_device) = side("private", PRIVATE_ADDRESS, profile)?;
        let (public, private) = (Arc::new(public), Arc::new(private));
        let ends = TunEnds {
            public: public_device,
            private: private_device,
            namespace: Arc::clone(&private),
            nat: Nat::default(),
            address_changes: 0,
            udp_blocked: profile.udp_blocked,
            capture,
            buffer: vec![0; profile.mtu.max(2048)],
        };
        let emulator =
            Emulator::start("tun link", Link::new(profile, seed), ends).map_err(failed("start the emulator"))?;
        Ok(Self { emulator, public, private })
    }

    /// The namespace of the stub.
    pub fn public(&self) -> &Namespace {
        &self.public
    }

    /// The namespace of the agent.
    pub fn private(&self) -> &Namespace {
        &self.private
    }

    /// Has TCP over the link use this congestion control at both ends, from the next connection on.
    ///
    /// It is set on the routes: Linux lets only the first namespace choose a default that not every user may choose
    /// (`tcp_set_default_congestion_control` in net/ipv4/tcp_cong.c).
    ///
    /// # Errors
    /// When the kernel has none of this name.
    pub fn set_tcp_congestion(&self, name: &str) -> Result<(), TunError> {
        for side in [&self.public, &self.private] {
            let command = format!("route replace default dev {DEVICE} congctl {name}");
            side.run(move || ip(&command)).and_then(|done| done).map_err(failed("choose a TCP congestion control"))?;
        }
        Ok(())
    }

    /// A handle that changes the link.
    pub fn control(&self) -> Control {
        self.emulator.control()
    }

    /// What the network has done so far.
    ///
    /// # Errors
    /// When the emulation has ended on an error: that error.
    pub fn report(&mut self) -> io::Result<TunReport> {
        let device_drops = device_drops(&self.public)? + device_drops(&self.private)?;
        Ok(TunReport { link: self.emulator.report()?, device_drops })
    }
}

impl TunReport {
    /// Whether what was measured on this network says anything.
    pub fn is_valid(&self) -> bool {
        self.link.is_valid() && self.device_drops == 0
    }
}

impl fmt::Display for TunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        if self.device_drops > 0 {
            write!(f, "\nINVALID:  Linux has dropped {} packets at the devices, past the model", self.device_drops)?;
        }
        Ok(())
    }
}

/// A namespace with its device up and its address and route set.
fn side(name: &'static str, address: IpAddr, profile: &Profile) -> Result<(Namespace, OwnedFd), TunError> {
    let namespace = Namespace::new(name).map_err(failed("make a network namespace"))?;
    let device =
        namespace.run(|| device::open(DEVICE)).and_then(|opened| opened).map_err(failed("open a TUN device"))?;
    let mtu = profile.mtu;
    let commands = format!(
        "link set lo up\n\
         link set {DEVICE} mtu {mtu} txqueuelen {DEVICE_QUEUE} up\n\
         address add {address}/32 dev {DEVICE}\n\
         route add default dev {DEVICE}\n"
    );
    namespace
        .run(move || {
            // Router solicitations and multicast reports would be packets that no program has sent.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"), "1")?;
            // Else a connection starts with the window that an earlier one to the same address has found.
            std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?;
            ip(&commands)
        })
        .and_then(|done| done)
        .map_err(failed("configure a network namespace"))?;
    Ok((namespace, device))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> TunError {
    move |reason| TunError { what, reason }
}

/// Runs commands of iproute2 in the namespace of the calling thread.
fn ip(commands: &str) -> io::Result<()> {
    // Each line by itself: `ip -batch` reads a file or a terminal, and few commands are few processes.
    for line in commands.lines() {
        let output = Command::new("ip").args(line.split_whitespace()).output()?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("`ip {line}`: {}", reason.trim())));
        }
    }
    Ok(())
}

/// What Linux has dropped on its way into and out of the device, from the columns `drop` of /proc/net/dev.
fn device_drops(namespace: &Namespace) -> io::Result<u64> {
    // Not /proc/net: that is the namespace of the process's first thread.
    let devices = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let counters = devices
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))
        .ok_or_else(|| io::Error::other(format!("device {DEVICE} is gone")))?;
    let columns: Vec<u64> = counters.split_whitespace().filter_map(|column| column.parse().ok()).collect();
    let (received_drop, sent_drop) = (3, 11);
    Ok([received_drop, sent_drop].into_iter().filter_map(|column| columns.get(column)).sum())
}

/// The two devices as the ends of a link.
struct TunEnds {
    public: OwnedFd,
    private: OwnedFd,
    /// Of the agent, whose address changes.
    namespace: Arc<Namespace>,
    nat: Nat,
    address_changes: u8,
    udp_blocked: bool,
    capture: Option<Capture>,
    buffer: Vec<u8>,
}

/// Packets taken from one device before the other has its turn.
const BATCH: usize = 64;

impl TunEnds {
    fn receive_from(&mut self, direction: Direction, link: &mut Link<()>) -> io::Result<usize> {
        let device = match direction {
            Direction::Up => &self.private,
            Direction::Down => &self.public,
        };
        for count in 0..BATCH {
            let length = match rustix::io::read(device, &mut self.buffer) {
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(count),
                Err(error) => return Err(error.into()),
            };
            let mut bytes = self.buffer.get(..length).unwrap_or_default().to_vec();
            if self.udp_blocked && nat::is_udp(&bytes) {
                continue;
            }
            match direction {
                Direction::Up => self.nat.translate_source(&mut bytes),
                Direction::Down => self.note(&bytes),
            }
            let packet = Packet { bytes, wire_length: length, tag: () };
            link.path(direction).handle_packet(std::time::Instant::now(), packet);
        }
        Ok(BATCH)
    }

    fn note(&self, packet: &[u8]) {
        if let Some(capture) = &self.capture {
            capture.packet(packet);
        }
    }
}

impl Ends for TunEnds {
    type Tag = ();

    fn receive(&mut self, link: &mut Link<()>) -> io::Result<usize> {
        Ok(self.receive_from(Direction::Up, link)? + self.receive_from(Direction::Down, link)?)
    }

    fn send(&mut self, direction: Direction, mut packet: Packet<()>) -> io::Result<()> {
        let device = match direction {
            Direction::Up => {
                self.note(&packet.bytes);
                &self.public
            }
            Direction::Down => {
                // The NAT stands on the agent's side of the link: it looks at a packet when that has arrived there.
                self.nat.translate_destination(&mut packet.bytes);
                &self.private
            }
        };
        match rustix::io::write(device, &packet.bytes) {
            // A packet whose header was corrupted is refused with EINVAL; it is lost, as it would be on a real link.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::INVAL | Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sources<'a>(&'a self, sources: &mut Vec<PollFd<'a>>) {
        sources.push(PollFd::new(&self.public, PollFlags::IN));
        sources.push(PollFd::new(&self.private, PollFlags::IN));
    }

    fn rebind_nat(&mut self) -> io::Result<()> {
        self.nat.rebind();
        Ok(())
    }

    /// Runs `ip` in the agent's namespace without waiting for it: packets go on meanwhile.
    fn change_address(&mut self) -> io::Result<()> {
        let address = |change: u8| Ipv4Addr::new(10, 77, change.wrapping_add(1), 1);
        let old = address(self.address_changes);
        self.address_changes = (self.address_changes + 1) % 200;
        let new = address(self.address_changes);
        self.namespace.start(move || {
            let changed = ip(&format!("address add {new}/32 dev {DEVICE}\naddress delete {old}/32 dev {DEVICE}"));
            if let Err(error) = changed {
                eprintln!("the agent's address stays {old}: {error}");
            }
        })
    }
}
