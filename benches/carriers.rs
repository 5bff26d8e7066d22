//! What the carriers and the wire protocol cost beside bare quinn with the same windows: a stream's first byte, small
//! exchanges at several in flight, and one stream in bulk. Both ends run in this process, each on a thread of its own.

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/run.rs"]
mod run;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use qtunnel::carrier::{
    CongestionControl, Connection, FrameReceiver, FrameSender, QuicDialer, QuicListener, QuicSettings, ReceivedBody,
    TcpDialer, TcpSettings, accepted_over_tcp, send_body,
};
use qtunnel::pki::{
    AgentKey, AgentState, DirectoryStore, HostName, StubKeys, tcp_tunnel_client_config, tcp_tunnel_server_config,
    tunnel_client_config, tunnel_server_config,
};
use qtunnel::threads::Threads;
use qtunnel::wire::{ErrorCode, Frame, FrameReader, Identity, RequestHead, ResponseHead, StreamKind};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BULK: usize = 256 << 20;
const PIECE: usize = 64 * 1024;
const SMALL: usize = 1024;
const IN_FLIGHT: [usize; 3] = [1, 64, 512];

/// How often the table measures each; it shows the medians.
const ROUNDS: usize = 5;

/// The two ends of one connection. The stub's end opens streams, the agent's serves them.
enum Pair {
    /// quinn's own connections, set up as the QUIC carrier's.
    Bare { stub: quinn::Connection, _agent: quinn::Connection, _endpoints: [quinn::Endpoint; 2] },
    /// A carrier.
    Carrier { stub: Connection, _agent: Connection },
}

/// One of the stub's ends, to make exchanges on.
#[derive(Clone)]
enum Client {
    Bare(quinn::Connection),
    Carrier(Connection),
}

impl Pair {
    fn client(&self) -> Client {
        match self {
            Self::Bare { stub, .. } => Client::Bare(stub.clone()),
            Self::Carrier { stub, .. } => Client::Carrier(stub.clone()),
        }
    }
}

impl Client {
    /// Asks for so many bytes and reads them; how many came.
    async fn fetch(self, length: usize) -> usize {
        match self {
            Self::Bare(connection) => fetch_bare(&connection, length, usize::MAX).await,
            Self::Carrier(connection) => fetch(&connection, length, usize::MAX).await,
        }
    }

    /// Asks for a small answer and reads its first piece.
    async fn first_byte(self) -> usize {
        match self {
            Self::Bare(connection) => fetch_bare(&connection, SMALL, 1).await,
            Self::Carrier(connection) => fetch(&connection, SMALL, 1).await,
        }
    }
}

/// Where the ends run: each on one thread, as in the programs.
struct Ends {
    stub: Runtime,
    agent: Runtime,
}

impl Ends {
    fn new() -> Self {
        let agent = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { stub: Threads::ONE.runtime().unwrap(), agent }
    }

