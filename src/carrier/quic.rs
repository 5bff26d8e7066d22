//! QUIC: quinn's endpoints, set up for tunnels.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use rustls::server::StoresServerSessions;
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::{CongestionControl, Pulse, PulsedFactory};
use super::driver::PatientRuntime;
use super::qlog::{Origin, QlogDirectory};
use super::stream::{Connection, ConnectionEnd, RecvStream, SendStream, StreamWriteError, quic_halves};

/// How QUIC connections behave. Both ends of a connection count where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicSettings {
    /// How long a connection lives without a packet from the peer. The smaller of both ends' values counts.
    /// Default 5 min: streams outlive an outage, and one that serves nobody meanwhile is noticed within seconds (see
    /// [`Connection::path_state`]).
    pub idle_timeout: Duration,
    /// How long nothing passes before this end sends a packet to keep the connection (and NAT bindings) alive, and to see
    /// whether the peer is still there; at most a third of the idle timeout. Default 30 s (RFC 9308, section 3.2): it is
    /// for peers that say nothing themselves, and agents report more often.
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
    /// What decides how much this end has in flight. Default BBR.
    pub congestion: CongestionControl,
    /// By what a listening end that lost its state, because it was started again, can tell its peers so at once (RFC 9000,
    /// section 10.3); they would wait for the idle timeout otherwise. It has to be the same after the restart. Default: one
    /// that is forgotten.
    pub reset_secret: Option<ResetSecret>,
    /// Where each connection over QUIC is recorded. Default: nowhere.
    pub qlog: Option<QlogDirectory>,
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
            keep_alive: Duration::from_secs(30),
            stream_window: 16 << 20,
            dialler_window: 256 << 20,
            send_window: 64 << 20,
            socket_buffer: 8 << 20,
            congestion: CongestionControl::default(),
            reset_secret: None,
            qlog: None,
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
            .keep_alive_interval(Some(self.keep_alive.min(self.idle_timeout / 3)))
            .max_concurrent_bidi_streams(permits.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(self.stream_window.into())
            .send_window(self.send_window)
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_BUFFER)
            .congestion_controller_factory(Arc::new(PulsedFactory::new(self.congestion.controllers(), pulse.clone())));
        transport
    }

    /// Records a connection that uses `transport`, if connections are recorded.
    fn record(&self, transport: &mut quinn::TransportConfig, origin: Origin, peer: SocketAddr) {
        if let Some(directory) = &self.qlog {
            transport.qlog_stream(directory.record(origin, peer));
        }
    }
}

/// The stub's end: accepts connections.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: QuicEndpoint,
    tls: Arc<rustls::ServerConfig>,
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
        let crypto = QuicServerConfig::try_from(tls.clone()).map_err(io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.incoming_buffer_size(INCOMING_BUFFER).incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
        let socket = udp_socket(address, settings.socket_buffer)?;
        let mut config = quinn::EndpointConfig::default();
        if let Some(secret) = &settings.reset_secret {
            secret.apply_to(&mut config);
        }
        let endpoint = QuicEndpoint::new(config, Some(server.clone()), socket, settings)?;
        Ok(Self { endpoint, tls, config: server, settings: settings.clone() })
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
            tls: self.tls.clone(),
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
    tls: Arc<rustls::ServerConfig>,
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

    /// Has this connection take its TLS session from `sessions`, and put those it makes there.
    ///
    /// # Errors
    ///
    /// When the listener's TLS cannot do QUIC, which [`QuicListener::bind`] has refused already.
    pub fn with_sessions(mut self, sessions: Arc<dyn StoresServerSessions>) -> Result<Self, ConnectionEnd> {
        let mut tls = rustls::ServerConfig::clone(&self.tls);
        tls.session_storage = sessions;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| ConnectionEnd::Failed(error.to_string()))?;
        self.config.crypto = Arc::new(crypto);
        Ok(self)
    }

    /// Completes the handshake. Bound it with a deadline.
    pub async fn handshake(self) -> Result<IdentifiedConnection, ConnectionEnd> {
        let (connection, mut handshake) = self.identify().await?;
        handshake.complete().await?;
        Ok(connection)
    }

    /// Carries the handshake on until it is known who the peer is: with the peer's first packets if it resumes a session
    /// (RFC 9001, section 4.6), and to the end otherwise. Bound it with a deadline.
    ///
    /// Until the handshake is complete nothing says that those packets were sent now and not recorded earlier, but that a
    /// session is given out once; and what is sent to the peer can be read by nobody but who has the session.
    pub async fn identify(mut self) -> Result<(IdentifiedConnection, Handshake), ConnectionEnd> {
        let pulse = Arc::new(Pulse::default());
        let mut transport = self.settings.transport(INITIAL_PERMITS_LISTENING, &pulse);
        self.settings.record(&mut transport, Origin::Accepted, self.remote_address());
        transport.receive_window(UNTRUSTED_WINDOW.into()).max_concurrent_uni_streams(UNIDIRECTIONAL_PERMITS.into());
        self.config.transport_config(Arc::new(transport));
        let mut connecting = self.incoming.accept_with(Arc::new(self.config))?;
        // With the ClientHello TLS has the certificate of a session that is resumed.
        connecting.handshake_data().await?;
        let (connection, mut handshake) = match connecting.into_0rtt() {
            Ok((connection, complete)) => (connection.clone(), Handshake(Some((connection, complete)))),
            // Not on the accepting side.
            Err(connecting) => (connecting.await?, Handshake::done()),
        };
        if connection.peer_identity().is_none() {
            handshake.complete().await?;
        }
        Ok((IdentifiedConnection { connection, endpoint: self.endpoint, pulse }, handshake))
    }
}

