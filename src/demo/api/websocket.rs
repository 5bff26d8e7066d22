//! The server's side of a WebSocket: the handshake as captured, then messages each way.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    body::{Body, Gone},
    identity::BEARER_PROTOCOL,
    response::Response,
    status::ApiError,
};

/// Largest message taken from a client.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Messages each way that may wait.
const WAITING: usize = 8;
/// How long a client may take to answer a close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// A WebSocket in use.
pub(super) struct WebSocket {
    /// What the client sends: text and binary messages.
    pub incoming: mpsc::Receiver<Message>,
    /// Sends to the client.
    pub sender: MessageSender,
}

/// Sends messages; the connection closes when the last sender is gone.
#[derive(Clone)]
pub(super) struct MessageSender(mpsc::Sender<Message>);

/// Whether this request asks for a WebSocket (`wsstream.IsWebSocketRequest`).
pub(super) fn is_requested(method: &Method, headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(word))
    };
    method == Method::GET && has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")
}

/// The subprotocols the client offers, in order, without those that only carry a token.
pub(super) fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let protocols = values.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.is_empty());
    protocols.filter(|p| !p.starts_with(BEARER_PROTOCOL)).map(str::to_owned).collect()
}

/// The `101` answer. Errors: 400 without a key.
pub(super) fn accept(headers: &HeaderMap, protocol: Option<&str>) -> Result<Response, ApiError> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("no Sec-WebSocket-Key"))?;
    let mut response = Response::new(Body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    // Base64 and a protocol taken from the request's own headers: both are valid header values.
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept.expect("base64 is a header value"));
    if let Some(Ok(protocol)) = protocol.map(HeaderValue::from_str) {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

/// The answer to subprotocols none of which is known: `403` without a body, and the connection closes (captured).
pub(super) fn refuse_protocol() -> Response {
    let mut response = Response::new(Body::whole(""));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Takes over the connection once the `101` is out.
pub(super) async fn start(upgrade: OnUpgrade) -> Result<WebSocket, Gone> {
    let stream = websocket(upgrade).await?;
    let (mut sink, stream) = stream.split();
    let (sender, mut outgoing) = mpsc::channel::<Message>(WAITING);
    let (arrived, incoming) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(read(stream, arrived));
    Ok(WebSocket { incoming, sender: MessageSender(sender) })
}

/// Takes over the connection as a stream of bytes, cut into binary messages without regard to what they mean
/// (`k8s.io/apimachinery/pkg/util/portforward`, `k8s.io/client-go/transport/websocket`).
pub(super) async fn start_as_bytes(upgrade: OnUpgrade) -> Result<DuplexStream, Gone> {
    let WebSocket { mut incoming, sender } = start(upgrade).await?;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut from_far, mut to_far) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(message) = incoming.recv().await {
            if to_far.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
        // The other side is a stream in memory: shutting it down cannot fail in a way that matters.
        let _ = to_far.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match from_far.read(&mut buffer).await {
                // `read` returns at most the length of the buffer.
                Ok(count) if count > 0 => {
                    if sender.binary(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                        return;
                    }
                }
                _ => return drop(sender.close().await),
            }
        }
    });
    Ok(near)
}

impl MessageSender {
    /// Sends a text message.
    pub async fn text(&self, text: String) -> Result<(), Gone> {
        self.0.send(Message::text(text)).await.map_err(|_| Gone)
    }

    /// Sends a binary message.
    pub async fn binary(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.0.send(Message::binary(bytes)).await.map_err(|_| Gone)
    }

    /// Sends the close message, code 1000.
    pub async fn close(&self) -> Result<(), Gone> {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.0.send(Message::Close(Some(frame))).await.map_err(|_| Gone)
    }

    /// Resolves when the connection is gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

async fn websocket(upgrade: OnUpgrade) -> Result<Stream, Gone> {
    let upgraded = upgrade.await.map_err(|_| Gone)?;
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
}

/// Passes messages on until the client closes or nobody wants them any more; then waits for the client's close,
/// so that what was sent last is not lost to a reset.
async fn read(mut stream: SplitStream<Stream>, arrived: mpsc::Sender<Message>) {
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            () = arrived.closed() => break,
        };
        match message {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                if arrived.send(message).await.is_err() {
                    break;
                }
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            Some(Ok(_)) => {}
        }
    }
    drop(arrived);
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    // Waiting longer would not help the client.
    let _ = tokio::time::timeout(CLOSE_DEADLINE, rest).await;
}
