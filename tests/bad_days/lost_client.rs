//! A client goes while its request is open: the API server hears of it at once, and never takes a part for the whole.

use tokio::sync::mpsc;

use super::in_flight::{
    HALF, UNANSWERED, UPLOAD, arrived, begin_exec, begin_half, begin_unanswered, begin_unanswered_on, begin_upload,
    begin_watch, ended, hold,
};
use super::support::http1::{End, within};
use super::support::scene::Scene;
use super::support::user::{Http1, Version, reset};
use super::{EXEC, WATCH};

/// How a client leaves an HTTP/1.1 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// close_notify, then FIN.
    Politely,
    /// FIN alone, as when a process is killed.
    Suddenly,
    /// RST.
    WithReset,
}

impl Leaves {
    const ALL: [Self; 3] = [Self::Politely, Self::Suddenly, Self::WithReset];

    async fn leave(self, mut connection: Http1) {
        match self {
            Self::Politely => connection.finish().await.expect("the end is sent"),
            Self::Suddenly => drop(connection),
            Self::WithReset => reset(connection),
        }
    }
}

async fn scene() -> (Scene, mpsc::UnboundedReceiver<super::in_flight::Seen>) {
    let (seen, seen_by_server) = mpsc::unbounded_channel();
    (Scene::start(move |head, connection| hold(head, connection, seen.clone())).await, seen_by_server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_client_goes_is_cancelled() {
    let (scene, mut seen) = scene().await;
    for leaves in Leaves::ALL {
        leaves.leave(begin_unanswered(&scene.user).await_arrived(&mut seen).await).await;
        assert_eq!(ended(&mut seen).await.0, UNANSWERED, "{leaves:?}");
    }
    let http2 = scene.user.connect_http2().await;
    let pending = begin_unanswered_on(&scene.user, &http2, UNANSWERED);
    arrived(&mut seen, 1).await;
    pending.abort();
    assert_eq!(ended(&mut seen).await.0, UNANSWERED, "a stream that is reset");
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_client_goes_is_cancelled() {
    let (scene, mut seen) = scene().await;
    for leaves in Leaves::ALL {
        let (half, watch) = (begin_half(&scene.user, Version::Http1), begin_watch(&scene.user, Version::Http1));
        leaves.leave(half.await_arrived(&mut seen).await.into_http1()).await;
        assert_eq!(ended(&mut seen).await.0, HALF, "{leaves:?}");
        leaves.leave(watch.await_arrived(&mut seen).await.into_http1()).await;
        assert_eq!(ended(&mut seen).await.0, WATCH, "{leaves:?}");
    }
    drop(begin_half(&scene.user, Version::Http2).await_arrived(&mut seen).await);
    assert_eq!(ended(&mut seen).await.0, HALF);
    drop(begin_watch(&scene.user, Version::Http2).await_arrived(&mut seen).await);
    assert_eq!(ended(&mut seen).await.0, WATCH);
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_client_goes_is_never_taken_for_a_whole_one() {
    let (scene, mut seen) = scene().await;
    for leaves in Leaves::ALL {
        leaves.leave(begin_upload(&scene.user).await_arrived(&mut seen).await).await;
        let (target, _end, whole) = ended(&mut seen).await;
        assert_eq!((target.as_str(), whole), (UPLOAD, false), "{leaves:?}");
    }
    let http2 = scene.user.connect_http2().await;
    let pending = begin_unanswered_on(&scene.user, &http2, UPLOAD);
    arrived(&mut seen, 1).await;
    pending.abort();
    let (target, _end, whole) = ended(&mut seen).await;
    assert_eq!((target.as_str(), whole), (UPLOAD, false), "a stream that is reset");
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_whose_client_goes_ends_as_the_client_ended_it() {
    let (scene, mut seen) = scene().await;
    for leaves in Leaves::ALL {
        leaves.leave(begin_exec(&scene.user).await_arrived(&mut seen).await).await;
        let (target, end, _whole) = ended(&mut seen).await;
        assert_eq!(target, EXEC);
        // Standard input that was cut must not look like all of it.
        assert_eq!(end == End::Clean, leaves == Leaves::Politely, "{leaves:?}: {end:?}");
    }
    scene.wait_until_settled();
}

/// Something begun, and the word that it has arrived.
trait AwaitArrived: Future + Sized {
    async fn await_arrived(self, seen: &mut mpsc::UnboundedReceiver<super::in_flight::Seen>) -> Self::Output {
        let begun = within("a request begins", self).await;
        arrived(seen, 1).await;
        begun
    }
}

impl<F: Future> AwaitArrived for F {}
