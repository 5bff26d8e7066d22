//! Transfers without an end.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{bail, ensure};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use qtunnel::demo::client::Client;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::websocket::WebSocket;
use super::{ENDLESS, POD, RETRY_INTERVAL, User};
use crate::record::{Hears, Listener, Transfer};
use crate::scenario::Bulk;

/// The port of a sample pod that sends as many bytes as the first line says.
const PORT: u16 = 19;

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;

/// Each direction of a forwarded port begins with its number, in a message of its own.
const PORT_NUMBER: usize = 2;

/// Downloads, and downloads again whenever that breaks off.
pub(super) async fn run(user: User, kind: Bulk) {
    let mut meter = Meter { listener: Listener::new(&user.recorder, Hears::Stream), user: &user };
    let mut told = user.once_open();
    loop {
        if let Ok(source) = Source::open(&user, kind).await {
            told.is_open().await;
            let Err(_broken_off) = source.read(&mut meter).await;
            user.recorder.stream_lost();
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Reads what a plain TCP server sends; nothing is said of it but the bytes.
pub(super) async fn run_beside(user: User, server: SocketAddr) {
    let Ok(mut socket) = TcpStream::connect(server).await else { return };
    user.once_open().is_open().await;
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        user.recorder.received(Transfer::Beside, read);
    }
}

/// Counts what comes through the tunnel.
struct Meter<'a> {
    user: &'a User,
    listener: Listener<'a>,
}

impl Meter<'_> {
    fn received(&mut self, bytes: usize) {
        self.user.recorder.received(Transfer::Tunnelled, bytes);
        self.listener.heard();
    }
}

/// Where bytes come from.
enum Source {
    Download(Incoming),
    PortForward(Box<WebSocket>),
}

impl Source {
    async fn open(user: &User, kind: Bulk) -> anyhow::Result<Self> {
        match kind {
            Bulk::Download => {
                let client = Client::connect(&user.kubeconfig).await?;
                Ok(Self::Download(client.body(&format!("/sample/bytes?n={ENDLESS}")).await?))
            }
            Bulk::PortForward => {
                let mut socket = WebSocket::open(user, &format!("{POD}/portforward?ports={PORT}"), PROTOCOL).await?;
                for _ in 0..2 {
                    let (_, number) = socket.next().await?;
                    ensure!(number.len() == PORT_NUMBER, "the port was not forwarded");
                }
                socket.send(DATA, format!("{ENDLESS}\n").as_bytes()).await?;
                Ok(Self::PortForward(Box::new(socket)))
            }
        }
    }

    async fn read(self, meter: &mut Meter<'_>) -> anyhow::Result<Infallible> {
        match self {
            Self::Download(mut body) => {
                while let Some(frame) = body.frame().await {
                    meter.received(frame?.into_data().map_or(0, |data| data.len()));
                }
                bail!("the download has ended")
            }
            Self::PortForward(mut socket) => loop {
                let (channel, bytes) = socket.next().await?;
                if channel == DATA {
                    meter.received(bytes.len());
                }
            },
        }
    }
}
