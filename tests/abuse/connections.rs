//! Connections: how many, how fast, and how long by people whom nobody knows.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::http1::within;
use super::support::http3::{Http3, quic};
use super::support::user::{User, Version};
use super::{Attacked, LIST};

#[tokio::test(flavor = "multi_thread")]
async fn an_address_makes_only_so_many_connections_in_a_second() {
    let attacked = Attacked::start(&[("connections_per_second", 2.into())]).await;
    let user = &attacked.scene.user;
    let open = user.connect_http2().await;
    let mut refused = 0;
    for _ in 0..60 {
        refused += usize::from(user.tls(b"h2").await.is_err());
    }
    assert!(refused >= 20, "{refused} of 60 refused");
    assert!(attacked.limited("connections_per_second").await >= refused as u64);
    assert_eq!(attacked.logged("connections_per_second"), 1, "once for all of them");
    // Whoever is in stays in, and those who wait get in.
    let answer = user.begin_on(&open, "GET", LIST, &[], super::support::user::no_body()).await.rest().await;
    assert_eq!(answer.text(), "fine");
    let mut late = Err("nobody has tried".to_owned());
    let deadline = Instant::now() + super::support::DEADLINE;
    while late.is_err() && Instant::now() < deadline {
        late = user.tls(b"h2").await.map(drop).map_err(|error| error.to_string());
    }
    late.expect("a connection after a while");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_of_an_address_have_only_so_many_connections_and_only_for_so_long() {
    let limits = [("strangers_per_address", 5.into()), ("authentication_timeout", "3s".into())];
    let attacked = Attacked::start(&limits).await;
    let user = attacked.scene.user.clone();
    let known = user.connect_http2().await;
    user.begin_on(&known, "GET", LIST, &[], super::support::user::no_body()).await.rest().await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(user.without_certificate().tls(b"h2").await.expect("a connection"));
    }
    let over_quic = [
        quic(&user.without_certificate(), b"h3").await.expect("a connection"),
        quic(&user.without_certificate(), b"h3").await.expect("a connection"),
    ];
    assert!(user.tls(b"h2").await.is_err(), "one too many over TCP");
    assert!(quic(&user, b"h3").await.is_err(), "one too many over QUIC");
    assert!(attacked.limited("strangers_per_address").await >= 2);
    // The one who is known goes on.
    let answer = user.begin_on(&known, "GET", LIST, &[], super::support::user::no_body()).await.rest().await;
    assert_eq!(answer.text(), "fine");
    // The time of the others is over, whatever they send meanwhile.
    for mut stranger in strangers {
        let mut rest = Vec::new();
        let _ = within("the stub hangs up", stranger.read_to_end(&mut rest)).await;
    }
    for (connection, _endpoint) in over_quic {
        within("the stub hangs up", connection.closed()).await;
    }
    for version in Version::ALL {
        assert_eq!(user.ask_over(version, "GET", LIST).await.text(), "fine");
    }
    assert_eq!(attacked.limited("authentication_timeout").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_or_speaks_slowly_loses_its_connection() {
    let attacked = Attacked::start(&[("handshake_timeout", "1s".into())]).await;
    let user = &attacked.scene.user;
    let mut silent = TcpStream::connect(user.address()).await.expect("a connection");
    let mut slow = user.connect().await;
    let begun = Instant::now();
    let trickling = async {
        for byte in user.request("GET", LIST, &[]).iter().cycle() {
            if slow.write(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut rest = Vec::new();
    let (ended, ()) =
        within("the stub hangs up", async { tokio::join!(silent.read_to_end(&mut rest), trickling) }).await;
    let _ = ended;
    assert!(begun.elapsed() >= Duration::from_millis(500), "a chance to speak");
    assert_eq!(user.ask_over(Version::Http1, "GET", LIST).await.text(), "fine");
}

/// Sends on what a QUIC client sends, and drops what comes back: as if the client had lied about its address.
fn forger(stub: std::net::SocketAddr) -> (std::net::SocketAddr, impl Drop) {
    let front = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = front.local_addr().expect("an address");
    let front = tokio::net::UdpSocket::from_std({
        front.set_nonblocking(true).expect("a socket");
        front
    })
    .expect("a socket");
    let task = tokio::spawn(async move {
        let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let mut packet = [0; 2048];
        while let Ok(length) = front.recv(&mut packet).await {
            let _ = back.send_to(&packet[..length], stub).await;
        }
    });
    (address, tokio_util::task::AbortOnDropHandle::new(task))
}

/// Begins a handshake that cannot go on.
fn begin_forged(user: &User, forger: std::net::SocketAddr) -> (quinn::Endpoint, quinn::Connecting) {
    let crypto = QuicClientConfig::try_from(user.tls_config(b"h3")).expect("TLS 1.3");
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting = endpoint.connect(forger, "localhost").expect("a name");
    (endpoint, connecting)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_handshakes_do_not_end_addresses_have_to_be_proven() {
    let attacked = Attacked::start(&[("quic_handshakes", 8.into()), ("handshake_timeout", "30s".into())]).await;
    let user = &attacked.scene.user;
    let (address, _forging) = forger(user.address());
    let forged: Vec<_> = (0..20).map(|_| begin_forged(user, address)).collect();
    let deadline = Instant::now() + super::support::DEADLINE;
    while attacked.metric("qtunnel_address_proofs_total").await < 10 {
        assert!(Instant::now() < deadline, "no address has to be proven");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Half of the places are left for those who are where they say they are.
    for _ in 0..3 {
        assert_eq!(user.ask_over(Version::Http3, "GET", LIST).await.text(), "fine");
    }
    assert_eq!(attacked.limited("quic_handshakes").await, 0);
    drop(forged);
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_in_the_name_of_an_address_do_not_shut_it_out() {
    let attacked = Attacked::start(&[("connections_per_second", 2.into())]).await;
    let user = &attacked.scene.user;
    let (address, _forging) = forger(user.address());
    let forged: Vec<_> = (0..60).map(|_| begin_forged(user, address)).collect();
    let deadline = Instant::now() + super::support::DEADLINE;
    while attacked.metric("qtunnel_address_proofs_total").await < 20 {
        assert!(Instant::now() < deadline, "no address has to be proven");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let client = Http3::connect(user).await.expect("the real client gets in");
    assert_eq!(attacked.limited("connections_per_second").await, 0);
    drop((forged, client));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_http3_are_counted() {
    let attacked = Attacked::start(&[("client_connections", 2.into())]).await;
    let user = &attacked.scene.user;
    let (first, second) = (user.connect_http3().await, user.connect_http3().await);
    let (third, _endpoint) = quic(user, b"h3").await.expect("a handshake");
    within("the stub hangs up", third.closed()).await;
    assert_eq!(attacked.limited("client_connections").await, 1);
    drop((first, second));
    // A place is free again as soon as the stub has noticed.
    let deadline = Instant::now() + super::support::DEADLINE;
    while user.try_to_ask(Version::Http3, "GET", LIST).await.is_err() {
        assert!(Instant::now() < deadline, "no place is free again");
    }
}
