//! A QUIC connection between two ends of the carrier, over a path that fails: how long it takes until bytes flow again.
//!
//! What is measured is printed; what is asserted leaves room for a slow machine. `QTUNNEL_LONG_TESTS=1` adds the blackouts
//! of half a minute and more.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use qtunnel::carrier::{Connection, QuicDialer, QuicListener, QuicSettings, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use support::udp_relay::UdpRelay;

const PROTOCOL: &[u8] = b"qtunnel/1";
const DELAY: Duration = Duration::from_millis(25);
const DEADLINE: Duration = Duration::from_secs(30);

/// The longest time until bytes flow again, on a machine that is busy with other tests. The aim is one second.
const RECOVERED: Duration = Duration::from_secs(3);

/// Two ends and the path between them.
struct Pair {
    relay: UdpRelay,
    dialled: Connection,
    accepted: Connection,
    _listener: QuicListener,
}

impl Pair {
    async fn connect() -> Self {
        Self::connect_with(&QuicSettings::default()).await
    }

    async fn connect_with(settings: &QuicSettings) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert);
        let key = certified.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone());
        let mut server = server
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider);
        let mut client =
            client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![PROTOCOL.to_vec()];

        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = QuicListener::bind(any, Arc::new(server), settings).unwrap();
        let relay = UdpRelay::start(listener.local_address().unwrap(), DELAY);
        let dialer = QuicDialer::new(Arc::new(client), settings.clone()).unwrap();
        let accept = async { listener.accept().await.unwrap().handshake().await.unwrap().into_tunnel() };
        let dial = async { dialer.dial(relay.address, "127.0.0.1").await.unwrap() };
        let (accepted, dialled) = timeout(DEADLINE, async { tokio::join!(accept, dial) }).await.unwrap();
        Self { relay, dialled, accepted, _listener: listener }
    }

    /// A stream that both ends have; the end that opened it first.
    async fn stream(&self) -> [(SendStream, RecvStream); 2] {
        let (mut send, recv) = self.dialled.open().await.unwrap();
        send.write(&mut [Bytes::from_static(b"x")]).await.unwrap();
        let (accepted_send, mut accepted_recv) = self.accepted.accept().await.unwrap();
        assert!(read(&mut accepted_recv).await.is_some());
        [(send, recv), (accepted_send, accepted_recv)]
    }

    async fn dark_for(&self, duration: Duration) -> Instant {
        self.relay.black_out(true);
        sleep(duration).await;
        self.relay.black_out(false);
        Instant::now()
    }
}

async fn read(stream: &mut RecvStream) -> Option<Bytes> {
    std::future::poll_fn(|context| stream.poll_read(context)).await.unwrap()
}

/// Sends without a pause.
async fn pour(mut stream: SendStream) {
    let chunk = Bytes::from(vec![7; 64 << 10]);
    while stream.write(&mut [chunk.clone()]).await.is_ok() {}
}

/// Tells when something came last.
async fn drain(mut stream: RecvStream, last: watch::Sender<Instant>) {
    while read(&mut stream).await.is_some() {
        last.send_replace(Instant::now());
    }
}

async fn first_after(mut last: watch::Receiver<Instant>, moment: Instant) -> Duration {
    let wait = last.wait_for(|last| *last > moment);
    let first = *timeout(DEADLINE, wait).await.expect("traffic after the outage").unwrap();
    first - moment
}

/// Bulk in both directions: time from the end of the outage to the first bytes at the dialling and the accepting end.
async fn saturated(outage: Duration) -> [Duration; 2] {
    let pair = Pair::connect().await;
    let mut ends = Vec::new();
    for (send, recv) in pair.stream().await {
        let (publish, last) = watch::channel(Instant::now());
        tokio::spawn(pour(send));
        tokio::spawn(drain(recv, publish));
        ends.push(last);
    }
    sleep(Duration::from_secs(2)).await;
    let back = pair.dark_for(outage).await;
    let [dialled, accepted] = [ends[0].clone(), ends[1].clone()].map(|last| first_after(last, back));
    let (dialled, accepted) = tokio::join!(dialled, accepted);
    println!(
        "saturated both ways, {outage:?} dark: {dialled:?} to the dialling end, {accepted:?} to the accepting one"
    );
    [dialled, accepted]
}