    /// What is compared, by name. Bare quinn has its own default, Cubic, and the carrier's is BBR.
    fn contenders(&self) -> [(&'static str, Pair); 4] {
        let agents = self.agent.handle();
        self.stub.block_on(async {
            [
                ("bare quinn", bare_pair(agents).await),
                ("quic, Cubic", quic_pair(agents, CongestionControl::Cubic).await),
                ("quic, BBR", quic_pair(agents, CongestionControl::Bbr).await),
                ("tcp-yamux", tcp_pair(agents).await),
            ]
        })
    }
}

struct Tls {
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

#[derive(Clone, Copy, PartialEq)]
enum Over {
    Quic,
    Tcp,
}

fn tls(over: Over) -> Tls {
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
    let (server, client) = match over {
        Over::Quic => (tunnel_server_config(keys.server(), agents), tunnel_client_config(&credentials)),
        Over::Tcp => (tcp_tunnel_server_config(keys.server(), agents), tcp_tunnel_client_config(&credentials)),
    };
    Tls { server: Arc::new(server.unwrap()), client: Arc::new(client.unwrap()) }
}

async fn quic_pair(agents: &Handle, congestion: CongestionControl) -> Pair {
    let tls = tls(Over::Quic);
    let settings = QuicSettings { congestion, ..QuicSettings::default() };
    let listener = QuicListener::bind("127.0.0.1:0".parse().unwrap(), tls.server, &settings).unwrap();
    let address = listener.local_address().unwrap();
    let dialing = agents.spawn(async move {
        let dialer = QuicDialer::new(tls.client, settings).unwrap();
        dialer.dial(address, "127.0.0.1").await.unwrap()
    });
    let (agent, stub) =
        tokio::join!(dialing, async { listener.accept().await.unwrap().handshake().await.unwrap().into_tunnel() });
    carrier_pair(stub, agent.unwrap(), agents)
}

async fn tcp_pair(agents: &Handle) -> Pair {
    let tls = tls(Over::Tcp);
    let settings = TcpSettings::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialer = TcpDialer::new(tls.client, settings.clone());
    let dialing = agents.spawn(async move { dialer.dial(address, "127.0.0.1").await.unwrap() });
    let (agent, stub) = tokio::join!(dialing, async {
        let socket = listener.accept().await.unwrap().0;
        let socket = tokio_rustls::TlsAcceptor::from(tls.server).accept(socket).await.unwrap();
        accepted_over_tcp(socket, &settings).unwrap()
    });
    carrier_pair(stub, agent.unwrap(), agents)
}

fn carrier_pair(stub: Connection, agent: Connection, agents: &Handle) -> Pair {
    stub.trust();
    agent.permit_streams(4096);
    let serving = agent.clone();
    agents.spawn(async move {
        while let Ok((send, recv)) = serving.accept().await {
            let sender = FrameSender::new(send);
            let receiver = FrameReceiver::new(recv, FrameReader::for_accepted_stream());
            tokio::spawn(serve(sender, receiver));
        }
    });
    Pair::Carrier { stub, _agent: agent }
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

/// Reads at least `enough` bytes of an answer, or all of it.
async fn fetch(connection: &Connection, length: usize, enough: usize) -> usize {
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
    while received < enough
        && let Some(frame) = body.frame().await
    {
        received += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    received
}

async fn bare_pair(agents: &Handle) -> Pair {
    let tls = tls(Over::Quic);
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
    let address = server.local_addr().unwrap();
    let connecting = agents.spawn(async move {
        let client = endpoint(None, settings.socket_buffer);
        let agent = client.connect_with(client_config, address, "127.0.0.1").unwrap().await.unwrap();
        (client, agent)
    });
    let (connected, stub) = tokio::join!(connecting, async { server.accept().await.unwrap().await.unwrap() });
    let (client, agent) = connected.unwrap();
    let serving = agent.clone();
    agents.spawn(async move {
        while let Ok((send, recv)) = serving.accept_bi().await {
            tokio::spawn(serve_bare(send, recv));
        }
    });
    Pair::Bare { stub, _agent: agent, _endpoints: [server, client] }
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

/// [`fetch`] without the carrier.
async fn fetch_bare(connection: &quinn::Connection, length: usize, enough: usize) -> usize {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&length.to_be_bytes()).await.unwrap();
    send.finish().unwrap();
    let mut received = 0;
    while received < enough
        && let Some(chunk) = recv.read_chunk(PIECE, true).await.unwrap()
    {
        received += chunk.bytes.len();
    }
    received
}

/// Makes `count` exchanges with so many in flight; how long they took.
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

fn bulk(criterion: &mut Criterion) {
    let ends = Ends::new();
    let mut group = criterion.benchmark_group("one stream in bulk");
    group.throughput(Throughput::Bytes(BULK as u64)).sample_size(10);
    for (name, pair) in &ends.contenders() {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| assert_eq!(ends.stub.block_on(pair.client().fetch(BULK)), BULK));
        });
    }
}

fn first_byte(criterion: &mut Criterion) {
    let ends = Ends::new();
    let mut group = criterion.benchmark_group("a stream's first byte");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for (name, pair) in &ends.contenders() {
        let once = || pair.client().first_byte();
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|count| ends.stub.block_on(exchanges(1, count, once)));
        });
    }
}

