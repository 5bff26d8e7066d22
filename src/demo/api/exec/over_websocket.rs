//! Sessions over WebSocket: each message begins with its channel
//! (`k8s.io/apimachinery/pkg/util/httpstream/wsstream/conn.go`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Session,
    outcome::{self, Reporter},
};
use crate::demo::api::{
    body::Gone,
    process::{Channel, Size},
    websocket::{self, MessageSender},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Closes the channel named in the second byte (version 5 only).
const CLOSE: u8 = 255;

/// A subprotocol: its version and whether its messages are base64 text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Protocol {
    name: &'static str,
    version: u8,
    base64: bool,
}

const PROTOCOLS: &[Protocol] = &[
    Protocol { name: "v5.channel.k8s.io", version: 5, base64: false },
    Protocol { name: "v4.channel.k8s.io", version: 4, base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    Protocol { name: "channel.k8s.io", version: 1, base64: false },
    Protocol { name: "base64.channel.k8s.io", version: 1, base64: true },
];

impl Protocol {
    /// The client's first choice that is known. A client that offers none gets the oldest.
    pub fn choose(offered: &[String]) -> Option<Self> {
        if offered.is_empty() {
            return Some(Self { name: "", version: 1, base64: false });
        }
        offered.iter().find_map(|name| PROTOCOLS.iter().find(|protocol| protocol.name == name)).copied()
    }

    /// The name to answer with; none where none was offered.
    pub fn name(self) -> Option<&'static str> {
        Some(self.name).filter(|name| !name.is_empty())
    }

    async fn send(self, sender: &MessageSender, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        if self.base64 {
            return sender.text(format!("{channel}{}", STANDARD.encode(bytes))).await;
        }
        sender.binary([&[channel], bytes].concat()).await
    }

    /// Channel and content of a message.
    fn take_apart(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = message.into_data();
        if bytes.is_empty() {
            return None;
        }
        let channel = bytes.split_to(1)[0];
        if !self.base64 {
            return Some((channel, bytes));
        }
        let channel = channel.checked_sub(b'0').filter(|channel| *channel <= 9)?;
        Some((channel, STANDARD.decode(&bytes).ok()?.into()))
    }
}

/// Runs the process until it ends or the client goes away.
pub(super) async fn run(upgrade: OnUpgrade, protocol: Protocol, session: Session) {
    let Ok(socket) = websocket::start(upgrade).await else {
        return;
    };
    let wants = session.wants;
    let (mut running, command) = session.start();
    let stdin = std::mem::replace(&mut running.stdin, mpsc::channel(1).0);
    let resize = running.resize.clone();
    let input = receive(socket.incoming, protocol, wants.stdin.then_some(stdin), &resize);
    let output = async {
        // The server begins with an empty message on standard output, as captured.
        protocol.send(&socket.sender, STDOUT, &[]).await?;
        while let Some((channel, bytes)) = running.output.recv().await {
            let (channel, wanted) = match channel {
                Channel::Stdout => (STDOUT, wants.stdout),
                Channel::Stderr => (STDERR, wants.stderr),
            };
            if wanted {
                protocol.send(&socket.sender, channel, &bytes).await?;
            }
        }
        Ok::<(), Gone>(())
    };
    let finished = tokio::select! {
        sent = output => sent.is_ok(),
        () = input => false,
    };
    if finished {
        let exit = running.exit().await;
        let report = if protocol.version >= 4 {
            let reporter = if protocol.version == 5 { Reporter::ApiServer } else { Reporter::Runtime };
            Some(outcome::status(&exit, &command, reporter).to_json())
        } else {
            outcome::text(&exit, &command).map(String::into_bytes)
        };
        if let Some(report) = report {
            // A client that is gone needs no report.
            let _ = protocol.send(&socket.sender, ERROR, &report).await;
        }
        let _ = socket.sender.close().await;
    }
}

/// Hands on what the client sends, until it goes away.
async fn receive(
    mut incoming: mpsc::Receiver<Message>,
    protocol: Protocol,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: &watch::Sender<Size>,
) {
    while let Some(message) = incoming.recv().await {
        match protocol.take_apart(message) {
            Some((STDIN, bytes)) if !bytes.is_empty() => {
                if let Some(stdin) = &stdin {
                    // The process does not read any more: what comes is dropped.
                    let _ = stdin.send(bytes).await;
                }
            }
            Some((RESIZE, bytes)) => {
                if let Some(size) = size(&bytes) {
                    resize.send_replace(size);
                }
            }
            Some((CLOSE, channel)) if protocol.version >= 5 && *channel == [STDIN] => stdin = None,
            _ => {}
        }
    }
}

/// `{"Width":80,"Height":24}`.
pub(super) fn size(bytes: &[u8]) -> Option<Size> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let number = |key: &str| u16::try_from(value[key].as_u64()?).ok();
    Some(Size { rows: number("Height")?, columns: number("Width")? })
}
