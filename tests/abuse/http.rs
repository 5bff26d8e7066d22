//! What HTTP itself can be misused for.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::http1::within;
use super::support::http3::quic;
use super::support::user::{User, Version};
use super::{Attacked, LIST};

/// The stub must not grow by more, whatever is sent.
const BOUND: u64 = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_long_or_have_too_many_fields_are_refused() {
    let attacked = Attacked::start(&[]).await;
    let user = &attacked.scene.user;
    let long = "x".repeat(300 * 1024);
    let names: Vec<_> = (0..600).map(|number| format!("x-field-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    for headers in [vec![("x-long", long.as_str())], many] {
        let mut client = user.connect().await;
        // The stub may hang up before it has read all of it.
        let _ = client.write(&user.request("GET", LIST, &headers)).await;
        let head = within("an answer", client.head()).await.expect("an answer").expect("an answer");
        assert_eq!(head.status(), 431);
        for version in [Version::Http2, Version::Http3] {
            let request = user.http2_request("GET", LIST, &headers, super::support::user::no_body());
            let status = match version {
                Version::Http2 => {
                    let answer = user.connect_http2().await.send_request(request).await;
                    answer.map_or(431, |answer| answer.status().as_u16())
                }
                _ => {
                    let mut connection = user.connect_http3().await;
                    match connection.send(request.map(|_| ())).await {
                        Ok(mut exchange) => {
                            let _ = exchange.finish().await;
                            exchange.recv_response().await.map_or(431, |answer| answer.status().as_u16())
                        }
                        Err(_) => 431,
                    }
                }
            };
            assert_eq!(status, 431, "{version:?}");
        }
    }
    for version in Version::ALL {
        assert_eq!(user.ask_over(version, "GET", LIST).await.text(), "fine");
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Sends `flood` a hundred thousand times and reads nothing; ends when the stub takes no more.
async fn flood(user: &User, beginning: &[u8], flood: &[u8]) {
    let mut socket = user.tls(b"h2").await.expect("a connection");
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[]), beginning].concat();
    socket.write_all(&preface).await.expect("a preface");
    let batch = flood.repeat(100);
    let writing = async {
        for _ in 0..1000 {
            if socket.write_all(&batch).await.is_err() {
                return;
            }
        }
    };
    // A stub that does not read on, because its answers are not read, is as good as one that hangs up.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), writing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_over_http2_cost_the_stub_nothing() {
    let attacked = Attacked::start(&[]).await;
    let user = &attacked.scene.user;
    assert_eq!(user.ask_over(Version::Http2, "GET", LIST).await.text(), "fine");
    let before = attacked.scene.stub.process.resident_memory();
    let stranger = user.without_certificate();
    // A head without an end (CVE-2024-27983 and its like).
    let field = [0x40, 1, b'a', 127, 0].iter().copied().chain([b'x'; 127]).collect::<Vec<_>>();
    flood(&stranger, &frame(HEADERS, 0, 1, &[0x82]), &frame(CONTINUATION, 0, 1, &field)).await;
    flood(&stranger, &frame(HEADERS, 0, 1, &[0x82]), &frame(CONTINUATION, 0, 1, &[])).await;
    flood(&stranger, &[], &frame(PING, 0, 0, &[0; 8])).await;
    flood(&stranger, &[], &frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(user.ask_over(Version::Http2, "GET", LIST).await.text(), "fine");
    let grown = attacked.scene.stub.process.resident_memory().saturating_sub(before);
    println!("the stub has grown by {} KiB", grown >> 10);
    assert!(grown < BOUND, "the stub has grown by {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed_wait_or_are_refused() {
    let attacked = Attacked::start(&[("requests_per_connection", 5.into())]).await;
    let user = &attacked.scene.user;
    let socket = user.tls(b"h2").await.expect("a connection");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::spawn(connection);
    let client = within("HTTP/2", client.ready()).await.expect("HTTP/2");
    tokio::time::timeout(super::support::DEADLINE, async {
        while client.current_max_send_streams() != 5 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the stub's settings");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_reset_rapidly_cost_a_client_of_http3_its_connection() {
    let attacked = Attacked::start(&[]).await;
    let user = &attacked.scene.user;
    for attacker in [user.clone(), user.without_certificate()] {
        let (connection, _endpoint) = quic(&attacker, b"h3").await.expect("a connection");
        let resetting = async {
            loop {
                let Ok((mut send, mut recv)) = connection.open_bi().await else { return };
                // The beginning of a head.
                if send.write_all(&[0x01, 0x40]).await.is_err() {
                    return;
                }
                let _ = send.reset(0x10c_u32.into());
                let _ = recv.stop(0x10c_u32.into());
            }
        };
        within("the stub hangs up", resetting).await;
        let reason = within("the stub hangs up", connection.closed()).await.to_string();
        assert!(reason.contains("given up"), "{reason}");
    }
    assert_eq!(user.ask_over(Version::Http3, "GET", LIST).await.text(), "fine");
    attacked.scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_its_head_is_not_waited_for() {
    let limits = [("handshake_timeout", "1s".into()), ("authentication_timeout", "2s".into())];
    let attacked = Attacked::start(&limits).await;
    let user = &attacked.scene.user;
    let (connection, _endpoint) = quic(user, b"h3").await.expect("a connection");
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&[0x01, 0x40]).await.expect("the beginning of a head");
    assert!(within("the stub breaks it off", recv.read_to_end(100)).await.is_err());

    let mut socket = user.tls(b"h2").await.expect("a connection");
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(super::support::DEADLINE, socket.read_to_end(&mut rest));
    assert!(reading.await.is_ok(), "a client that never says that it speaks HTTP/2");
}
