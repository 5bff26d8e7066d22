//! What the carrier and the wire protocol cost beside bare quinn with the same windows: one stream in bulk, and small
//! exchanges at several in flight. Both ends run in this process.

#[path = "support/cpu.rs"]
mod cpu;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use qtunnel::carrier::{
    Connection, FrameReceiver, FrameSender, QuicDialer, QuicListener, QuicSettings, ReceivedBody, send_body,
};
use qtunnel::pki::{
    AgentKey, AgentState, DirectoryStore, HostName, StubKeys, tunnel_client_config, tunnel_server_config,
};
use qtunnel::wire::{ErrorCode, Frame, FrameReader, Identity, RequestHead, ResponseHead, StreamKind};
use tokio::runtime::Runtime;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BULK: usize = 256 << 20;
const PIECE: usize = 64 * 1024;
const SMALL: usize = 1024;
const IN_FLIGHT: [usize; 3] = [1, 64, 512];

/// The two ends of one connection. The stub's end opens streams, the agent's serves them.
struct Pair {
    stub: Connection,
    _agent: Connection,
}

/// The same two ends without the carrier: quinn's own connections, set up alike.
struct BarePair {
    stub: quinn::Connection,
    _agent: quinn::Connection,
    _endpoints: [quinn::Endpoint; 2],
}

struct Tls {
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

fn tls() -> Tls {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let loopback = HostName::Ip("127.0.0.1".parse().unwrap());
    let keys = StubKeys::create(Arc::new(DirectoryStore::new(&directory.path().join("stub"))), &[loopback], None, now)
        .unwrap();
    let key = AgentKey::generate().unwrap();
    let identity = "qtunnel://bench/agent/bench".parse().unwrap();
    let request = key.signing_request().unwrap();
    let certificate = keys.agent_authority().issue_agent(&request, &identity, Duration::from_secs(3600), now).unwrap();
    let state = AgentState::open(&directory.path().join("agent")).unwrap();
    let authority = keys.server_authority().certificate_der().clone();
    let credentials = state.store(&key, vec![certificate], authority).unwrap();
    let agents = std::slice::from_ref(keys.agent_authority().certificate_der());
    Tls {
        server: Arc::new(tunnel_server_config(keys.server(), agents).unwrap()),
        client: Arc::new(tunnel_client_config(&credentials).unwrap()),
    }
}

async fn pair() -> Pair {
    let tls = tls();
    let settings = QuicSettings::default();
    let listener = QuicListener::bind("127.0.0.1:0".parse().unwrap(), tls.server, &settings).unwrap();
    let address = listener.local_address().unwrap();
    let dialer = QuicDialer::new(tls.client, settings).unwrap();
    let (agent, stub) = tokio::join!(dialer.dial(address, "127.0.0.1"), async {
        listener.accept().await.unwrap().handshake().await.unwrap().into_tunnel()
    });
    let agent = agent.unwrap();
    agent.permit_streams(4096);
    let serving = agent.clone();
    tokio::spawn(async move {
        while let Ok((send, recv)) = serving.accept().await {
            let sender = FrameSender::new(send);
            let receiver = FrameReceiver::new(recv, FrameReader::for_accepted_stream());
            tokio::spawn(serve(sender, receiver));
        }
    });
    Pair { stub, _agent: agent }
}

/// Answers with as many bytes as the path says.
async fn serve(mut sender: FrameSender, mut receiver: FrameReceiver) {
    let Ok(Some(Frame::RequestHead(head))) = receiver.next_frame().await else { return };
    let length: usize = head.target.path()[1..].parse().unwrap();
    let answer = ResponseHead { status: StatusCode::OK, headers: HeaderMap::new() };
    sender.queue(&Frame::ResponseHead(Box::new(answer))).unwrap();
    let pieces = pieces(length).map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece)));
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let _ = send_body(body, &mut sender, ErrorCode::Internal).await;
}

