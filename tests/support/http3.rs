//! A client that speaks HTTP/3.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::{ConnectionError, StreamError};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::JoinHandle;

use super::http1::{Head, within};
use super::user::User;

/// A connection that speaks HTTP/3.
pub struct Http3 {
    /// Makes requests.
    pub sender: SendRequest<h3_quinn::OpenStreams, Bytes>,
    /// The connection below.
    pub connection: quinn::Connection,
    /// Ends with the reason why the connection did.
    pub driver: JoinHandle<ConnectionError>,
    _endpoint: quinn::Endpoint,
}

/// A request and its answer.
pub type Exchange = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// An answer that is coming, and the connection that it comes over.
pub struct Http3Answer {
    exchange: Exchange,
    _connection: Option<Http3>,
}

impl Http3 {
    /// Connects as `user`. A stub that refuses the user's certificate says so only after the handshake.
    pub async fn connect(user: &User) -> Result<Self, String> {
        let connection = quic(user, b"h3").await?;
        let building = h3::client::new(h3_quinn::Connection::new(connection.0.clone()));
        let (mut driver, sender) = within("HTTP/3", building).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move { std::future::poll_fn(|context| driver.poll_close(context)).await });
        Ok(Self { sender, connection: connection.0, driver, _endpoint: connection.1 })
    }

    /// Begins a request; its body, if any, is for the caller to send.
    pub async fn send(&mut self, request: http::Request<()>) -> Result<Exchange, StreamError> {
        within("a request is sent", self.sender.send_request(request)).await
    }
}

impl Http3Answer {
    /// The head of the answer to a request that was sent to its end.
    pub async fn begin(mut exchange: Exchange, connection: Option<Http3>) -> Result<(Head, Self), StreamError> {
        let answer = within("the head of an answer", exchange.recv_response()).await?;
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let head = Head { first_line: format!("HTTP/3 {}", answer.status()), headers };
        Ok((head, Self { exchange, _connection: connection }))
    }

    /// The next piece of the body; `None` at its end.
    pub async fn more(&mut self) -> Result<Option<Bytes>, StreamError> {
        let piece = within("the body of an answer", self.exchange.recv_data()).await?;
        Ok(piece.map(|mut piece| piece.copy_to_bytes(piece.remaining())))
    }

    /// The fields behind the body.
    pub async fn trailers(&mut self) -> Result<Option<http::HeaderMap>, StreamError> {
        within("trailers", self.exchange.recv_trailers()).await
    }
}

/// A QUIC connection to the stub of `user` for one application protocol.
pub async fn quic(user: &User, protocol: &[u8]) -> Result<(quinn::Connection, quinn::Endpoint), String> {
    let crypto = QuicClientConfig::try_from(user.tls_config(protocol)).expect("TLS 1.3");
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let name = user.server_name();
    let connecting = endpoint.connect(user.address(), &name).expect("a host name");
    let connection = within("a QUIC connection", connecting).await.map_err(|error| error.to_string())?;
    Ok((connection, endpoint))
}