/// What is left of a handshake.
pub struct Handshake(Option<(quinn::Connection, quinn::ZeroRttAccepted)>);

impl Handshake {
    /// Nothing.
    pub fn done() -> Self {
        Self(None)
    }

    /// Waits for its end. Bound it with a deadline; it may be called again.
    pub async fn complete(&mut self) -> Result<(), ConnectionEnd> {
        let Some((connection, complete)) = &mut self.0 else { return Ok(()) };
        // What it says is for the end that dials.
        let _ = complete.await;
        let connection = connection.clone();
        self.0 = None;
        connection.close_reason().map_or(Ok(()), |end| Err(end.into()))
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Handshake(..)" } else { "Handshake(done)" })
    }
}

/// A connection of which it is known by whom it is, and whose application protocol says what it is for.
#[derive(Debug)]
pub struct IdentifiedConnection {
    connection: quinn::Connection,
    endpoint: QuicEndpoint,
    pulse: Arc<Pulse>,
}

impl IdentifiedConnection {
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
        let Attempt { connecting, endpoint, pulse } = self.attempt(address, server_name)?;
        Ok(Connection::new(connecting.await?, endpoint, pulse))
    }

    /// The same, with `words` on a first stream as early data (RFC 9001, section 4.6) if there is a session to resume. The stream
    /// comes back if the peer has taken them; otherwise nothing has been said yet. Whoever is on the path can send `words`
    /// to the peer again, so they must mean no more the second time.
    pub async fn dial_saying(
        &self,
        words: &Bytes,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<(Connection, Option<(SendStream, RecvStream)>), ConnectionEnd> {
        let Attempt { connecting, endpoint, pulse } = self.attempt(address, server_name)?;
        let (connection, stream) = match connecting.into_0rtt() {
            Ok((connection, accepted)) => {
                let stream = say(&connection, &pulse, words).await;
                let accepted = accepted.await;
                if let Some(end) = connection.close_reason() {
                    return Err(end.into());
                }
                (connection, stream.ok().filter(|_| accepted))
            }
            Err(connecting) => (connecting.await?, None),
        };
        Ok((Connection::new(connection, endpoint, pulse), stream))
    }

    fn attempt(&self, address: SocketAddr, server_name: &str) -> Result<Attempt, ConnectionEnd> {
        let failed = |what: &str, error: &dyn std::fmt::Display| ConnectionEnd::Failed(format!("{what}: {error}"));
        let pulse = Arc::new(Pulse::default());
        let mut config = self.config.clone();
        let mut transport = self.settings.transport(INITIAL_PERMITS_DIALLING, &pulse);
        self.settings.record(&mut transport, Origin::Dialled, address);
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
        Ok(Attempt { connecting, endpoint, pulse })
    }
}

/// A connection that is being dialled.
struct Attempt {
    connecting: quinn::Connecting,
    endpoint: QuicEndpoint,
    pulse: Arc<Pulse>,
}

/// Opens a stream with `words`.
async fn say(
    connection: &quinn::Connection,
    pulse: &Arc<Pulse>,
    words: &Bytes,
) -> Result<(SendStream, RecvStream), StreamWriteError> {
    let (mut send, recv) = quic_halves(connection.open_bi().await.map_err(ConnectionEnd::from)?, pulse);
    send.write(&mut [words.clone()]).await?;
    Ok((send, recv))
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
        let endpoint = quinn::Endpoint::new(config, server, socket, Arc::new(PatientRuntime))?;
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
