//! Transfers without an end.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{bail, ensure};
use http_body_util::BodyExt;
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
    let mut meter = Meter { listener: Listener::new(&user.recorder, Hears::Stream), user: &user, was_open: false };
    loop {
        let Err(_broken_off) = match kind {
            Bulk::Download => download(&mut meter).await,
            Bulk::PortForward => port_forward(&mut meter).await,
        };
        if meter.was_open {
            user.recorder.stream_lost();
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Reads what a plain TCP server sends; nothing is said of it but the bytes.
pub(super) async fn run_beside(user: User, server: SocketAddr) {
    let Ok(mut socket) = TcpStream::connect(server).await else { return };
    user.is_open().await;
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        user.recorder.received(Transfer::Beside, read);
    }
}

/// Counts what comes through the tunnel.
struct Meter<'a> {
    user: &'a User,
    listener: Listener<'a>,
    was_open: bool,
}

impl Meter<'_> {
    async fn received(&mut self, bytes: usize) {
        self.user.recorder.received(Transfer::Tunnelled, bytes);
        self.listener.heard();
        if !self.was_open {
            self.was_open = true;
            self.user.is_open().await;
        }
    }
}

async fn download(meter: &mut Meter<'_>) -> anyhow::Result<Infallible> {
    let client = Client::connect(&meter.user.kubeconfig).await?;
    let mut body = client.body(&format!("/sample/bytes?n={ENDLESS}")).await?;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            meter.received(data.len()).await;
        }
    }
    bail!("the download has ended")
}

async fn port_forward(meter: &mut Meter<'_>) -> anyhow::Result<Infallible> {
    let mut socket = WebSocket::open(meter.user, &format!("{POD}/portforward?ports={PORT}"), PROTOCOL).await?;
    for _ in 0..2 {
        let (_, number) = socket.next().await?;
        ensure!(number.len() == PORT_NUMBER, "the port was not forwarded");
    }
    socket.send(DATA, format!("{ENDLESS}\n").as_bytes()).await?;
    loop {
        let (channel, bytes) = socket.next().await?;
        if channel == DATA {
            meter.received(bytes.len()).await;
        }
    }
}
