//! An agent goes while requests are open.

use rustix::process::Signal;
use tokio::sync::mpsc;

use super::LIST;
use super::in_flight::{
    UNANSWERED, UPLOAD, arrived, begin_exec, begin_half, begin_unanswered, begin_unanswered_on, begin_upload,
    begin_watch, hold,
};
use super::support::http1::{Answer, within};
use super::support::scene::Scene;
use super::support::tunnel::{CLUSTER, StubOptions};
use super::support::user::{Answering, Version};

/// A stub that notices a dead agent soon.
fn impatient() -> StubOptions {
    StubOptions::default().set("agents", "idle_timeout", "3s").set("agents", "report_interval", "200ms")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_takes_nobody_in() {
    everything_breaks_off(|scene| scene.agent.process.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_in_the_middle_takes_nobody_in() {
    everything_breaks_off(|scene| {
        scene.agent.process.signal(Signal::TERM);
        assert!(scene.agent.process.wait().success());
    })
    .await;
}

async fn everything_breaks_off(end: impl FnOnce(&mut Scene)) {
    let (seen, mut seen_by_server) = mpsc::unbounded_channel();
    let handler = move |head, connection| hold(head, connection, seen.clone());
    let mut scene = Scene::start_with(impatient(), &["--drain-timeout", "50ms"], handler).await;
    let user = scene.user.clone();
    let http2 = user.connect_http2().await;

    let unanswered = begin_unanswered(&user).await;
    let unanswered_http2 = begin_unanswered_on(&user, &http2, UNANSWERED);
    let upload = begin_upload(&user).await;
    let upload_http2 = begin_unanswered_on(&user, &http2, UPLOAD);
    let mut answers = Vec::new();
    for version in Version::ALL {
        answers.extend([begin_half(&user, version).await, begin_watch(&user, version).await]);
    }
    let mut exec = begin_exec(&user).await;
    arrived(&mut seen_by_server, 9).await;

    end(&mut scene);

    may_still_complete(&Answering::read_http1(unanswered, "GET").await.rest().await);
    may_still_complete(&Answering::read_http1(upload, "POST").await.rest().await);
    for pending in [unanswered_http2, upload_http2] {
        let answer = within("an answer", pending).await.expect("no panic").expect("an answer");
        may_still_complete(&answer.rest().await);
    }
    for answer in answers {
        let answer = answer.rest().await;
        assert!(!answer.complete, "{answer:?}");
    }
    let (rest, end) = within("the end of the exec", exec.rest()).await;
    assert!(rest.is_empty() && end.is_aborted(), "{end:?}");

    // Nothing was sent, so clients may send it again.
    let gone = user.ask_over(Version::Http2, "GET", LIST).await;
    gone.expect_status(503, Some("ServiceUnavailable"));
    gone.expect_retry_after(Some("1"));
    scene.agent.restart();
    scene.stub.wait_for_agents(CLUSTER, 1);
    assert_eq!(user.ask_over(Version::Http1, "GET", LIST).await.text(), "fine");
    scene.wait_until_settled();
}

/// The truth about a request that the API server may have seen.
#[track_caller]
fn may_still_complete(answer: &Answer) {
    let message = answer.expect_status(504, Some("Timeout"));
    assert!(message.contains("may still complete"), "{message}");
    answer.expect_retry_after(None);
}