/// One small message each way was sent while it was dark: time until both have come.
async fn quiet(outage: Duration) -> [Duration; 2] {
    let pair = Pair::connect().await;
    let mut ends = Vec::new();
    let mut senders = Vec::new();
    for (send, recv) in pair.stream().await {
        let (publish, last) = watch::channel(Instant::now());
        tokio::spawn(drain(recv, publish));
        senders.push(send);
        ends.push(last);
    }
    sleep(Duration::from_secs(1)).await;
    pair.relay.black_out(true);
    sleep(outage / 2).await;
    for send in &mut senders {
        send.write(&mut [Bytes::from_static(b"typed in the dark")]).await.unwrap();
    }
    let back = pair.dark_for(outage / 2).await;
    let [dialled, accepted] = [ends[0].clone(), ends[1].clone()].map(|last| first_after(last, back));
    let (dialled, accepted) = tokio::join!(dialled, accepted);
    println!("quiet, {outage:?} dark: {dialled:?} to the dialling end, {accepted:?} to the accepting one");
    [dialled, accepted]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_in_both_directions_goes_on_soon_after_an_outage() {
    for seconds in if support::long() { &[5, 30, 60][..] } else { &[5] } {
        for recovered in saturated(Duration::from_secs(*seconds)).await {
            assert!(recovered < RECOVERED, "{recovered:?} after {seconds} s");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_during_an_outage_arrives_soon_after_it() {
    for seconds in if support::long() { &[5, 30, 60][..] } else { &[5] } {
        for recovered in quiet(Duration::from_secs(*seconds)).await {
            assert!(recovered < RECOVERED, "{recovered:?} after {seconds} s");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_know_of_an_outage_and_of_its_end() {
    // An end that sends nothing finds out by its keep-alive, which has to come well before the deadline.
    let settings = QuicSettings { keep_alive: Duration::from_secs(3), ..QuicSettings::default() };
    let pair = Pair::connect_with(&settings).await;
    let _work = pair.stream().await;
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    pair.relay.black_out(true);
    for connection in [&pair.dialled, &pair.accepted] {
        let mut state = connection.path_state();
        timeout(DEADLINE, state.wait_for(|state| state.suspect_since.is_some())).await.unwrap().unwrap();
        println!("suspect {:?} after the path went dark", began.elapsed());
    }
    pair.relay.black_out(false);
    let back = Instant::now();
    for connection in [&pair.dialled, &pair.accepted] {
        let mut state = connection.path_state();
        timeout(DEADLINE, state.wait_for(|state| state.suspect_since.is_none())).await.unwrap().unwrap();
        println!("trusted {:?} after the path was back", back.elapsed());
    }
    assert!(back.elapsed() < RECOVERED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_to_ask_sooner_than_its_settings_say_notices_an_outage_sooner() {
    // quinn's keep-alive would come after the deadline of the tests.
    let settings = QuicSettings { keep_alive: Duration::from_secs(120), ..QuicSettings::default() };
    let pair = Pair::connect_with(&settings).await;
    pair.accepted.ask_after(Duration::from_secs(2));
    // Counts from the next packet on.
    pair.accepted.probe();
    sleep(Duration::from_secs(1)).await;
    pair.relay.black_out(true);
    let mut state = pair.accepted.path_state();
    timeout(DEADLINE, state.wait_for(|state| state.suspect_since.is_some())).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_exchanges_few_packets() {
    let pair = Pair::connect().await;
    // The search for the path's MTU is over by then.
    sleep(Duration::from_secs(2)).await;
    let mut packets = u64::MAX;
    // A busy machine makes packets late, and what is late is sent again: that spoils one silence or another, and not each.
    for _ in 0..3 {
        let before = pair.relay.packets();
        sleep(Duration::from_secs(12)).await;
        packets = pair.relay.packets() - before;
        println!("{packets} packets in 12 s of silence");
        if packets <= 12 {
            break;
        }
    }
    assert!(packets <= 12, "{packets}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_a_new_port_and_a_new_address() {
    let pair = Pair::connect().await;
    let [(mut send, mut recv), (mut echo_send, mut echo_recv)] = pair.stream().await;
    tokio::spawn(async move {
        while let Some(bytes) = read(&mut echo_recv).await {
            echo_send.write(&mut [bytes]).await.unwrap();
        }
    });
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    let change = |round: u32| match round {
        30 => Some(("port", UdpRelay::change_ports as fn(&UdpRelay))),
        60 => Some(("address", UdpRelay::change_addresses as fn(&UdpRelay))),
        _ => None,
    };
    for round in 0..90 {
        if let Some((what, change)) = change(round) {
            println!("longest silence before a new {what}: {longest:?}");
            longest = Duration::ZERO;
            change(&pair.relay);
        }
        send.write(&mut [Bytes::from_static(b"echo")]).await.unwrap();
        timeout(DEADLINE, read(&mut recv)).await.expect("an echo").unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    println!("longest silence with a new address: {longest:?}");
    assert!(longest < RECOVERED, "{longest:?}");
    let state = pair.accepted.path_state();
    assert_eq!(state.borrow().remote.ip(), "127.0.0.2".parse::<std::net::IpAddr>().unwrap());
}

/// Small messages every 20 ms and their echoes, as in an interactive session: time from the end of an outage to the first
/// echo.
async fn interactive(outage: Duration) -> Duration {
    let pair = Pair::connect().await;
    let [(mut send, recv), (mut echo_send, mut echo_recv)] = pair.stream().await;
    tokio::spawn(async move {
        while let Some(bytes) = read(&mut echo_recv).await {
            echo_send.write(&mut [bytes]).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while send.write(&mut [Bytes::from_static(b"typed\n")]).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let (publish, last) = watch::channel(Instant::now());
    tokio::spawn(drain(recv, publish));
    sleep(Duration::from_secs(2)).await;
    let back = pair.dark_for(outage).await;
    let first = first_after(last, back).await;
    println!("interactive, {outage:?} dark: {first:?} to the first echo");
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interactive_session_goes_on_soon_after_an_outage() {
    for seconds in if support::long() { &[1, 2, 5, 10, 30, 60][..] } else { &[2, 5] } {
        let recovered = interactive(Duration::from_secs(*seconds)).await;
        assert!(recovered < RECOVERED, "{recovered:?} after {seconds} s");
    }
}