fn small(criterion: &mut Criterion) {
    let ends = Ends::new();
    let contenders = ends.contenders();
    for in_flight in IN_FLIGHT {
        let mut group = criterion.benchmark_group(format!("small exchanges, {in_flight} in flight"));
        group.throughput(Throughput::Elements(1)).sample_size(10);
        for (name, pair) in &contenders {
            let once = || pair.client().fetch(SMALL);
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|count| ends.stub.block_on(exchanges(in_flight, count, once)));
            });
        }
    }
}

/// One table with ratios and CPU.
fn report() {
    let ends = Ends::new();
    let contenders = ends.contenders();
    println!(
        "\n| what | bare quinn | quic, Cubic | quic, BBR | tcp-yamux | Cubic / bare | BBR / bare | BBR / tcp |\n{}",
        "| --- ".repeat(8) + "|"
    );
    let [time, cpu] = medians(&contenders, |client| {
        let measured = measure(|| ends.stub.block_on(exchanges(1, 2_000, || client.clone().first_byte())));
        measured.map(|seconds| seconds * 1e6 / 2_000.0)
    });
    row("a stream's first byte: us", time);
    row("the same: CPU, us", cpu);
    for in_flight in IN_FLIGHT {
        let count = if in_flight == 1 { 4_000 } else { 30_000 };
        let [rate, cpu] = medians(&contenders, |client| {
            let once = || client.clone().fetch(SMALL);
            let [time, cpu] = measure(|| ends.stub.block_on(exchanges(in_flight, count, once)));
            [count as f64 / time, cpu * 1e6 / count as f64]
        });
        row(&format!("small exchanges, {in_flight} in flight: per second"), rate);
        row("the same: CPU each, us", cpu);
    }
    let [rate, cpu] = medians(&contenders, |client| {
        let download = || {
            let began = Instant::now();
            assert_eq!(ends.stub.block_on(client.clone().fetch(BULK)), BULK);
            began.elapsed()
        };
        let [time, cpu] = measure(download);
        [BULK as f64 * 8.0 / time / 1e9, cpu / (BULK as f64 / f64::from(1 << 30))]
    });
    row("one stream in bulk: Gbit/s", rate);
    row("the same: CPU s/GiB", cpu);
}

/// Time and CPU time, in seconds.
fn measure(load: impl FnOnce() -> Duration) -> [f64; 2] {
    let before = cpu::time();
    let elapsed = load();
    [elapsed, cpu::time() - before].map(|duration| duration.as_secs_f64())
}

/// Measures all in turns, after a round to warm up, so that what disturbs one disturbs each. Two figures of each.
fn medians(contenders: &[(&str, Pair); 4], measure: impl Fn(&Client) -> [f64; 2]) -> [[f64; 4]; 2] {
    let round = || contenders.each_ref().map(|(_, pair)| measure(&pair.client()));
    round();
    let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    let median = |figure: usize, who: usize| median_of(rounds.iter().map(|round| round[who][figure]).collect());
    [0, 1].map(|figure| [0, 1, 2, 3].map(|who| median(figure, who)))
}

/// The value in the middle, which one disturbed round does not change.
fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, [bare, cubic, bbr, tcp]: [f64; 4]) {
    let [cubic_to_bare, bbr_to_bare, bbr_to_tcp] = [cubic / bare, bbr / bare, bbr / tcp];
    println!(
        "| {what} | {bare:.2} | {cubic:.2} | {bbr:.2} | {tcp:.2} | {cubic_to_bare:.2} | {bbr_to_bare:.2} | {bbr_to_tcp:.2} |"
    );
}

criterion_group!(benches, first_byte, small, bulk);

fn main() {
    run::run(benches, report);
}
