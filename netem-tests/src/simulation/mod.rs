//! QUIC over a [`link`](crate::link) in simulated time: real endpoints of quinn-proto, no sockets, no threads, and a
//! clock that jumps to whatever happens next.
//!
//! What is simulated: the network, the clock, and applications that always have bytes to send and always read at once.
//! Hosts take no time to think: packets are handled the moment they arrive, and timers fire the moment they are due. What
//! is real: the QUIC implementation, its handshake and encryption, loss detection, pacing and congestion control.
//!
//! A run depends on its settings and its seed alone, not on the machine or its load (quinn's own BBR excepted, which draws
//! random numbers of its own).

#![forbid(unsafe_code)]

mod controller;
mod host;
mod measure;
mod tls;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use quinn_proto::TransportConfig;

pub use controller::CongestionControl;
pub use measure::FlowReport;

use crate::link::{Direction, Output, Packet, Path};
use crate::profile::Profile;
use host::{Host, Role};
use measure::Meter;

/// What IPv4 and UDP headers add to each packet on the link, in bytes.
const HEADERS: usize = 28;

/// Bytes that one stream may have in flight, as qtunnel's default is.
const STREAM_WINDOW: u32 = 16 << 20;

/// Bytes that a sender keeps unacknowledged, as qtunnel's default is.
const SEND_WINDOW: u64 = 64 << 20;

/// One connection with one bulk transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What controls the sender's congestion window.
    pub control: CongestionControl,
    /// When it starts.
    pub start: Duration,
}

/// Flows that share a link.
#[derive(Debug, Clone)]
pub struct Scenario<'a> {
    /// The link. Its events are not followed.
    pub profile: &'a Profile,
    /// Which way the bytes go; acknowledgements take the other one.
    pub direction: Direction,
    /// The flows that share it.
    pub flows: &'a [Flow],
    /// What is measured begins here, counted from the start of the run.
    pub measure_from: Duration,
    /// And the run ends here.
    pub end: Duration,
    /// Which packets are lost, and every other random decision.
    pub seed: u64,
}

impl Scenario<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// When an endpoint cannot be set up. A connection that is lost is a result: [`FlowReport::broken`].
    pub fn run(&self) -> anyhow::Result<Vec<FlowReport>> {
        let start = Instant::now();
        let mut network = Network::new(self, start)?;
        let end = start + self.end;
        let mut now = start;
        while let Some(next) = network.next_event(now).filter(|&next| next <= end) {
            now = next;
            network.advance(now);
        }
        Ok(network.flows.into_iter().map(|flow| flow.report(end)).collect())
    }
}

/// The link with a pair of hosts for each flow.
struct Network {
    /// From the senders to the receivers.
    forward: Path<Tag>,
    /// From the receivers to the senders.
    back: Path<Tag>,
    mtu: usize,
    flows: Vec<RunningFlow>,
}

/// What the link carries along with a packet.
#[derive(Debug, Clone, Copy)]
struct Tag {
    flow: usize,
    entered: Instant,
}

struct RunningFlow {
    sender: Host,
    receiver: Host,
    meter: Meter,
    broken: Option<String>,
}

impl Network {
    fn new(scenario: &Scenario<'_>, start: Instant) -> anyhow::Result<Self> {
        let Profile { up, down, mtu, .. } = scenario.profile;
        let (there, back) = match scenario.direction {
            Direction::Up => ((up, Direction::Up), (down, Direction::Down)),
            Direction::Down => ((down, Direction::Down), (up, Direction::Up)),
        };
        let flows = scenario.flows.iter().zip(0..).map(|(flow, number)| {
            let credentials = tls::Credentials::new().context("cannot make keys")?;
            // Flows of one run must not make the same random decisions.
            let seed = scenario.seed << 8 | number;
            let transport = transport(flow.control, seed);
            let meter = Meter::new(flow.control, start + scenario.measure_from.max(flow.start), back.0.delay);
            Ok(RunningFlow {
                sender: Host::new(Role::Sender(credentials.client), start + flow.start, transport.clone(), seed),
                receiver: Host::new(Role::Receiver(credentials.server), start, transport, seed),
                meter,
                broken: None,
            })
        });
        Ok(Self {
            flows: flows.collect::<anyhow::Result<_>>()?,
            forward: Path::new(there.0, scenario.seed, there.1),
            back: Path::new(back.0, scenario.seed, back.1),
            mtu: *mtu,
        })
    }

    /// When something happens next, at `now` or later; what is due now has been handled.
    fn next_event(&mut self, now: Instant) -> Option<Instant> {
        let arrivals = [due(&mut self.forward, now), due(&mut self.back, now)];
        let timers = self.flows.iter().map(RunningFlow::wakeup);
        arrivals.into_iter().chain(timers).flatten().min()
    }

    /// Lets everything happen that is due at `now`.
    fn advance(&mut self, now: Instant) {
        while let Output::Packet { packet, .. } = self.forward.poll_output(now) {
            if let Some(flow) = self.flows.get_mut(packet.tag.flow) {
                flow.meter.packet_arrived(now, packet.tag.entered);
                flow.attempt(|flow| flow.receiver.receive(now, packet.bytes));
            }
        }
        while let Output::Packet { packet, .. } = self.back.poll_output(now) {
            if let Some(flow) = self.flows.get_mut(packet.tag.flow) {
                flow.attempt(|flow| flow.sender.receive(now, packet.bytes));
            }
        }
        for (number, flow) in self.flows.iter_mut().enumerate() {
            let tag = Tag { flow: number, entered: now };
            flow.attempt(|flow| flow.sender.advance(now));
            send(&mut self.forward, now, tag, self.mtu, &mut flow.sender);
            flow.attempt(|flow| flow.receiver.advance(now));
            send(&mut self.back, now, tag, self.mtu, &mut flow.receiver);
            if let Some(path) = flow.sender.path_statistics() {
                flow.meter.update(now, flow.receiver.bytes_read(), &path);
            }
        }
    }
}

impl RunningFlow {
    /// Does something unless the flow is broken, and notices when that breaks it.
    fn attempt(&mut self, something: impl FnOnce(&mut Self) -> anyhow::Result<()>) {
        if self.broken.is_none()
            && let Err(error) = something(self)
        {
            self.broken = Some(error.to_string());
        }
    }

    fn wakeup(&self) -> Option<Instant> {
        if self.broken.is_some() {
            return None;
        }
        [self.sender.wakeup(), self.receiver.wakeup()].into_iter().flatten().min()
    }

    fn report(self, end: Instant) -> FlowReport {
        FlowReport { broken: self.broken, ..self.meter.report(end) }
    }
}

fn due(path: &mut Path<Tag>, now: Instant) -> Option<Instant> {
    match path.poll_output(now) {
        Output::Deadline(deadline) => Some(deadline),
        // `advance` has taken everything that was due.
        Output::Packet { .. } | Output::Idle => None,
    }
}

fn send(path: &mut Path<Tag>, now: Instant, tag: Tag, mtu: usize, host: &mut Host) {
    for bytes in host.take_outgoing() {
        let wire_length = bytes.len() + HEADERS;
        // A router that may not fragment drops what is too large; that is how QUIC finds out the path's MTU.
        if wire_length <= mtu {
            path.handle_packet(now, Packet { bytes, wire_length, tag });
        }
    }
}

fn transport(control: CongestionControl, seed: u64) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(control.factory(seed))
        .stream_receive_window(STREAM_WINDOW.into())
        .send_window(SEND_WINDOW);
    Arc::new(transport)
}
