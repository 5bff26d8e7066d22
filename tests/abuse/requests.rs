//! Requests: of people whom nobody knows, of one user, to one cluster, and how long they are.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::support::http1::{Head, within};
use super::support::scripted_upstream::UpstreamConnection;
use super::support::tunnel::CLUSTER;
use super::support::user::{Answering, User, Version};
use super::{Attacked, LIST};

const WATCH: &str = "/api/v1/namespaces/demo/pods?watch=true";

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_told_401_only_so_often() {
    for version in Version::ALL {
        let attacked = Attacked::start(&[("unauthenticated_per_second", 1.into())]).await;
        let stranger = attacked.scene.user.without_certificate();
        let (mut refused, mut limited) = (0, 0);
        for _ in 0..30 {
            let answer = stranger.begin(version, "GET", LIST, &[("authorization", "Bearer guess")]).await.rest().await;
            match answer.head.status() {
                401 => refused += 1,
                429 => {
                    answer.expect_status(429, Some("TooManyRequests"));
                    answer.expect_retry_after(Some("1"));
                    limited += 1;
                }
                other => panic!("{other}"),
            }
        }
        assert!(refused >= 10 && limited >= 5, "{refused} of 401, {limited} of 429");
        assert_eq!(attacked.limited("unauthenticated_per_second").await, limited);
        assert_eq!(attacked.logged("unauthenticated_per_second"), 1, "once for all of them");
        // Who is known is served, also from the same address.
        assert_eq!(attacked.scene.user.ask_over(version, "GET", LIST).await.text(), "fine");
    }
}

/// An API server whose answers to all but `/free` begin, and do not end before `release`.
async fn held(limits: &[(&'static str, toml::Value)]) -> (Attacked, watch::Sender<bool>) {
    let (release, released) = watch::channel(false);
    let attacked = Attacked::start_with(limits, move |head: Head, mut connection: UpstreamConnection| {
        let mut released = released.clone();
        async move {
            if head.target() == "/free" {
                return connection.answer("200 OK", &[], "free").await;
            }
            connection.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await;
            within("the test goes on", released.wait_for(|released| *released)).await.expect("it runs");
            connection.say("done").await;
            Some(connection)
        }
    })
    .await;
    (attacked, release)
}

async fn expect_too_many(user: &User, path: &str) {
    for version in Version::ALL {
        let answer = user.ask_over(version, "GET", path).await;
        answer.expect_status(429, Some("TooManyRequests"));
        answer.expect_retry_after(Some("1"));
    }
}

async fn begin(user: &User, path: &str) -> Answering {
    let answer = user.begin(Version::Http2, "GET", path, &[]).await;
    assert_eq!(answer.head.status(), 200);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_only_so_many_requests_at_once_and_watches_count_apart() {
    let (attacked, release) = held(&[("requests_per_user", 2.into()), ("watches_per_user", 1.into())]).await;
    let alice = attacked.scene.user.clone();
    let bob = User::of(&attacked.scene.stub.kubeconfig(CLUSTER, "bob", &[]), alice.address());
    let open = [begin(&alice, LIST).await, begin(&alice, LIST).await, begin(&alice, WATCH).await];
    expect_too_many(&alice, LIST).await;
    expect_too_many(&alice, WATCH).await;
    assert_eq!(attacked.limited("requests_per_user").await, 3);
    assert_eq!(attacked.limited("watches_per_user").await, 3);
    assert_eq!(bob.ask_over(Version::Http1, "GET", "/free").await.text(), "free");
    release.send(true).expect("the API server listens");
    for answer in open {
        assert_eq!(answer.rest().await.text(), "done");
    }
    attacked.scene.stub.wait_until_idle(CLUSTER);
    assert_eq!(alice.ask_over(Version::Http1, "GET", LIST).await.text(), "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_has_only_so_many_requests_at_once() {
    let (attacked, release) = held(&[("requests_per_cluster", 1.into()), ("watches_per_cluster", 1.into())]).await;
    let alice = attacked.scene.user.clone();
    let bob = User::of(&attacked.scene.stub.kubeconfig(CLUSTER, "bob", &[]), alice.address());
    let open = [begin(&alice, LIST).await, begin(&alice, WATCH).await];
    expect_too_many(&bob, "/free").await;
    expect_too_many(&bob, WATCH).await;
    assert_eq!(attacked.limited("requests_per_cluster").await, 3);
    assert_eq!(attacked.limited("watches_per_cluster").await, 3);
    release.send(true).expect("the API server listens");
    for answer in open {
        assert_eq!(answer.rest().await.text(), "done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_makes_only_so_many_requests_in_a_second_where_that_is_set() {
    let attacked = Attacked::start(&[("requests_per_second_per_user", 1.into())]).await;
    let mut limited = 0;
    for _ in 0..20 {
        let answer = attacked.scene.user.ask_over(Version::Http1, "GET", LIST).await;
        match answer.head.status() {
            200 => {}
            429 => limited += 1,
            other => panic!("{other}"),
        }
    }
    assert!(limited >= 5, "{limited} of 429");
    assert_eq!(attacked.limited("requests_per_second_per_user").await, limited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_is_refused_or_broken_off() {
    let (seen, mut bodies) = mpsc::unbounded_channel();
    let attacked = Attacked::start_with(
        &[("request_body_length", 1000.into())],
        move |head: Head, mut connection: UpstreamConnection| {
            let seen = seen.clone();
            async move {
                let (body, whole) = within("a body", connection.wire.request_body(&head)).await;
                seen.send((body.len(), whole)).expect("the test listens");
                match whole {
                    true => connection.answer("200 OK", &[], "fine").await,
                    false => None,
                }
            }
        },
    )
    .await;
    let user = &attacked.scene.user;
    for version in Version::ALL {
        let answer = user.begin(version, "POST", LIST, &[("content-length", "1001")]);
        // Over HTTP/2 and HTTP/3 the request ends without the body that it announces, which is refused before its length is.
        if version == Version::Http1 {
            answer.await.rest().await.expect_status(413, Some("RequestEntityTooLarge"));
        }
    }
    let mut connection = user.connect_http3().await;
    let mut exchange = connection.send(user.http3_request("POST", LIST, &[])).await.expect("a request");
    exchange.send_data(Bytes::from_static(&[b'x'; 1001])).await.expect("a body");
    let _ = exchange.finish().await;
    assert_ne!(within("an answer", exchange.recv_response()).await.map_or(504, |head| head.status().as_u16()), 200);
    // If any of it came, it was not whole.
    let mut client = user.connect().await;
    client.write(&user.request("POST", LIST, &[("Content-Length", "1000")])).await.expect("a request");
    client.write(&[b'x'; 1000]).await.expect("a body");
    assert_eq!(client.answer("POST").await.text(), "fine");
    loop {
        match within("a body", bodies.recv()).await.expect("the API server runs") {
            (length, true) => {
                assert_eq!(length, 1000);
                break;
            }
            (length, false) => assert!(length <= 1000, "{length}"),
        }
    }
    // What is sent through a pod is not the API server's to bound.
    let mut client = user.connect().await;
    let path = "/api/v1/namespaces/demo/pods/web/proxy/upload";
    client.write(&user.request("POST", path, &[("Content-Length", "2000")])).await.expect("a request");
    client.write(&[b'x'; 2000]).await.expect("a body");
    assert_eq!(client.answer("POST").await.text(), "fine");
}
