//! How an agent reaches its stub: over QUIC, or over TCP where that does not get through.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;
use rustls::client::Resumption;
use tokio::time::{sleep, timeout};

use super::address::AddressError;
use super::proxy::{Proxy, ProxyError, ProxySettings};
use super::target::Target;
use crate::carrier::{
    Connection, ConnectionEnd, QuicDialer, QuicSettings, RecvStream, SendStream, TcpDialer, TcpSettings,
};
use crate::wire::ErrorCode;

/// Which carriers an agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CarrierChoice {
    /// QUIC; TCP for as long as QUIC does not get through.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
}

/// How an agent chooses its carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierSettings {
    /// Which carriers. Default: [`CarrierChoice::Auto`].
    pub choice: CarrierChoice,
    /// While on TCP for want of QUIC: how often QUIC is tried again, give or take a quarter. Default 60 s.
    pub probe_interval: Duration,
    /// The HTTP proxy that connections over TCP go through; QUIC goes through none. Default: none.
    pub proxy: ProxySettings,
}

impl Default for CarrierSettings {
    fn default() -> Self {
        Self { choice: CarrierChoice::Auto, probe_interval: Duration::from_secs(60), proxy: ProxySettings::default() }
    }
}

/// What each carrier's TLS is made of.
#[derive(Debug)]
pub struct DialTls {
    /// For QUIC.
    pub quic: ClientConfig,
    /// For TCP.
    pub tcp: ClientConfig,
}

/// Dials one stub.
#[derive(Debug)]
pub struct Dialer {
    stub: Target,
    choice: CarrierChoice,
    proxy: Option<Proxy>,
    quic: QuicDialer,
    /// Without sessions: one is used up by each attempt that offers it, also if nobody answers.
    probe: QuicDialer,
    tcp: TcpDialer,
}

/// A connection to a stub.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub connection: Connection,
    /// The stream on which the stub has taken the first words as early data.
    pub said: Option<(SendStream, RecvStream)>,
}

impl From<Connection> for Dialled {
    fn from(connection: Connection) -> Self {
        Self { connection, said: None }
    }
}

/// Why there is no connection to a stub.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The stub's address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No address of the stub let the agent in.
    #[error("no connection to the stub: {0}")]
    Connection(#[from] ConnectionEnd),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Neither carrier got through.
    #[error("neither over QUIC ({quic}) nor over TCP ({tcp})")]
    Both {
        /// Over QUIC.
        quic: Box<DialError>,
        /// Over TCP.
        tcp: Box<DialError>,
    },
}

/// How long an attempt at one address may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long QUIC is waited for before TCP is tried beside it.
const HEAD_START: Duration = Duration::from_secs(3);

/// Beyond two round trips, how long sessions may be on their way.
const SESSIONS_GRACE: Duration = Duration::from_secs(1);

impl Dialer {
    /// Dials `stub` with `tls`.
    ///
    /// # Errors
    ///
    /// When `tls` cannot do QUIC.
    pub fn new(stub: &Target, carrier: &CarrierSettings, tls: DialTls, quic: &QuicSettings) -> io::Result<Self> {
        let mut without_sessions = tls.quic.clone();
        without_sessions.resumption = Resumption::disabled();
        Ok(Self {
            stub: stub.clone(),
            choice: carrier.choice,
            proxy: carrier.proxy.proxy_for(stub.name().host(), stub.name().port()).cloned(),
            quic: QuicDialer::new(Arc::new(tls.quic), quic.clone())?,
            probe: QuicDialer::new(Arc::new(without_sessions), quic.clone())?,
            tcp: TcpDialer::new(Arc::new(tls.tcp), TcpSettings::from(quic)),
        })
    }

    /// Connects as the settings say. `words` are said with the first packet if QUIC has a session to resume.
    pub async fn dial(&self, words: &Bytes) -> Result<Dialled, DialError> {
        self.choose(self.dial_quic(words)).await
    }

