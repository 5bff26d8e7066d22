//! A command with input and output, over WebSocket as kubectl has done it since 1.30: each message begins with its channel
//! (`k8s.io/client-go/tools/remotecommand/websocket.go`).

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt};
use http::Method;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{CheckError, CheckResult, Finding, Target};
use crate::demo::client::Client;

const PROTOCOL: &str = "v5.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
/// Closes the channel named in the second byte.
const CLOSE: u8 = 255;

/// How the command went.
enum Outcome {
    /// It gave back what it was given.
    Echoed(Finding),
    /// It could not run, in the words of the server.
    Refused(String),
}

/// Runs `cat`, gives it a word and gets it back.
pub(super) async fn cat(client: &Client, target: &Target) -> CheckResult {
    match echo(client, target).await? {
        Outcome::Echoed(finding) => Ok(finding),
        Outcome::Refused(why) => Err(CheckError::Unexpected(why)),
    }
}

/// The same in a container that may have no `cat`.
pub(super) async fn cat_if_there(client: &Client, target: &Target) -> CheckResult {
    match echo(client, target).await? {
        Outcome::Echoed(finding) => Ok(finding),
        Outcome::Refused(why) => Ok(Finding::Skipped(format!("{target}: {why}"))),
    }
}

async fn echo(client: &Client, target: &Target) -> Result<Outcome, CheckError> {
    let word = format!("{:016x}\n", rand::random::<u64>());
    let began = Instant::now();
    let mut session = Session::start(client, target).await?;
    session.send(STDIN, word.as_bytes()).await?;
    let mut output = Vec::new();
    while output.len() < word.len() {
        match session.next().await? {
            (STDOUT, bytes) => output.extend_from_slice(&bytes),
            (ERROR, status) => return Ok(Outcome::Refused(message_of(&status))),
            _ => {}
        }
    }
    let time = began.elapsed();
    if output != word.as_bytes() {
        let output = String::from_utf8_lossy(&output);
        return Err(CheckError::Unexpected(format!("`cat` was given {word:?} and gave back {output:?}")));
    }
    session.send(CLOSE, &[STDIN]).await?;
    let status = loop {
        if let (ERROR, status) = session.next().await? {
            break status;
        }
    };
    let succeeded = serde_json::from_slice::<Value>(&status).is_ok_and(|status| status["status"] == "Success");
    if !succeeded {
        return Err(CheckError::Unexpected(format!("`cat` ended with: {}", message_of(&status))));
    }
    Ok(Outcome::Echoed(Finding::Passed { time, detail: format!("`cat` in {target} answered, over WebSocket") }))
}

/// A running command.
struct Session(WebSocketStream<TokioIo<Upgraded>>);

impl Session {
    async fn start(client: &Client, target: &Target) -> Result<Self, CheckError> {
        let query = format!("container={}&command=cat&stdin=true&stdout=true&stderr=true", target.container);
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let headers = [
            (CONNECTION, "Upgrade"),
            (UPGRADE, "websocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, key.as_str()),
            (SEC_WEBSOCKET_PROTOCOL, PROTOCOL),
        ];
        let path = format!("{}?{query}", target.path("exec"));
        let (response, io) = client.upgrade(Method::GET, &path, &headers).await?;
        let says = |name, value: &str| response.headers().get(name).is_some_and(|header| header == value);
        if !says(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) || !says(SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
            return Err(CheckError::Unexpected(format!("the server did not agree to {PROTOCOL} over WebSocket")));
        }
        Ok(Self(WebSocketStream::from_raw_socket(io, Role::Client, None).await))
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), CheckError> {
        Ok(self.0.send(Message::binary([&[channel], bytes].concat())).await.map_err(Box::new)?)
    }

    /// The next message: its channel and what it says.
    async fn next(&mut self) -> Result<(u8, Bytes), CheckError> {
        while let Some(message) = self.0.next().await {
            if let Message::Binary(mut bytes) = message.map_err(Box::new)?
                && !bytes.is_empty()
            {
                return Ok((bytes.get_u8(), bytes));
            }
        }
        Err(CheckError::Unexpected("the session ended without saying how the command went".to_owned()))
    }
}

/// The message of a `Status`.
fn message_of(status: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(status).ok();
    let message = parsed.as_ref().and_then(|status| status["message"].as_str());
    message.map_or_else(|| String::from_utf8_lossy(status).into_owned(), str::to_owned)
}
