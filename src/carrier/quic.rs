//! QUIC: quinn's endpoints, set up for tunnels.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::{CongestionControl, Pulse, PulsedFactory};
use super::stream::{Connection, ConnectionEnd};

/// How QUIC connections behave. Both ends of a connection count where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicSettings {
    /// How long a connection lives without a packet from the peer. The smaller of both ends' values counts.
    /// Default 5 min: streams outlive an outage, and one that serves nobody meanwhile is noticed within seconds (see
    /// [`Connection::path_state`]).
    pub idle_timeout: Duration,
    /// How long nothing passes before this end sends a packet to keep the connection (and NAT bindings) alive, and to see
    /// whether the peer is still there. Default 5 s.
    pub keep_alive: Duration,
    /// Bytes that one stream may have in flight towards this end; what a reader that stopped reading can pin down.
    /// Default 16 MiB: 1 Gbit/s at 100 ms.
    pub stream_window: u32,
    /// Bytes that all streams of a connection together may have in flight towards the end that dials: what a rogue stub can
    /// make an agent keep. Default 256 MiB, sixteen streams' worth: fewer readers that stopped reading hinder no other
    /// stream.
    pub dialler_window: u32,
    /// Bytes that this end keeps unacknowledged over all streams. Default 64 MiB.
    pub send_window: u64,
    /// What the kernel is asked to buffer per socket and direction, in bytes. quinn sets none, and the kernel's default
    /// loses packets at multi-gigabit rates. Default 8 MiB; the kernel may grant less (`net.core.rmem_max`).
    pub socket_buffer: usize,
    /// What decides how much this end has in flight. Default Cubic.
    pub congestion: CongestionControl,
    /// By what a listening end that lost its state, because it was started again, can tell its peers so at once (RFC 9000,
    /// section 10.3); they would wait for the idle timeout otherwise. It has to be the same after the restart. Default: one
    /// that is forgotten.
    pub reset_secret: Option<ResetSecret>,
}

/// Where the tokens of stateless resets come from. Whoever knows it can end connections.
#[derive(Clone, PartialEq, Eq)]
pub struct ResetSecret([u8; 32]);

impl ResetSecret {
    /// Uses these bytes, which nobody else may know.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// An endpoint answers only packets for connection ids that it can have given out, so those have to be recognizable
    /// after a restart as well.
    fn apply_to(&self, config: &mut quinn::EndpointConfig) {
        let key = hmac::Key::new(HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, b"connection ids");
        let ids = tag.as_ref().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
        config
            .reset_key(Arc::new(key))
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)))
            .min_reset_interval(MIN_RESET_INTERVAL);
    }
}

impl fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetSecret(..)")
    }
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(5 * 60),
            keep_alive: Duration::from_secs(5),
            stream_window: 16 << 20,
            dialler_window: 256 << 20,
            send_window: 64 << 20,
            socket_buffer: 8 << 20,
            congestion: CongestionControl::default(),
            reset_secret: None,
        }
    }
}

/// Bidirectional streams that a dialling end permits its peer at first. It raises them as they are used, because quinn
/// sets memory aside for each.
const INITIAL_PERMITS_DIALLING: u32 = 256;

/// Bidirectional streams that a listening end permits its peer: an agent opens one, the control stream.
const INITIAL_PERMITS_LISTENING: u32 = 8;

/// Unidirectional streams that a listening end permits its peer: as many as HTTP/3 has need of (RFC 9114, section 6.2). The
/// application protocol is not known yet when they are permitted. Agents have no use for them.
const UNIDIRECTIONAL_PERMITS: u32 = 3;

/// Between two stateless resets. After a restart each of thousands of agents needs one; a reset is shorter than the packet
/// that it answers, so it amplifies nothing.
const MIN_RESET_INTERVAL: Duration = Duration::from_micros(100);

/// Bytes of heartbeats kept until they are read or sent, quinn's own share of each included.
const DATAGRAM_BUFFER: usize = 1024;

/// Bytes that a peer may have in flight over all streams of a connection that a listening end has accepted, until it is
/// trusted ([`Connection::trust`]): anybody can open such a connection, and what is not read is kept.
const UNTRUSTED_WINDOW: u32 = 128 * 1024;

