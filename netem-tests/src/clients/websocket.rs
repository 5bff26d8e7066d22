//! WebSockets to the cluster, as kubectl opens them: each message begins with its channel
//! (`k8s.io/client-go/transport/websocket/roundtripper.go`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt};
use http::Method;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use qtunnel::demo::client::Client;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::User;

/// A WebSocket whose messages have channels.
pub(super) struct WebSocket(WebSocketStream<TokioIo<Upgraded>>);

impl WebSocket {
    /// Opens one on a connection of its own.
    pub(super) async fn open(user: &User, path: &str, protocol: &str) -> anyhow::Result<Self> {
        let client = Client::connect(&user.kubeconfig).await?;
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let headers = [
            (CONNECTION, "Upgrade"),
            (UPGRADE, "websocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, key.as_str()),
            (SEC_WEBSOCKET_PROTOCOL, protocol),
        ];
        let (_, io) = client.upgrade(Method::GET, path, &headers).await?;
        Ok(Self(WebSocketStream::from_raw_socket(io, Role::Client, None).await))
    }

    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.0.send(Message::binary([&[channel], bytes].concat())).await?)
    }

    /// The next message: its channel and what it says.
    pub(super) async fn next(&mut self) -> anyhow::Result<(u8, Bytes)> {
        while let Some(message) = self.0.next().await {
            if let Message::Binary(mut bytes) = message?
                && !bytes.is_empty()
            {
                return Ok((bytes.get_u8(), bytes));
            }
        }
        anyhow::bail!("the WebSocket has ended")
    }
}
