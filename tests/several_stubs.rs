//! Several stubs that are one to users and agents: what they share, and agents that are connected to all of them.

mod support;

use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;

use support::eventually;
use support::http::Access;
use support::shared_store::{secrets, start_stub_with_secrets};
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, USERS, Upstream};

const PODS: &str = "/api/v1/namespaces/demo/pods";

fn options() -> StubOptions {
    StubOptions::default()
}

/// The setting that names other stubs.
fn naming(stubs: &[&Stub]) -> StubOptions {
    let peers: Vec<toml::Value> = stubs.iter().map(|stub| stub.address.to_string().into()).collect();
    options().set("", "peers", peers)
}

fn nowhere() -> Upstream {
    Upstream { url: "http://127.0.0.1:9".to_owned(), ca: None, token_file: None }
}

fn access(stub: &Stub) -> Access {
    Access::of(&stub.kubeconfig(CLUSTER, "alice", &[USERS]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_given_one_stub_serves_them_all_and_one_may_die() {
    let api = SampleApi::start();
    let mut first = Stub::start(options());
    let second = first.start_another(naming(&[&first]));
    let agent = Agent::start(&second, CLUSTER, &api.upstream(), AgentOptions::default());
    for stub in [&first, &second] {
        stub.wait_for_agents(CLUSTER, 1);
        assert_eq!(access(stub).get(PODS).await.status, 200);
    }
    assert_eq!(first.agents(CLUSTER)[0]["name"], second.agents(CLUSTER)[0]["name"]);

    let (through_second, mut client) = (access(&second), access(&second).http2().await);
    first.process.kill();
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(2) {
        assert_eq!(through_second.get(PODS).await.status, 200);
        assert_eq!(client.open(PODS).await.status(), 200);
    }

    first.restart();
    first.wait_for_agents(CLUSTER, 1);
    println!("a stub that was killed and started again had its agent {:.1} s after", killed.elapsed().as_secs_f64());
    assert_eq!(access(&first).get(PODS).await.status, 200);
    assert_eq!(second.process.logged("agent disconnected").len(), 0, "the other stub is not touched");
    drop(agent);
}

#[test]
fn a_stub_that_is_new_gets_the_agents_when_another_names_it() {
    let mut first = Stub::start(options());
    let mut agent = Agent::start(&first, CLUSTER, &nowhere(), AgentOptions::default());
    agent.process.wait_for_log("connected");
    let second = first.start_another(options());
    assert_eq!(second.agents(CLUSTER).len(), 0);
    let peers: Vec<toml::Value> = [&first, &second].map(|stub| stub.address.to_string().into()).to_vec();
    support::tunnel::change_settings(&first.config(), &[("", "peers", peers.into())]);
    first.restart();
    for stub in [&first, &second] {
        eventually("the agent at both stubs", || (stub.agents(CLUSTER).len() == 1).then_some(()));
    }
}

#[test]
fn several_addresses_of_one_stub_are_one_connection() {
    let stub = Stub::start(options());
    let port = stub.address.port();
    let stubs = AgentOptions::default().argument(format!("--stub=localhost:{port},127.0.0.1:{port}"));
    let mut agent = Agent::start(&stub, CLUSTER, &nowhere(), stubs);
    agent.process.wait_for_log("leads to the stub that is connected as");
    eventually("one agent", || (stub.agents(CLUSTER).len() == 1).then_some(()));
    let connected = stub.agents(CLUSTER)[0]["connectedSince"].clone();
    // Long enough for two links that threw each other out to do it again.
    let began = Instant::now();
    eventually("a while", || (began.elapsed() > Duration::from_secs(3)).then_some(()));
    assert_eq!(stub.agents(CLUSTER)[0]["connectedSince"], connected, "the connection stays");
}

#[test]
fn a_list_of_stubs_may_stand_in_the_settings_file_of_an_agent() {
    let first = Stub::start(options());
    let second = first.start_another(options());
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("agent.toml");
    std::fs::write(&settings, format!("stub = [\"{}\", \"{}\"]", first.address, second.address)).unwrap();
    let (state, token) = (dir.path().join("agent"), first.token(CLUSTER));
    let arguments = ["agent", "--config", settings.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    let mut command = support::tunnel::qtunnel(arguments);
    command.args(["--token", &token, "--upstream", "http://127.0.0.1:9"]);
    let _agent = support::process::Process::start("the agent", command, support::process::Input::None);
    for stub in [&first, &second] {
        eventually("the agent at both stubs", || (stub.agents(CLUSTER).len() == 1).then_some(()));
    }
}

/// Two agents with the same token for one agent, each at another stub.
fn race(stubs: [&Stub; 2]) {
    let token = stubs[0].token(CLUSTER);
    let with_token = || AgentOptions { token: Some(token.clone()), ..AgentOptions::default() };
    let mut agents = stubs.map(|stub| Agent::start(stub, CLUSTER, &nowhere(), with_token()));
    let outcomes = eventually("an end of both attempts", || {
        let outcomes = agents.each_mut().map(|agent| {
            let refused = agent.process.ended().is_some();
            let joined = !agent.process.logged("joined").is_empty();
            (refused, joined)
        });
        outcomes.iter().all(|(refused, joined)| *refused || *joined).then_some(outcomes)
    });
    assert_eq!(outcomes.iter().filter(|(_, joined)| *joined).count(), 1, "one use is one agent");
    let refused = agents.iter().position(|agent| agent.process.logged("joined").is_empty()).unwrap();
    let said = agents[refused].process.stderr();
    assert!(said.contains("the stub refused to let this agent join"), "{said}");
}

#[test]
fn a_token_for_one_agent_is_spent_once_at_stubs_that_share_a_directory() {
    let first = Stub::start(options());
    let second = first.start_another(options());
    for _ in 0..3 {
        race([&first, &second]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_agent_is_spent_once_at_stubs_that_share_secrets() {
    let api = SampleApi::start();
    let first = start_stub_with_secrets(&api, options()).await;
    let second = first.start_another(options());
    for _ in 0..3 {
        race([&first, &second]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stubs_with_secrets_serve_the_same_clusters_and_users() {
    let api = SampleApi::start();
    let first = start_stub_with_secrets(&api, options()).await;
    let second = first.start_another(naming(&[&first]));
    let agent = Agent::start(&second, CLUSTER, &api.upstream(), AgentOptions::default());
    for stub in [&first, &second] {
        stub.wait_for_agents(CLUSTER, 1);
        assert_eq!(access(stub).get(PODS).await.status, 200);
    }
    // A kubeconfig of one stub is good at the other.
    let elsewhere = access(&first).at(&format!("https://{}/clusters/{CLUSTER}", second.address));
    assert_eq!(elsewhere.get(PODS).await.status, 200);
    first.token("other");
    eventually("the other cluster at the other stub", || {
        let status = second.status();
        status["clusters"].as_array().unwrap().iter().any(|cluster| cluster["id"] == "other").then_some(())
    });
    let names: Vec<_> = secrets(&api).await.list(&Default::default()).await.unwrap().items;
    let mut names: Vec<_> = names.into_iter().filter_map(|secret| secret.metadata.name).collect();
    names.sort();
    assert_eq!(names, ["qtunnel-stub-clusters", "qtunnel-stub-keys", "qtunnel-stub-tokens"]);
    drop(agent);
}

/// Starts an agent that is connected to both, and gives the line of a list that revokes it.
fn connected(stubs: [&Stub; 2]) -> (Agent, String) {
    let agent = Agent::start(stubs[1], CLUSTER, &nowhere(), AgentOptions::default());
    for stub in stubs {
        eventually("the agent at both stubs", || (stub.agents(CLUSTER).len() == 1).then_some(()));
    }
    let line = format!("{CLUSTER}/{}\n", stubs[0].agents(CLUSTER)[0]["name"].as_str().unwrap());
    (agent, line)
}

fn is_turned_away(agent: &mut Agent, stubs: [&mut Stub; 2]) {
    for stub in stubs {
        stub.process.wait_for_log("agent disconnected");
        eventually("no agent", || stub.agents(CLUSTER).is_empty().then_some(()));
    }
    agent.process.wait_for_log("this agent has been revoked");
}

#[test]
fn an_agent_that_is_revoked_in_a_shared_directory_is_turned_away_by_every_stub() {
    let mut first = Stub::start(options());
    let mut second = first.start_another(naming(&[&first]));
    let (mut agent, line) = connected([&first, &second]);
    std::fs::write(first.state_dir().join("revoked-agents"), line).unwrap();
    is_turned_away(&mut agent, [&mut first, &mut second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_revoked_in_a_secret_is_turned_away_by_every_stub() {
    let api = SampleApi::start();
    let mut first = start_stub_with_secrets(&api, options()).await;
    let mut second = first.start_another(naming(&[&first]));
    let (mut agent, line) = connected([&first, &second]);
    let list = Secret {
        metadata: ObjectMeta { name: Some("qtunnel-stub-revoked".to_owned()), ..ObjectMeta::default() },
        data: Some([("revoked-agents".to_owned(), ByteString(line.into()))].into()),
        ..Secret::default()
    };
    secrets(&api).await.create(&PostParams::default(), &list).await.unwrap();
    is_turned_away(&mut agent, [&mut first, &mut second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stubs_go_on_while_the_api_that_keeps_their_secrets_is_away() {
    let (api, keeper) = (SampleApi::start(), SampleApi::start());
    let mut stub = start_stub_with_secrets(&keeper, options()).await;
    let agent = Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default());
    stub.wait_for_agents(CLUSTER, 1);
    let access = access(&stub);
    drop(keeper);
    stub.process.wait_for_log("going on with what is known");
    assert_eq!(access.get(PODS).await.status, 200);
    drop(agent);
}