fn pieces(length: usize) -> impl Iterator<Item = Bytes> {
    let piece = Bytes::from(vec![7; PIECE.min(length)]);
    let whole = length / piece.len();
    std::iter::repeat_n(piece, whole)
}

async fn fetch(connection: &Connection, length: usize) -> usize {
    let (send, recv) = connection.open().await.unwrap();
    let head = RequestHead {
        audit_id: "09a49b64-7a3e-4c0f-9d5e-3f1c2b4a5d6e".to_owned(),
        method: Method::GET,
        target: format!("/{length}").parse().unwrap(),
        headers: HeaderMap::new(),
        identity: Identity::named("bench"),
        requested: None,
        bearer_token: None,
        upgrade: None,
        client_address: None,
    };
    let mut sender = FrameSender::open(send, StreamKind::Request);
    sender.queue_request_head(&head).unwrap();
    sender.finish().await.unwrap();
    let mut receiver = FrameReceiver::new(recv, FrameReader::for_response_to(&head));
    assert!(matches!(receiver.next_frame().await, Ok(Some(Frame::ResponseHead(_)))));
    let mut body = ReceivedBody::new(receiver, None);
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    received
}

async fn bare_pair() -> BarePair {
    let tls = tls();
    let settings = QuicSettings::default();
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(settings.stream_window.into())
        .send_window(settings.send_window)
        .max_concurrent_bidi_streams(4096u32.into());
    let transport = Arc::new(transport);
    let server_crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls.server).unwrap();
    let mut server_config = quinn::ServerConfig::with_crypto(Arc::new(server_crypto));
    server_config.transport_config(transport.clone());
    let client_crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.client).unwrap();
    let mut client_config = quinn::ClientConfig::new(Arc::new(client_crypto));
    client_config.transport_config(transport);
    let server = endpoint(Some(server_config), settings.socket_buffer);
    let client = endpoint(None, settings.socket_buffer);
    let connecting = client.connect_with(client_config, server.local_addr().unwrap(), "127.0.0.1").unwrap();
    let (agent, stub) = tokio::join!(connecting, async { server.accept().await.unwrap().await.unwrap() });
    let agent = agent.unwrap();
    let serving = agent.clone();
    tokio::spawn(async move {
        while let Ok((send, recv)) = serving.accept_bi().await {
            tokio::spawn(serve_bare(send, recv));
        }
    });
    BarePair { stub, _agent: agent, _endpoints: [server, client] }
}

fn endpoint(server: Option<quinn::ServerConfig>, buffer: usize) -> quinn::Endpoint {
    let socket = std::net::UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let options = socket2::SockRef::from(&socket);
    let _ = options.set_recv_buffer_size(buffer);
    let _ = options.set_send_buffer_size(buffer);
    quinn::Endpoint::new(quinn::EndpointConfig::default(), server, socket, Arc::new(quinn::TokioRuntime)).unwrap()
}