/// Bytes of packets kept for one connection attempt before it is accepted. quinn's 10 MiB are generous for an address
/// that anybody can send to.
const INCOMING_BUFFER: u64 = 64 * 1024;

/// Bytes of packets kept for all connection attempts together.
const INCOMING_BUFFER_TOTAL: u64 = 16 << 20;

impl QuicSettings {
    fn transport(&self, permits: u32, pulse: &Arc<Pulse>) -> quinn::TransportConfig {
        let mut transport = quinn::TransportConfig::default();
        // 2^62 ms and more is no timeout at all; quinn caps it at the same place.
        let idle_timeout = quinn::IdleTimeout::try_from(self.idle_timeout).ok();
        transport
            .max_idle_timeout(idle_timeout)
            .keep_alive_interval(Some(self.keep_alive))
            .max_concurrent_bidi_streams(permits.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(self.stream_window.into())
            .send_window(self.send_window)
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_BUFFER)
            .congestion_controller_factory(Arc::new(PulsedFactory::new(self.congestion.controllers(), pulse.clone())));
        transport
    }
}

/// The stub's end: accepts connections.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: QuicEndpoint,
    config: quinn::ServerConfig,
    settings: QuicSettings,
}

impl QuicListener {
    /// Listens on `address`.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or `tls` cannot do QUIC (it needs TLS 1.3).
    pub fn bind(address: SocketAddr, tls: Arc<rustls::ServerConfig>, settings: &QuicSettings) -> io::Result<Self> {
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.incoming_buffer_size(INCOMING_BUFFER).incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
        let socket = udp_socket(address, settings.socket_buffer)?;
        let mut config = quinn::EndpointConfig::default();
        if let Some(secret) = &settings.reset_secret {
            secret.apply_to(&mut config);
        }
        let endpoint = QuicEndpoint::new(config, Some(server.clone()), socket, settings)?;
        Ok(Self { endpoint, config: server, settings: settings.clone() })
    }

    /// The address that is listened on.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.endpoint.local_addr()
    }

    /// The next connection attempt; `None` when the listener is closed.
    pub async fn accept(&self) -> Option<IncomingConnection> {
        let incoming = self.endpoint.endpoint.accept().await?;
        Some(IncomingConnection {
            incoming,
            endpoint: self.endpoint.clone(),
            config: self.config.clone(),
            settings: self.settings.clone(),
        })
    }

    /// Closes every connection with `reason` and waits until the peers know, or have had `patience`.
    pub async fn close(&self, reason: &str, patience: Duration) {
        self.endpoint.endpoint.close(crate::wire::ErrorCode::NoError.value().into(), reason.as_bytes());
        let _ = tokio::time::timeout(patience, self.endpoint.wait_idle()).await;
    }
}

/// A connection attempt that has yet to prove anything.
#[derive(Debug)]
pub struct IncomingConnection {
    incoming: quinn::Incoming,
    endpoint: QuicEndpoint,
    config: quinn::ServerConfig,
    settings: QuicSettings,
}

impl IncomingConnection {
    /// Where the attempt seems to come from.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.incoming.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Whether somebody who can be reached at the address has made the attempt, as far as that is proven.
    pub fn is_address_proven(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Has whoever makes the attempt prove the address first (RFC 9000, section 8.1.2): the attempt comes again, proven. One that
    /// comes with a proof already is refused.
    pub fn demand_proof(self) {
        if let Err(proven) = self.incoming.retry() {
            proven.into_incoming().refuse();
        }
    }

    /// Tells the peer that there is no connection to be had.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Completes the handshake. Bound it with a deadline.
    pub async fn handshake(mut self) -> Result<EstablishedConnection, ConnectionEnd> {
        let pulse = Arc::new(Pulse::default());
        let mut transport = self.settings.transport(INITIAL_PERMITS_LISTENING, &pulse);
        transport.receive_window(UNTRUSTED_WINDOW.into()).max_concurrent_uni_streams(UNIDIRECTIONAL_PERMITS.into());
        self.config.transport_config(Arc::new(transport));
        let connection = self.incoming.accept_with(Arc::new(self.config))?.await?;
        Ok(EstablishedConnection { connection, endpoint: self.endpoint, pulse })
    }
}

/// A connection whose handshake is complete, and whose application protocol says what it is for.
#[derive(Debug)]
pub struct EstablishedConnection {
    connection: quinn::Connection,
    endpoint: QuicEndpoint,
    pulse: Arc<Pulse>,
}

impl EstablishedConnection {
    /// The application protocol (ALPN) that both sides agreed on.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        negotiated_protocol(&self.connection)
    }

