//! Rolling restarts under load: no request is lost, whichever side is restarted.

mod support;

use rustix::process::Signal;
use tokio::task::block_in_place;

use support::balancer::{Backend, Balancer};
use support::load::{Load, Outcome};
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, USERS};

/// Answers between two restarts.
const BETWEEN: usize = 150;

/// Clients of a [`Load`], the one that makes its first list among them.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_are_restarted_one_after_the_other_lose_no_request() {
    let (api, stub) = (SampleApi::start(), Stub::start(StubOptions::default()));
    let start = || Agent::start(&stub, CLUSTER, &api.upstream(), AgentOptions::default());
    let mut agents = [start(), start()];
    stub.wait_for_agents(CLUSTER, 2);
    let load = Load::start(&stub.kubeconfig(CLUSTER, "alice", &[USERS])).await;
    for _ in 0..2 {
        for agent in &mut agents {
            load.goes_on(BETWEEN).await;
            block_in_place(|| {
                agent.process.signal(Signal::TERM);
                assert!(agent.process.wait().success());
                agent.restart();
                stub.wait_for_agents(CLUSTER, 2);
            });
        }
    }
    load.goes_on(BETWEEN).await;
    let outcome = load.ends().await;
    println!("4 restarts of agents: {outcome:?}");
    nothing_was_lost(&outcome);
    assert!(outcome.watches > 1, "no watch was on an agent that stopped");
    assert_eq!(outcome.connections, CLIENTS, "clients notice nothing but the end of a watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stubs_that_are_restarted_one_after_the_other_lose_no_request() {
    let api = SampleApi::start();
    // As long as the balancer needs to notice on a machine that is busy with other tests.
    let options = || StubOptions::default().set("admin", "listen", "127.0.0.1:0").set("limits", "drain_delay", "3s");
    let first = Stub::start(options());
    let second = first.start_another(options());
    let mut stubs = [first, second];
    let _agents: Vec<Agent> =
        stubs.iter().map(|stub| Agent::start(stub, CLUSTER, &api.upstream(), AgentOptions::default())).collect();
    for stub in &stubs {
        stub.wait_for_agents(CLUSTER, 1);
    }
    let backends = stubs.each_mut().map(|stub| Backend { address: stub.address, admin: stub.admin_address() });
    let balancer = Balancer::start(backends.to_vec());
    let kubeconfig = stubs[0].kubeconfig(CLUSTER, "alice", &[USERS]);
    let load = Load::start(&balancer.kubeconfig(&kubeconfig, stubs[0].address)).await;
    for _ in 0..2 {
        for stub in &mut stubs {
            load.goes_on(BETWEEN).await;
            block_in_place(|| {
                stub.process.signal(Signal::TERM);
                assert!(stub.process.wait().success(), "{}", stub.process.stderr());
                stub.restart();
            });
            support::eventually_async("both stubs are ready", async || (balancer.ready().len() == 2).then_some(()))
                .await;
        }
    }
    load.goes_on(BETWEEN).await;
    let outcome = load.ends().await;
    println!("4 restarts of stubs: {outcome:?}");
    nothing_was_lost(&outcome);
    assert!(outcome.watches > 1, "no watch was on a stub that stopped");
}

fn nothing_was_lost(outcome: &Outcome) {
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert!(outcome.answered > 5 * BETWEEN);
}