    /// The same without a word, and without a session to resume: nobody may be there.
    pub async fn probe(&self) -> Result<Connection, DialError> {
        let host = self.stub.name().host();
        let quic = async { Ok(self.first_address(|address| self.probe.dial(address, host)).await?.into()) };
        Ok(self.choose(quic).await?.connection)
    }

    async fn choose(&self, quic: impl Future<Output = Result<Dialled, DialError>>) -> Result<Dialled, DialError> {
        match self.choice {
            CarrierChoice::Auto => self.race(quic).await,
            CarrierChoice::Quic => quic.await,
            CarrierChoice::Tcp => self.dial_tcp().await.map(Dialled::from),
        }
    }

    /// QUIC with a head start, then whichever is first.
    async fn race(&self, quic: impl Future<Output = Result<Dialled, DialError>>) -> Result<Dialled, DialError> {
        let mut quic = pin!(quic);
        let mut quic_error = match timeout(HEAD_START, quic.as_mut()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => Some(error),
            Err(_elapsed) => None,
        };
        tracing::info!(stub = %self.stub, "QUIC does not get through; trying TCP");
        let mut tcp = pin!(self.dial_tcp());
        let mut tcp_error = None;
        loop {
            tokio::select! {
                result = quic.as_mut(), if quic_error.is_none() => match result {
                    Ok(connection) => return Ok(connection),
                    Err(error) => quic_error = Some(error),
                },
                result = tcp.as_mut(), if tcp_error.is_none() => match result {
                    Ok(connection) => return Ok(connection.into()),
                    Err(error) => tcp_error = Some(error),
                },
            }
            match (quic_error.take(), tcp_error.take()) {
                (Some(quic), Some(tcp)) => return Err(DialError::Both { quic: Box::new(quic), tcp: Box::new(tcp) }),
                errors => (quic_error, tcp_error) = errors,
            }
        }
    }

    /// Connects over QUIC to the first of the stub's addresses that answers.
    pub async fn dial_quic(&self, words: &Bytes) -> Result<Dialled, DialError> {
        let dial = |address| self.quic.dial_saying(words, address, self.stub.name().host());
        let (connection, said) = self.first_address(dial).await?;
        Ok(Dialled { connection, said })
    }

    /// Connects over QUIC for nothing but the sessions that come with it.
    pub async fn fetch_sessions(&self) -> Result<(), DialError> {
        let connection = self.first_address(|address| self.quic.dial(address, self.stub.name().host())).await?;
        // They follow the end of the handshake.
        sleep(connection.path().round_trip * 2 + SESSIONS_GRACE).await;
        connection.close_and_drain(ErrorCode::NoError, "the sessions have come", SESSIONS_GRACE).await;
        Ok(())
    }

    async fn dial_tcp(&self) -> Result<Connection, DialError> {
        let Some(proxy) = &self.proxy else {
            return self.first_address(|address| self.tcp.dial(address, self.stub.name().host())).await;
        };
        // The proxy looks the name up: inside, names of the outside are often unknown.
        let connecting = async {
            let socket = proxy.connect(&self.stub.host_for_proxy(), self.stub.name().port()).await?;
            Ok(self.tcp.handshake(socket, self.stub.name().host()).await?)
        };
        timeout(PATIENCE, connecting).await.unwrap_or(Err(ConnectionEnd::TimedOut.into()))
    }

    async fn first_address<T, F>(&self, dial: impl Fn(SocketAddr) -> F) -> Result<T, DialError>
    where
        F: Future<Output = Result<T, ConnectionEnd>>,
    {
        let mut last = ConnectionEnd::TimedOut;
        for address in self.stub.addresses(PATIENCE).await? {
            match timeout(PATIENCE, dial(address)).await.unwrap_or(Err(ConnectionEnd::TimedOut)) {
                Ok(connection) => return Ok(connection),
                Err(end) => last = end,
            }
        }
        Err(last.into())
    }
}
