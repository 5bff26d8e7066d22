//! An agent whose addresses and routes change, in network namespaces. As root; skipped otherwise.

mod support;

use std::time::Duration;

use support::echo::EchoSession;
use support::kubectl::Kubectl;
use support::namespace::TwoLinks;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, USERS};
use support::udp_relay::UdpRelay;

/// Each way; the round trip is twice that.
const DELAY: Duration = Duration::from_millis(25);

/// The longest silence that is accepted, on a machine that is busy with other tests. The aim is 3 round trips and 100 ms.
const SILENCE: Duration = Duration::from_secs(2);

/// Time for the session before a change and after it.
const MOMENT: Duration = Duration::from_secs(2);

#[test]
fn an_exec_session_survives_every_change_of_the_agents_network() {
    let Some(links) = TwoLinks::make() else { return };
    let stub = links.public().run(|| {
        let options = StubOptions::default().host("10.79.0.1").set("", "listen", "0.0.0.0:0");
        Stub::start(options)
    });
    let relay = {
        let server = ([127, 0, 0, 1], stub.address.port()).into();
        UdpRelay::start_at(([10, 79, 0, 1], 4433).into(), server, DELAY, links.public().enter())
    };
    let (api, agent) = links.private().run(|| {
        let api = SampleApi::start();
        let agent = Agent::start_at(relay.address, &stub, CLUSTER, &api.upstream(), AgentOptions::default());
        (api, agent)
    });
    stub.wait_for_agents(CLUSTER, 1);
    let Some(kubectl) = Kubectl::newest(&stub.kubeconfig(CLUSTER, "alice", &[USERS])) else { return };
    let session = links.public().run(|| EchoSession::start(&kubectl));

    session.runs_for(MOMENT);
    println!("undisturbed: longest silence {:?}", session.longest_silence());
    let changes: [(&str, &[&str]); 5] = [
        ("the default route moves to the other link", &["route replace default via 10.78.0.1"]),
        (
            "the address is replaced",
            &[
                "addr add 10.78.0.3/24 dev second",
                "addr del 10.78.0.2/24 dev second",
                "addr add 10.78.0.4/24 dev second",
                "route replace default via 10.78.0.1",
            ],
        ),
        (
            "the link goes down and the other one takes over",
            &["link set second down", "route add default via 10.77.0.1"],
        ),
        (
            "the only address goes and another one comes",
            &["addr del 10.77.0.2/24 dev first", "addr add 10.77.0.9/24 dev first", "route add default via 10.77.0.1"],
        ),
        ("routes change that lead elsewhere", &["route add 10.80.0.0/24 via 10.77.0.1", "route del 10.80.0.0/24"]),
    ];
    for (what, commands) in changes {
        links.private().ip_batch(commands);
        session.runs_for(MOMENT);
        let silence = session.longest_silence();
        println!("{what}: longest silence {silence:?}");
        assert!(silence < SILENCE, "{silence:?}");
    }
    let rebound = agent.process.logged("path changed from").len();
    assert_eq!(rebound, 4, "one rebinding for each change that matters");

    links.private().ip("route del default");
    session.runs_for(Duration::from_secs(5));
    links.private().ip("route add default via 10.77.0.1");
    let back = std::time::Instant::now();
    let first = session.first_after(back);
    println!("5 s without a route: echo {first:?} after it");
    assert!(first < SILENCE, "{first:?}");
    session.ends_well();
    drop((api, agent));
}
