//! One of each kind of request, all open at once.

use std::time::Duration;

use futures_util::stream;
use tokio::sync::mpsc;

use super::exec::open_exec;
use super::support::http1::{End, Head, within};
use super::support::scripted_upstream::{Next, UpstreamConnection};
use super::support::user::{Answering, Http1, Http2, User, Version, body_of};
use super::{EXEC, SWITCHED, WATCH};

/// A request whose answer does not come.
pub const UNANSWERED: &str = "/unanswered";

/// A request whose answer stops half way.
pub const HALF: &str = "/half";

/// An upload that stops half way.
pub const UPLOAD: &str = "/upload";

/// What the API server saw of a request.
#[derive(Debug)]
pub enum Seen {
    /// It came, and the answer has got as far as it gets.
    Arrived,
    /// Its connection ended.
    Ended {
        /// The target of the request.
        target: String,
        /// How the connection ended.
        end: End,
        /// Whether the request's body was whole.
        whole: bool,
    },
}

/// Takes every kind of request as far as it goes, and then waits for its end.
pub async fn hold(head: Head, mut connection: UpstreamConnection, seen: mpsc::UnboundedSender<Seen>) -> Next {
    let target = head.target().to_owned();
    match target.as_str() {
        HALF => connection.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await,
        WATCH => connection.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n").await,
        EXEC => connection.say([SWITCHED, "$ "].concat()).await,
        UPLOAD => {
            assert_eq!(within("the first half", connection.wire.exactly_in_chunks(4)).await, b"half");
        }
        UNANSWERED => {}
        _ => return connection.answer("200 OK", &[], "fine").await,
    }
    // The test may have looked away.
    let _ = seen.send(Seen::Arrived);
    let (rest, end) = connection.wire.rest().await;
    let whole = rest.ends_with(b"0\r\n\r\n");
    let _ = seen.send(Seen::Ended { target, end, whole });
    None
}

/// Waits until `count` requests have arrived.
pub async fn arrived(seen: &mut mpsc::UnboundedReceiver<Seen>, count: usize) {
    for _ in 0..count {
        match within("a request arrives", seen.recv()).await.expect("the API server runs") {
            Seen::Arrived => {}
            ended => panic!("a request ended early: {ended:?}"),
        }
    }
}

/// How long a request whose client has gone may still be open at the API server.
pub const PROMPTLY: Duration = Duration::from_secs(5);

/// The next end of a request at the API server, which has to come promptly.
pub async fn ended(seen: &mut mpsc::UnboundedReceiver<Seen>) -> (String, End, bool) {
    match tokio::time::timeout(PROMPTLY, seen.recv()).await.expect("the end comes promptly").expect("it runs") {
        Seen::Ended { target, end, whole } => (target, end, whole),
        Seen::Arrived => panic!("another request came instead"),
    }
}

/// An upload over HTTP/1.1 whose first half has been sent.
pub async fn begin_upload(user: &User) -> Http1 {
    let mut client = user.connect().await;
    let mut request = user.request("POST", UPLOAD, &[("Transfer-Encoding", "chunked")]);
    request.extend_from_slice(b"4\r\nhalf\r\n");
    client.write(&request).await.expect("half an upload is sent");
    client
}

/// An answer over HTTP/2 that is waited for in a task.
pub type Pending = tokio::task::JoinHandle<Result<Answering, hyper::Error>>;

/// Sends a request over HTTP/2 without waiting for the answer; an upload stops half way.
pub fn begin_unanswered_on(user: &User, connection: &Http2, target: &str) -> Pending {
    let request = match target {
        UPLOAD => user.http2_request("POST", target, &[], body_of(b"half", stream::pending())),
        _ => user.http2_request("GET", target, &[], super::support::user::no_body()),
    };
    let mut connection = connection.clone();
    tokio::spawn(async move { Ok(Answering::read_http2(connection.send_request(request).await?)) })
}

/// A request over HTTP/1.1 that is sent, and not answered.
pub async fn begin_unanswered(user: &User) -> Http1 {
    let mut client = user.connect().await;
    client.write(&user.request("GET", UNANSWERED, &[])).await.expect("a request is sent");
    client
}

/// An answer that has got half way.
pub async fn begin_half(user: &User, version: Version) -> Answering {
    let mut answer = user.begin(version, "GET", HALF, &[]).await;
    answer.until("half").await;
    answer
}

/// A watch that has told of one event.
pub async fn begin_watch(user: &User, version: Version) -> Answering {
    let mut answer = user.begin(version, "GET", WATCH, &[]).await;
    answer.until("event").await;
    answer
}

/// An exec that has said something.
pub async fn begin_exec(user: &User) -> Http1 {
    open_exec(user, "$ ").await
}
