//! TCP: yamux on TLS, for networks that block UDP.
//!
//! [`connection`] has the one task that drives a connection. A stream is two halves ([`stream`]) that meet a [`pump`] in
//! a [`state`]: there a yamux stream comes to mean what a QUIC stream means. [`control`] is the stream that concerns the
//! connection itself, [`socket`] the TLS socket below.

mod connection;
mod control;
mod pump;
mod receive_buffer;
mod socket;
mod state;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, server};

use super::quic::QuicSettings;
use super::stream::{Connection, ConnectionEnd};
pub(super) use connection::TcpConnection;
pub(super) use stream::{TcpRecvStream, TcpSendStream, stopped};

/// How connections over TCP behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSettings {
    /// How long a connection lives without a byte from the peer. Default 30 s.
    pub idle_timeout: Duration,
    /// How often this end asks the peer for a sign of life, which also measures the round-trip time. Default 5 s. It is not
    /// told otherwise what the peer has acknowledged, as it is over QUIC.
    pub keep_alive: Duration,
    /// Bytes that one stream may have in flight towards this end; what a reader that stopped reading can pin down. Not
    /// less than 256 KiB. Default 16 MiB.
    pub stream_window: u32,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self::from(&QuicSettings::default())
    }
}

impl From<&QuicSettings> for TcpSettings {
    /// The settings that make a connection over TCP behave as much like one over QUIC as it can.
    fn from(quic: &QuicSettings) -> Self {
        let keep_alive = quic.keep_alive.min(LONGEST_KEEP_ALIVE);
        Self { idle_timeout: quic.idle_timeout, keep_alive, stream_window: quic.stream_window }
    }
}

/// See [`TcpSettings::keep_alive`].
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Streams of the peer that may be open at once at a dialling end: the most requests that an agent takes.
const MAX_INBOUND_DIALLING: usize = 65_536;

/// The same at a listening end: an agent opens one, the control stream.
const MAX_INBOUND_LISTENING: usize = 8;

/// Bytes that the kernel may hold back unsent on one connection. More of them would only stand in line before whatever
/// becomes urgent meanwhile.
const UNSENT_LIMIT: u32 = 256 * 1024;

/// The agent's end: dials stubs.
#[derive(Debug, Clone)]
pub struct TcpDialer {
    tls: Arc<rustls::ClientConfig>,
    settings: TcpSettings,
}

impl TcpDialer {
    /// Dials with `tls`.
    pub fn new(tls: Arc<rustls::ClientConfig>, settings: TcpSettings) -> Self {
        Self { tls, settings }
    }

    /// Connects to `address`, whose certificate must be for `server_name`. Bound it with a deadline.
    pub async fn dial(&self, address: SocketAddr, server_name: &str) -> Result<Connection, ConnectionEnd> {
        let socket = TcpStream::connect(address).await.map_err(|error| failed("cannot connect", &error))?;
        self.handshake(socket, server_name).await
    }

    /// Makes a connection of a socket that leads to the stub already, perhaps by way of a proxy. Bound it with a deadline.
    pub async fn handshake(&self, socket: TcpStream, server_name: &str) -> Result<Connection, ConnectionEnd> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|error| failed(&format!("{server_name} is no host name"), &error))?;
        set_up(&socket).map_err(|error| failed("cannot use the TCP socket", &error))?;
        let connector = TlsConnector::from(self.tls.clone());
        let tls = connector.connect(name, socket).await.map_err(|error| failed("TLS", &error))?;
        let connection = TcpConnection::new(tls.into(), &self.settings, connection::Side::Dialling)?;
        Ok(Connection::over_tcp(connection))
    }
}

/// The stub's end: makes a connection of an accepted socket on which TLS has agreed on the TCP carrier.
///
/// # Errors
///
/// When the socket is gone already.
pub fn accepted_over_tcp(
    tls: server::TlsStream<TcpStream>,
    settings: &TcpSettings,
) -> Result<Connection, ConnectionEnd> {
    set_up(tls.get_ref().0).map_err(|error| failed("cannot use the TCP socket", &error))?;
    let connection = TcpConnection::new(tls.into(), settings, connection::Side::Listening)?;
    Ok(Connection::over_tcp(connection))
}

fn set_up(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    // Both are refinements: a system that lacks one serves as well without it.
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_notsent_lowat(UNSENT_LIMIT);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)));
    Ok(())
}

/// Every stream has yamux's 256 KiB; beyond that, streams that are read as fast as bytes come share what two streams at the
/// full window would have.
fn yamux_config(settings: &TcpSettings) -> yamux::Config {
    const YAMUX_WINDOW: usize = yamux::DEFAULT_CREDIT as usize;
    // Those of both sides and the connection stream count.
    const STREAMS: usize = MAX_INBOUND_DIALLING + MAX_INBOUND_LISTENING + 1;
    let mut config = yamux::Config::default();
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(STREAMS);
    let growth = 2 * settings.stream_window as usize;
    config.set_max_connection_receive_window(Some(STREAMS * YAMUX_WINDOW + growth));
    config
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> ConnectionEnd {
    ConnectionEnd::Failed(format!("{what}: {error}"))
}
