//! One end does not read: the other end has to wait, and nobody in between keeps what nobody takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::exec::open_exec;
use super::support::http1::{Head, Wire, within};
use super::support::process::Process;
use super::support::scene::Scene;
use super::support::scripted_upstream::{Next, UpstreamConnection};
use super::support::user::{Version, body_of};
use super::{EXEC, LIST, SWITCHED, WATCH};

/// What a process may grow by for one stream that nobody reads, in bytes: a window of 16 MiB, and as much again on the way.
const BOUND: u64 = 64 << 20;

/// More than any window and every socket's buffers together.
const TOO_MUCH: usize = 512 << 20;

/// A writer that has got nothing rid of for so long is held back.
const STALLED: Duration = Duration::from_secs(1);

/// A target whose request nobody reads.
const UNREAD: &str = "/unread";

/// An API server that does not read, or says more than anybody takes.
#[derive(Clone, Default)]
struct OneEnded {
    /// Bytes that it got rid of.
    said: Arc<AtomicU64>,
    /// From now on it reads.
    reads: Arc<Notify>,
}

impl OneEnded {
    async fn scene(&self) -> Scene {
        let this = self.clone();
        Scene::start(move |head, connection| this.clone().serve(head, connection)).await
    }

    async fn serve(self, head: Head, mut connection: UpstreamConnection) -> Next {
        match head.target() {
            UNREAD => {
                self.reads.notified().await;
                let (_bytes, _end) = within("the end of an upload", connection.wire.rest()).await;
                return None;
            }
            WATCH => {
                connection.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                self.say_until_broken(&[b"10000\r\n".as_slice(), &[7; 1 << 16], b"\r\n"].concat(), connection).await;
            }
            EXEC => {
                connection.say([SWITCHED, "$ "].concat()).await;
                self.say_until_broken(&[7; 1 << 16], connection).await;
            }
            _ => return connection.answer("200 OK", &[], "fine").await,
        }
        None
    }

    async fn say_until_broken(&self, piece: &[u8], mut connection: UpstreamConnection) {
        while connection.wire.write(piece).await.is_ok() {
            self.said.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    }

    /// Waits until it gets rid of nothing more.
    async fn wait_until_stalled(&self) {
        let stalled = async {
            let mut last = 0;
            loop {
                tokio::time::sleep(STALLED).await;
                let said = self.said.load(Ordering::SeqCst);
                if said == last && said > 0 {
                    return said;
                }
                last = said;
            }
        };
        let said = within("the API server is held back", stalled).await;
        println!("{} KiB came", said >> 10);
        assert!((said as usize) < TOO_MUCH);
    }
}

/// How the memory of the stub and the agent grows.
struct Memory<'a> {
    processes: [(&'static str, &'a Process, u64); 2],
}

impl<'a> Memory<'a> {
    async fn before(scene: &'a Scene) -> Self {
        // What a first request allocates once and for all is no growth.
        assert_eq!(scene.user.ask_over(Version::Http2, "GET", LIST).await.text(), "fine");
        let processes = [("stub", &scene.stub.process), ("agent", &scene.agent.process)];
        Self { processes: processes.map(|(name, process)| (name, process, process.resident_memory())) }
    }

    #[track_caller]
    fn expect_bounded(&self) {
        for (name, process, before) in &self.processes {
            let grown = process.resident_memory().saturating_sub(*before);
            println!("the {name} has grown by {} KiB", grown >> 10);
            assert!(grown < BOUND, "the {name} has grown by {} MiB", grown >> 20);
        }
    }
}

/// Writes until nothing goes any more, and tells how much went.
async fn write_until_stalled<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Wire<S>) -> usize {
    let piece = vec![7; 1 << 16];
    let mut written = 0;
    while written < TOO_MUCH {
        match tokio::time::timeout(STALLED, connection.write(&piece)).await {
            Ok(result) => result.expect("the connection stays"),
            Err(_stalled) => return written,
        }
        written += piece.len();
    }
    panic!("{} MiB went to nobody", written >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_reads_is_held_back() {
    let server = OneEnded::default();
    let scene = server.scene().await;
    let memory = Memory::before(&scene).await;
    let mut client = scene.user.connect().await;
    let length = TOO_MUCH.to_string();
    client.write(&scene.user.request("POST", UNREAD, &[("Content-Length", &length)])).await.expect("a request is sent");
    println!("{} KiB went", write_until_stalled(&mut client).await >> 10);
    memory.expect_bounded();
    // Small requests beside it are not held back.
    assert_eq!(scene.user.ask_over(Version::Http1, "GET", LIST).await.text(), "fine");
    drop(client);
    server.reads.notify_one();
    scene.wait_until_settled();
    memory.expect_bounded();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_http2_that_nobody_reads_is_held_back() {
    let server = OneEnded::default();
    let scene = server.scene().await;
    let memory = Memory::before(&scene).await;
    let connection = scene.user.connect_http2().await;
    let (taken, mut pieces) = tokio::sync::mpsc::channel(1);
    let endless = stream::unfold(taken, |taken| async move {
        // Told for every piece that the connection asks for.
        taken.send(()).await.ok()?;
        Some((Bytes::from_static(&[7; 1 << 16]), taken))
    });
    let request = scene.user.http2_request("POST", UNREAD, &[], body_of(b"first", endless));
    let mut sender = connection.clone();
    let upload = tokio::spawn(async move { sender.send_request(request).await });
    let mut count = 0;
    while tokio::time::timeout(STALLED, pieces.recv()).await.is_ok() {
        count += 1;
        assert!(count < TOO_MUCH >> 16, "{} MiB went to nobody", count >> 4);
    }
    println!("{} KiB went", count << 6);
    memory.expect_bounded();
    let beside = scene.user.begin_on(&connection, "GET", LIST, &[], super::support::user::no_body()).await;
    assert_eq!(beside.rest().await.text(), "fine");
    upload.abort();
    server.reads.notify_one();
    scene.wait_until_settled();
    memory.expect_bounded();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_held_back() {
    let server = OneEnded::default();
    let scene = server.scene().await;
    let memory = Memory::before(&scene).await;
    for version in Version::ALL {
        server.said.store(0, Ordering::SeqCst);
        let unread = scene.user.begin(version, "GET", WATCH, &[]).await;
        server.wait_until_stalled().await;
        memory.expect_bounded();
        assert_eq!(scene.user.ask_over(version, "GET", LIST).await.text(), "fine");
        drop(unread);
        scene.wait_until_settled();
        memory.expect_bounded();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_of_which_nobody_reads_anything_is_held_back() {
    let server = OneEnded::default();
    let scene = server.scene().await;
    let memory = Memory::before(&scene).await;
    let mut client = open_exec(&scene.user, "$ ").await;
    println!("{} KiB went", write_until_stalled(&mut client).await >> 10);
    server.wait_until_stalled().await;
    memory.expect_bounded();
    assert_eq!(scene.user.ask_over(Version::Http1, "GET", LIST).await.text(), "fine");
    super::support::user::reset(client);
    scene.wait_until_settled();
    memory.expect_bounded();
}