async fn serve_bare(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let request = recv.read_to_end(64).await.unwrap();
    let length = usize::from_be_bytes(request.try_into().unwrap());
    for piece in pieces(length) {
        if send.write_chunk(piece).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

async fn fetch_bare(connection: &quinn::Connection, length: usize) -> usize {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&length.to_be_bytes()).await.unwrap();
    send.finish().unwrap();
    let mut received = 0;
    while let Some(chunk) = recv.read_chunk(PIECE, true).await.unwrap() {
        received += chunk.bytes.len();
    }
    received
}

/// Makes `count` small exchanges with so many in flight; how long they took.
async fn exchanges<F>(in_flight: usize, count: u64, exchange: impl Fn() -> F) -> Duration
where
    F: Future<Output = usize> + Send + 'static,
{
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..count {
        if running.len() == in_flight {
            assert_eq!(running.join_next().await.unwrap().unwrap(), SMALL);
        }
        running.spawn(exchange());
    }
    while running.join_next().await.is_some() {}
    began.elapsed()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn bulk(criterion: &mut Criterion) {
    let runtime = runtime();
    let (quic, bare) = runtime.block_on(async { tokio::join!(pair(), bare_pair()) });
    let mut group = criterion.benchmark_group("one stream in bulk");
    group.throughput(Throughput::Bytes(BULK as u64)).sample_size(10);
    group.bench_function("quic", |bencher| {
        bencher.iter(|| assert_eq!(runtime.block_on(fetch(&quic.stub, BULK)), BULK));
    });
    group.bench_function("bare quinn", |bencher| {
        bencher.iter(|| assert_eq!(runtime.block_on(fetch_bare(&bare.stub, BULK)), BULK));
    });
}

fn small(criterion: &mut Criterion) {
    let runtime = runtime();
    let (quic, bare) = runtime.block_on(async { tokio::join!(pair(), bare_pair()) });
    for in_flight in IN_FLIGHT {
        let mut group = criterion.benchmark_group(format!("small exchanges, {in_flight} in flight"));
        group.throughput(Throughput::Elements(1)).sample_size(10);
        group.bench_function("quic", |bencher| {
            bencher.iter_custom(|count| runtime.block_on(small_quic(&quic, in_flight, count)))
        });
        group.bench_function("bare quinn", |bencher| {
            bencher.iter_custom(|count| runtime.block_on(small_bare(&bare, in_flight, count)));
        });
    }
}

async fn small_quic(pair: &Pair, in_flight: usize, count: u64) -> Duration {
    exchanges(in_flight, count, || {
        let connection = pair.stub.clone();
        async move { fetch(&connection, SMALL).await }
    })
    .await
}

async fn small_bare(pair: &BarePair, in_flight: usize, count: u64) -> Duration {
    exchanges(in_flight, count, || {
        let connection = pair.stub.clone();
        async move { fetch_bare(&connection, SMALL).await }
    })
    .await
}

/// One table with ratios and CPU.
fn report() {
    let runtime = runtime();
    let (quic, bare) = runtime.block_on(async { tokio::join!(pair(), bare_pair()) });
    println!("\n| what | bare quinn | QUIC carrier | ratio |\n| --- | --- | --- | --- |");
    let mut rates = Vec::new();
    for quic_carrier in [false, true, false, true] {
        let (began, cpu) = (Instant::now(), cpu::time());
        let received = match quic_carrier {
            true => runtime.block_on(fetch(&quic.stub, 2 * BULK)),
            false => runtime.block_on(fetch_bare(&bare.stub, 2 * BULK)),
        };
        let bits = received as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9;
        rates.push((bits, (cpu::time() - cpu).as_secs_f64() / (received as f64 / f64::from(1 << 30))));
    }
    // The first two are the warm-up.
    row("one stream in bulk: Gbit/s", rates[2].0, rates[3].0);
    row("the same: CPU s/GiB", rates[2].1, rates[3].1);
    for in_flight in IN_FLIGHT {
        let count = if in_flight == 1 { 5_000 } else { 60_000 };
        let measure = |quic_carrier: bool| {
            let cpu = cpu::time();
            let elapsed = match quic_carrier {
                true => runtime.block_on(small_quic(&quic, in_flight, count)),
                false => runtime.block_on(small_bare(&bare, in_flight, count)),
            };
            (count as f64 / elapsed.as_secs_f64(), (cpu::time() - cpu).as_secs_f64() * 1e6 / count as f64)
        };
        let (without, with) = (measure(false), measure(true));
        row(&format!("small exchanges, {in_flight} in flight: per second"), without.0, with.0);
        row("the same: CPU each, us", without.1, with.1);
    }
}

fn row(what: &str, bare: f64, carrier: f64) {
    println!("| {what} | {bare:.2} | {carrier:.2} | {:.2} |", carrier / bare);
}

criterion_group!(benches, bulk, small);

fn main() {
    let listing = std::env::args().any(|argument| argument == "--list" || argument == "--test");
    if std::env::var_os("QTUNNEL_BENCH_REPORT_ONLY").is_none() {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    if !listing {
        report();
    }
}
