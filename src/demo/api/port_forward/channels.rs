//! The older form over WebSocket, which kube-rs speaks: two channels for each port named in the URL, data and error,
//! each beginning with the port number (`k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`).

use std::sync::Arc;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::{BUFFER, refused};
use crate::demo::api::{
    body::Gone,
    pods::Container,
    request::Query,
    services,
    status::ApiError,
    websocket::{self, MessageSender},
};

/// Ports one request may name: their channels are numbered in one byte.
const MAX_PORTS: usize = 100;

/// The ports of the query. Errors: 400 for none, too many, or what is no port.
pub(super) fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let named = query.all("port").chain(query.all("ports")).flat_map(|list| list.split(','));
    let ports: Option<Vec<u16>> = named.map(|port| port.parse().ok().filter(|port| *port > 0)).collect();
    ports
        .filter(|ports| !ports.is_empty() && ports.len() <= MAX_PORTS)
        .ok_or_else(|| ApiError::bad_request("query parameter \"port\" is required"))
}

/// Forwards until every service has ended or the client gone.
pub(super) async fn run(upgrade: OnUpgrade, ports: Vec<u16>, container: &Arc<Container>) -> Result<(), Gone> {
    let mut socket = websocket::start(upgrade).await?;
    let (mut uploads, mut downloads) = (Vec::new(), JoinSet::new());
    for (data, port) in (0_u8..).step_by(2).zip(ports) {
        for channel in [data, data + 1] {
            socket.sender.binary([&[channel], port.to_le_bytes().as_slice()].concat()).await?;
        }
        match services::connect(port) {
            Some(service) => {
                let (reader, writer) = tokio::io::split(service);
                uploads.push(Some(writer));
                downloads.spawn(download(reader, socket.sender.clone(), data));
            }
            None => {
                uploads.push(None);
                let message = refused(port, &container.hostname);
                socket.sender.binary([&[data + 1], message.as_bytes()].concat()).await?;
            }
        }
    }
    let upload = async {
        while let Some(message) = socket.incoming.recv().await {
            hand_on(message, &mut uploads).await;
        }
    };
    let all_ended = async { while downloads.join_next().await.is_some() {} };
    tokio::select! {
        () = upload => Ok(()),
        () = all_ended => socket.sender.close().await,
    }
}

/// Even channels carry data to the service; the client has nothing to say on the others.
async fn hand_on(message: Message, uploads: &mut [Option<WriteHalf<DuplexStream>>]) {
    let mut bytes = message.into_data();
    if bytes.is_empty() {
        return;
    }
    let channel = bytes.split_to(1)[0];
    if channel.is_multiple_of(2)
        && let Some(Some(service)) = uploads.get_mut(usize::from(channel / 2))
    {
        // A service that has ended takes no more: what comes is dropped.
        let _ = service.write_all(&bytes).await;
    }
}

async fn download(mut service: ReadHalf<DuplexStream>, sender: MessageSender, channel: u8) -> Result<(), Gone> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match service.read(&mut buffer).await {
            // `read` returns at most the length of the buffer.
            Ok(count) if count > 0 => sender.binary(Bytes::from([&[channel], &buffer[..count]].concat())).await?,
            _ => return Ok(()),
        }
    }
}
