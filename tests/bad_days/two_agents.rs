//! Clusters with two agents, with none, and clusters that do not exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;

use super::LIST;
use super::support::eventually;
use super::support::scene::Scene;
use super::support::scripted_upstream::UpstreamConnection;
use super::support::tunnel::{Agent, AgentOptions, CLUSTER, StubOptions};
use super::support::user::{User, Version};

async fn fine(connection: UpstreamConnection) -> super::support::scripted_upstream::Next {
    connection.answer("200 OK", &[], "fine").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_is_replaced_by_the_other_without_anybody_noticing() {
    let mut scene = Scene::start(|_head, connection| fine(connection)).await;
    let mut second = Agent::start(&scene.stub, CLUSTER, &scene.upstream.upstream(), AgentOptions::default());
    scene.stub.wait_for_agents(CLUSTER, 2);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients = [Version::Http1, Version::Http2].map(|version| {
        let (user, stop, answered) = (scene.user.clone(), stop.clone(), answered.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                for method in ["GET", "POST"] {
                    let answer = user.ask_over(version, method, LIST).await;
                    assert_eq!((answer.head.status(), answer.text().as_str()), (200, "fine"), "{method} {version:?}");
                }
                answered.fetch_add(2, Ordering::SeqCst);
            }
        })
    });
    let wait_for_more = |count| {
        let goal = answered.load(Ordering::SeqCst) + count;
        let clients_live = || clients.iter().all(|client| !client.is_finished());
        eventually("answers", || (!clients_live() || answered.load(Ordering::SeqCst) > goal).then_some(()));
    };
    for _ in 0..3 {
        wait_for_more(20);
        scene.agent.process.signal(Signal::TERM);
        assert!(scene.agent.process.wait().success());
        wait_for_more(20);
        scene.agent.restart();
        scene.stub.wait_for_agents(CLUSTER, 2);
        wait_for_more(20);
        second.process.signal(Signal::TERM);
        assert!(second.process.wait().success());
        second.restart();
        scene.stub.wait_for_agents(CLUSTER, 2);
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("every request is answered");
    }
    scene.stub.wait_until_idle(CLUSTER);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_silent_gets_no_new_requests() {
    let options = StubOptions::default().set("agents", "idle_timeout", "60s").set("agents", "report_interval", "100ms");
    let mut scene = Scene::start_with(options, &["--idle-timeout", "60s"], |_head, connection| fine(connection)).await;
    let _second = Agent::start(
        &scene.stub,
        CLUSTER,
        &scene.upstream.upstream(),
        AgentOptions { arguments: vec!["--idle-timeout".to_owned(), "60s".to_owned()], ..AgentOptions::default() },
    );
    scene.stub.wait_for_agents(CLUSTER, 2);
    scene.agent.process.kill();
    eventually("a suspect agent", || {
        scene.stub.agents(CLUSTER).iter().any(|agent| agent["state"] == "suspect").then_some(())
    });
    for _ in 0..20 {
        assert_eq!(scene.user.ask_over(Version::Http2, "POST", LIST).await.text(), "fine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_agents_is_unavailable_for_a_moment() {
    let mut scene = Scene::start(|_head, connection| fine(connection)).await;
    scene.agent.process.signal(Signal::TERM);
    scene.agent.process.wait();
    for version in Version::ALL {
        let answer = scene.user.ask_over(version, "GET", LIST).await;
        assert_eq!(answer.head.status(), 503);
        assert_eq!(
            answer.text(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"cluster \"c1\": no agent connected","reason":"ServiceUnavailable","details":{"retryAfterSeconds":1},"code":503}"#
        );
        assert_eq!(answer.head.header("content-type"), Some("application/json"));
        answer.expect_retry_after(Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_users_learn_which_clusters_exist() {
    let scene = Scene::start(|_head, connection| fine(connection)).await;
    let stranger = scene.user.without_certificate();
    let elsewhere = |user: &User| user.with_prefix("/clusters/nowhere");
    for version in Version::ALL {
        let answer = elsewhere(&scene.user).ask_over(version, "GET", LIST).await;
        let message = answer.expect_status(404, Some("NotFound"));
        assert!(message.contains("nowhere"), "{message}");
        let [known, unknown] = [stranger.clone(), elsewhere(&stranger)]
            .map(|user| async move { user.ask_over(version, "GET", LIST).await });
        let (known, unknown) = (known.await, unknown.await);
        known.expect_status(401, Some("Unauthorized"));
        assert_eq!(known.text(), unknown.text(), "strangers see no difference");
        assert_eq!(known.head.status(), unknown.head.status());
    }
    scene.wait_until_settled();
}
