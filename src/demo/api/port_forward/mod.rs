//! `portforward` over SPDY, and over SPDY within a WebSocket
//! (`k8s.io/kubelet/pkg/cri/streaming/portforward/httpstream.go`).

mod channels;

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::Instant,
};

use super::{
    Open, Shared,
    body::Gone,
    exec::{accept_spdy, is_spdy_requested, offered_spdy_protocols, refuse_spdy_protocol},
    pods::Container,
    request::Query,
    response::Response,
    server::{ApiRequest, ConnectionHandle},
    services,
    spdy::{Connection, Stream},
    status::ApiError,
    websocket,
};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS_PROTOCOL: &str = "v4.channel.k8s.io";
/// How long the second stream of a pair may take (`streamCreationTimeout`).
const PAIR_DEADLINE: Duration = Duration::from_secs(30);
const BUFFER: usize = 32 * 1024;

/// How connections are carried.
enum Carrier {
    Spdy,
    SpdyInWebSocket,
    Channels { ports: Vec<u16> },
}

/// Upgrades to a session of forwarded connections. Errors: 400 for a request that is no upgrade.
pub(super) fn answer(
    api: &Arc<Shared>,
    connection: &ConnectionHandle,
    container: Arc<Container>,
    query: &Query,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let (response, carrier) = if websocket::is_requested(request.method(), headers) {
        let offered = websocket::offered_protocols(headers);
        let known = [TUNNEL_PROTOCOL, CHANNELS_PROTOCOL];
        let chosen = offered.iter().find_map(|protocol| known.into_iter().find(|known| known == protocol));
        let Some(protocol) = chosen else { return Ok(websocket::refuse_protocol()) };
        let carrier = match protocol {
            CHANNELS_PROTOCOL => Carrier::Channels { ports: channels::ports(query)? },
            _ => Carrier::SpdyInWebSocket,
        };
        (websocket::accept(headers, Some(protocol))?, carrier)
    } else if is_spdy_requested(headers) {
        if !offered_spdy_protocols(headers).iter().any(|protocol| protocol == PROTOCOL) {
            return Ok(refuse_spdy_protocol(headers, &[PROTOCOL]));
        }
        (accept_spdy(PROTOCOL), Carrier::Spdy)
    } else {
        return Err(ApiError::bad_request("Upgrade request required"));
    };
    let upgrade = hyper::upgrade::on(&mut *request);
    let (open, shutdown) = (Open::new(&api.counters.open_upgrades), connection.shutdown.clone());
    tokio::spawn(async move {
        let _open = open;
        tokio::select! {
            // The client went away.
            _ = run(upgrade, carrier, &container) => {}
            () = container.stopped.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(response)
}

async fn run(upgrade: OnUpgrade, carrier: Carrier, container: &Arc<Container>) -> Result<(), Gone> {
    match carrier {
        Carrier::Spdy => {
            let upgraded = upgrade.await.map_err(|_| Gone)?;
            run_spdy(Connection::new(TokioIo::new(upgraded)), container).await
        }
        Carrier::SpdyInWebSocket => {
            run_spdy(Connection::new(websocket::start_as_bytes(upgrade).await?), container).await
        }
        Carrier::Channels { ports } => channels::run(upgrade, ports, container).await,
    }
}

async fn run_spdy(mut connection: Connection, container: &Arc<Container>) -> Result<(), Gone> {
    let mut waiting = Waiting::default();
    let mut forwarded = JoinSet::new();
    while let Some(stream) = connection.accept().await {
        if let Some(pair) = waiting.add(stream).await? {
            let hostname = container.hostname.clone();
            forwarded.spawn(async move {
                // The client went away, which ends the connection as well.
                let _ = forward(pair, &hostname).await;
            });
        }
        while forwarded.try_join_next().is_some() {}
    }
    Ok(())
}

/// The two streams of one forwarded connection.
struct Pair {
    port: u16,
    error: Stream,
    data: Stream,
}

/// Streams whose partner has not come yet, by request id.
#[derive(Default)]
struct Waiting(HashMap<String, (Stream, Instant)>);

impl Waiting {
    /// Takes a stream; gives the pair it completes. What is no stream of a forwarded connection is reset.
    async fn add(&mut self, stream: Stream) -> Result<Option<Pair>, Gone> {
        self.forget_overdue().await?;
        let port = stream.header("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let is_error = match stream.header("streamtype") {
            Some("error") => true,
            Some("data") => false,
            _ => return stream.sender().reset().await.map(|()| None),
        };
        let Some(port) = port else {
            return stream.sender().reset().await.map(|()| None);
        };
        let id = request_id(&stream, is_error);
        match self.0.remove(&id) {
            None => {
                self.0.insert(id, (stream, Instant::now()));
                Ok(None)
            }
            Some((first, _)) if is_error => Ok(Some(Pair { port, error: stream, data: first })),
            Some((first, _)) => Ok(Some(Pair { port, error: first, data: stream })),
        }
    }

    async fn forget_overdue(&mut self) -> Result<(), Gone> {
        let overdue = self.0.iter().filter(|(_, (_, since))| since.elapsed() > PAIR_DEADLINE);
        let overdue: Vec<String> = overdue.map(|(id, _)| id.clone()).collect();
        for id in overdue {
            if let Some((stream, _)) = self.0.remove(&id) {
                stream.sender().reset().await?;
            }
        }
        Ok(())
    }
}

/// Clients that send no request id open the data stream right after the error stream.
fn request_id(stream: &Stream, is_error: bool) -> String {
    match stream.header("requestid") {
        Some(id) => id.to_owned(),
        None if is_error => stream.id().to_string(),
        None => stream.id().saturating_sub(2).to_string(),
    }
}

/// One forwarded connection: both directions, each ending by itself.
async fn forward(pair: Pair, hostname: &str) -> Result<(), Gone> {
    let Pair { port, error, mut data } = pair;
    let (error, sender) = (error.sender(), data.sender());
    let Some(service) = services::connect(port) else {
        sender.finish().await?;
        error.data(refused(port, hostname)).await?;
        return error.finish().await;
    };
    let (mut from_service, mut to_service) = tokio::io::split(service);
    let upload = async {
        while let Some(bytes) = data.input.recv().await {
            if to_service.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The service has gone: its own end says so.
        let _ = to_service.shutdown().await;
    };
    let download = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from_service.read(&mut buffer).await {
                // `read` returns at most the length of the buffer.
                Ok(count) if count > 0 => sender.data(buffer[..count].to_vec()).await?,
                _ => return sender.finish().await,
            }
        }
    };
    let ((), downloaded) = tokio::join!(upload, download);
    downloaded?;
    error.finish().await
}

/// Worded as captured from containerd.
fn refused(port: u16, hostname: &str) -> String {
    format!(
        "error forwarding port {port} to pod {hostname}, uid : failed to execute portforward in network namespace \"sample\": failed to connect to localhost:{port} inside namespace \"{hostname}\", IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found "
    )
}
