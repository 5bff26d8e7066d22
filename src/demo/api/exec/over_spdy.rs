//! Sessions over SPDY: one stream for each of error, stdin, stdout, stderr and resize
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand/httpstream.go`).

use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, watch};

use super::{
    Session, Wants,
    outcome::{self, Reporter},
    over_websocket::size,
};
use crate::demo::api::{
    body::Gone,
    process::{Channel, Exit, Running, Size},
    spdy::{Connection, Stream, StreamSender},
};

/// How long a client may take to open its streams (`streamCreationTimeout`).
const STREAMS_DEADLINE: Duration = Duration::from_secs(30);

/// A version of the protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Protocol {
    name: &'static str,
    version: u8,
}

const PROTOCOLS: &[Protocol] = &[
    Protocol { name: "v4.channel.k8s.io", version: 4 },
    Protocol { name: "v3.channel.k8s.io", version: 3 },
    Protocol { name: "v2.channel.k8s.io", version: 2 },
    Protocol { name: "channel.k8s.io", version: 1 },
];
const NAMES: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

impl Protocol {
    /// The client's first choice that is known; the oldest for a client that offers none. Errors: what is known.
    pub fn choose(offered: &[String]) -> Result<Self, &'static [&'static str]> {
        let oldest = Self { name: "channel.k8s.io", version: 1 };
        if offered.is_empty() {
            return Ok(oldest);
        }
        let chosen = offered.iter().find_map(|name| PROTOCOLS.iter().find(|protocol| protocol.name == name));
        chosen.copied().ok_or(NAMES)
    }

    /// The name to answer with.
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// The streams of a session.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Runs the process until it ends or the client goes away.
pub(super) async fn run(upgrade: OnUpgrade, protocol: Protocol, session: Session) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut connection = Connection::new(TokioIo::new(upgraded));
    let wants = session.wants;
    let opened = tokio::time::timeout(STREAMS_DEADLINE, Streams::accept(&mut connection, wants, protocol)).await;
    let Ok(Some(streams)) = opened else { return };
    let (running, command) = session.start();
    let finished = tokio::select! {
        finished = serve(streams, running, protocol, &command) => finished.is_ok(),
        () = connection.ended() => false,
    };
    if finished {
        connection.close().await;
    }
}

/// Carries input and output, then the report. All that is open then is reset.
async fn serve(mut streams: Streams, mut running: Running, protocol: Protocol, command: &[String]) -> Result<(), Gone> {
    let stdin = std::mem::replace(&mut running.stdin, mpsc::channel(1).0);
    let senders = Senders::of(&streams);
    let resize = running.resize.clone();
    let exit = {
        let input = receive(&mut streams, stdin, &resize);
        let output = async {
            while let Some((channel, bytes)) = running.output.recv().await {
                if let Some(sender) = senders.output(channel) {
                    sender.data(bytes).await?;
                }
            }
            Ok::<Exit, Gone>(running.exit().await)
        };
        tokio::select! {
            exit = output => exit?,
            never = async { input.await; std::future::pending().await } => never,
        }
    };
    let ran = matches!(exit, Exit::Code(_));
    if ran {
        for sender in senders.outputs() {
            sender.finish().await?;
        }
    }
    if let Some(error) = &senders.error {
        let report = if protocol.version >= 4 {
            Some(outcome::status(&exit, command, Reporter::Runtime).to_json())
        } else {
            outcome::text(&exit, command).map(String::into_bytes)
        };
        if let Some(report) = report {
            error.data(report).await?;
        }
    }
    for sender in senders.open_at_the_end(ran) {
        sender.reset().await?;
    }
    Ok(())
}

/// Hands on what the client sends.
async fn receive(streams: &mut Streams, stdin: mpsc::Sender<Bytes>, resize: &watch::Sender<Size>) {
    let (input, sizes) = (streams.stdin.as_mut(), streams.resize.as_mut());
    let copy_stdin = async move {
        if let Some(stream) = input {
            while let Some(bytes) = stream.input.recv().await {
                // The process does not read any more: what comes is dropped.
                let _ = stdin.send(bytes).await;
            }
        }
    };
    let copy_sizes = async move {
        if let Some(stream) = sizes {
            while let Some(bytes) = stream.input.recv().await {
                if let Some(size) = size(&bytes) {
                    resize.send_replace(size);
                }
            }
        }
    };
    tokio::join!(copy_stdin, copy_sizes);
}

impl Streams {
    /// Waits for every stream the request asked for; nothing if the connection ends before.
    async fn accept(connection: &mut Connection, wants: Wants, protocol: Protocol) -> Option<Self> {
        let mut streams = Self::default();
        while !streams.complete(wants, protocol) {
            let stream = connection.accept().await?;
            let slot = match stream.header("streamtype") {
                Some("error") => &mut streams.error,
                Some("stdin") => &mut streams.stdin,
                Some("stdout") => &mut streams.stdout,
                Some("stderr") => &mut streams.stderr,
                Some("resize") => &mut streams.resize,
                _ => {
                    stream.sender().reset().await.ok()?;
                    continue;
                }
            };
            *slot = Some(stream);
        }
        Some(streams)
    }

    fn complete(&self, wants: Wants, protocol: Protocol) -> bool {
        self.error.is_some()
            && self.stdin.is_some() >= wants.stdin
            && self.stdout.is_some() >= wants.stdout
            && self.stderr.is_some() >= wants.stderr
            && self.resize.is_some() >= (wants.tty && protocol.version >= 3)
    }
}

/// The writing sides.
struct Senders {
    error: Option<StreamSender>,
    stdin: Option<StreamSender>,
    stdout: Option<StreamSender>,
    stderr: Option<StreamSender>,
    resize: Option<StreamSender>,
}

impl Senders {
    fn of(streams: &Streams) -> Self {
        let sender = |stream: &Option<Stream>| stream.as_ref().map(Stream::sender);
        Self {
            error: sender(&streams.error),
            stdin: sender(&streams.stdin),
            stdout: sender(&streams.stdout),
            stderr: sender(&streams.stderr),
            resize: sender(&streams.resize),
        }
    }

    fn outputs(&self) -> Vec<&StreamSender> {
        [&self.stdout, &self.stderr].into_iter().flatten().collect()
    }

    /// What the server has not finished: the outputs only if a process `ran`.
    fn open_at_the_end(&self, ran: bool) -> Vec<&StreamSender> {
        let mut open: Vec<&StreamSender> = [&self.error, &self.stdin, &self.resize].into_iter().flatten().collect();
        if !ran {
            open.extend(self.outputs());
        }
        open
    }

    fn output(&self, channel: Channel) -> Option<&StreamSender> {
        match channel {
            Channel::Stdout => self.stdout.as_ref(),
            Channel::Stderr => self.stderr.as_ref(),
        }
    }
}
