//! One end of a flow: a QUIC endpoint with one connection, and the application on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, PathStats,
    ServerConfig, StreamEvent, StreamId, TransportConfig, WriteError,
};

use super::tls::SERVER_NAME;

/// The receiver's address. Both hosts are alone on their link, so addresses are of no consequence.
const RECEIVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), 443);
const SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1)), 443);

/// As many packets as quinn asks for at once.
const PACKETS_AT_ONCE: usize = 10;

/// What the sender writes, again and again.
static CHUNK: [u8; 64 * 1024] = [0; 64 * 1024];

/// What a host is for. The sender dials, as the agent does.
pub(super) enum Role {
    Sender(ClientConfig),
    Receiver(ServerConfig),
}

/// One end of a flow.
pub(super) struct Host {
    endpoint: Endpoint,
    peer: SocketAddr,
    state: State,
    transport: Arc<TransportConfig>,
    stream: Option<StreamId>,
    outgoing: Vec<Vec<u8>>,
    bytes_read: u64,
    /// Whether a packet has arrived since the last time that everything was done.
    disturbed: bool,
    /// When the connection's next timer is due.
    timeout: Option<Instant>,
}

enum State {
    /// To dial at this time.
    Waiting(Instant, Box<ClientConfig>),
    Listening,
    Connected(ConnectionHandle, Box<Connection>),
}

impl Host {
    pub(super) fn new(role: Role, start: Instant, transport: Arc<TransportConfig>, seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let (server, state, peer) = match role {
            Role::Sender(config) => (None, State::Waiting(start, Box::new(config)), RECEIVER),
            Role::Receiver(mut config) => {
                bytes[8] = 1;
                config.transport_config(transport.clone());
                (Some(Arc::new(config)), State::Listening, SENDER)
            }
        };
        let mut config = EndpointConfig::default();
        config.rng_seed(Some(bytes));
        Self {
            endpoint: Endpoint::new(Arc::new(config), server, true, None),
            peer,
            state,
            transport,
            stream: None,
            outgoing: Vec::new(),
            bytes_read: 0,
            disturbed: false,
            timeout: None,
        }
    }

    /// When [`advance`](Self::advance) wants to be called, if no packet arrives before.
    pub(super) fn wakeup(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting(start, _) => Some(*start),
            State::Listening => None,
            State::Connected(..) => self.timeout,
        }
    }

    /// Takes a packet from the network.
    pub(super) fn receive(&mut self, now: Instant, packet: Vec<u8>) -> anyhow::Result<()> {
        self.disturbed = true;
        let mut response = Vec::new();
        let packet = BytesMut::from(packet.as_slice());
        match self.endpoint.handle(now, self.peer, None, None, packet, &mut response) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let State::Connected(_, connection) = &mut self.state {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.endpoint.accept(incoming, now, &mut response, None);
                let (handle, connection) = accepted.map_err(|error| error.cause)?;
                self.state = State::Connected(handle, Box::new(connection));
            }
            Some(DatagramEvent::Response(_)) => self.outgoing.push(response),
            None => {}
        }
        Ok(())
    }

    /// Does what is to be done at `now`: timers, reading, writing, and making packets.
    pub(super) fn advance(&mut self, now: Instant) -> anyhow::Result<()> {
        let is_due = self.wakeup().is_some_and(|wakeup| wakeup <= now);
        if !is_due && !self.disturbed {
            return Ok(());
        }
        self.disturbed = false;
        if let State::Waiting(_, config) = &self.state {
            let mut config = ClientConfig::clone(config);
            config.transport_config(self.transport.clone());
            let (handle, connection) = self.endpoint.connect(now, config, self.peer, SERVER_NAME)?;
            self.state = State::Connected(handle, Box::new(connection));
        }
        let State::Connected(handle, connection) = &mut self.state else { return Ok(()) };
        if is_due {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected if connection.side().is_client() => self.stream = connection.streams().open(Dir::Uni),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    self.stream = connection.streams().accept(Dir::Uni);
                }
                Event::ConnectionLost { reason } => bail!("a connection was lost: {reason}"),
                _ => {}
            }
        }
        if let Some(stream) = self.stream {
            if connection.side().is_client() {
                write_all_there_is_room_for(connection, stream)?;
            } else {
                self.bytes_read += read_all_there_is(connection, stream)?;
            }
        }
        let mut packets = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, PACKETS_AT_ONCE, &mut packets) {
            let length = transmit.segment_size.unwrap_or(transmit.size);
            self.outgoing.extend(packets.chunks(length).map(<[u8]>::to_vec));
            packets.clear();
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        self.timeout = connection.poll_timeout();
        Ok(())
    }

    /// The packets that this host has sent since the last call.
    pub(super) fn take_outgoing(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.outgoing)
    }

    /// Bytes that the application has read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// What the connection counts, once there is one.
    pub(super) fn path_statistics(&self) -> Option<PathStats> {
        match &self.state {
            State::Connected(_, connection) => Some(connection.stats().path),
            State::Waiting(..) | State::Listening => None,
        }
    }
}

fn write_all_there_is_room_for(connection: &mut Connection, stream: StreamId) -> anyhow::Result<()> {
    loop {
        match connection.send_stream(stream).write(&CHUNK) {
            Ok(_) => {}
            Err(WriteError::Blocked) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_all_there_is(connection: &mut Connection, stream: StreamId) -> anyhow::Result<u64> {
    let mut received = connection.recv_stream(stream);
    let mut chunks = received.read(true)?;
    let mut bytes = 0;
    // An error here is `Blocked`: there is no more yet. The sender resets nothing.
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        bytes += chunk.bytes.len() as u64;
    }
    let _ = chunks.finalize();
    Ok(bytes)
}