    /// Every certificate that the peer presented, its own first. Empty if it presented none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        presented_chain(&self.connection)
    }

    /// The connection of an agent.
    pub fn into_tunnel(self) -> Connection {
        Connection::new(self.connection, self.endpoint, self.pulse)
    }

    /// The connection of somebody who does not speak the tunnel's protocols.
    pub fn into_quic(self) -> quinn::Connection {
        self.connection
    }
}

/// The application protocol of a connection.
pub(super) fn negotiated_protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    handshake_data(connection)?.protocol
}

/// The host name that the peer of a connection asked TLS for (SNI).
pub fn requested_server_name(connection: &quinn::Connection) -> Option<String> {
    handshake_data(connection)?.server_name
}

fn handshake_data(connection: &quinn::Connection) -> Option<quinn::crypto::rustls::HandshakeData> {
    connection.handshake_data()?.downcast().ok().map(|data| *data)
}

/// Every certificate that the peer of a connection presented, its own first. Empty if it presented none.
pub fn presented_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

/// The agent's end: dials stubs, each connection on a socket of its own, because a socket that is exchanged
/// (`rebind`) takes all of its connections along.
#[derive(Debug, Clone)]
pub struct QuicDialer {
    config: quinn::ClientConfig,
    settings: QuicSettings,
}

impl QuicDialer {
    /// Dials with `tls`.
    ///
    /// # Errors
    ///
    /// When `tls` cannot do QUIC (it needs TLS 1.3).
    pub fn new(tls: Arc<rustls::ClientConfig>, settings: QuicSettings) -> io::Result<Self> {
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        Ok(Self { config: quinn::ClientConfig::new(Arc::new(crypto)), settings })
    }

    /// Connects to `address`, whose certificate must be for `server_name`. Bound it with a deadline.
    pub async fn dial(&self, address: SocketAddr, server_name: &str) -> Result<Connection, ConnectionEnd> {
        let failed = |what: &str, error: &dyn std::fmt::Display| ConnectionEnd::Failed(format!("{what}: {error}"));
        let pulse = Arc::new(Pulse::default());
        let mut config = self.config.clone();
        let mut transport = self.settings.transport(INITIAL_PERMITS_DIALLING, &pulse);
        transport.receive_window(self.settings.dialler_window.into());
        config.transport_config(Arc::new(transport));
        let socket = udp_socket(unspecified(address), self.settings.socket_buffer)
            .map_err(|error| failed("cannot open a UDP socket", &error))?;
        let endpoint = QuicEndpoint::new(quinn::EndpointConfig::default(), None, socket, &self.settings)
            .map_err(|error| failed("cannot use the UDP socket", &error))?;
        let connecting = endpoint
            .endpoint
            .connect_with(config, address, server_name)
            .map_err(|error| failed("cannot connect", &error))?;
        Ok(Connection::new(connecting.await?, endpoint, pulse))
    }
}

/// A socket and the connections on it.
#[derive(Debug, Clone)]
pub(super) struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    socket_buffer: usize,
}

impl QuicEndpoint {
    fn new(
        config: quinn::EndpointConfig,
        server: Option<quinn::ServerConfig>,
        socket: UdpSocket,
        settings: &QuicSettings,
    ) -> io::Result<Self> {
        let endpoint = quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))?;
        Ok(Self { endpoint, socket_buffer: settings.socket_buffer })
    }

    /// Waits until no connection has anything left to say.
    pub(super) async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }

    /// Moves every connection to a new socket that can reach `peer`.
    pub(super) fn rebind(&self, peer: SocketAddr) -> io::Result<()> {
        self.endpoint.rebind(udp_socket(unspecified(peer), self.socket_buffer)?)
    }
}

/// No address of this host in particular: the system chooses the one that leads to `peer`.
fn unspecified(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn udp_socket(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families, where the system allows it.
        let _ = socket.set_only_v6(false);
    }
    // A smaller buffer than asked for costs speed under load and nothing else.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
