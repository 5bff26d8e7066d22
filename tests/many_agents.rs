//! Two hundred agents come back to a stub that is restarted: not as one herd, and without a request being lost.

mod support;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use qtunnel::agent::{Agent, CarrierChoice, CarrierSettings};
use qtunnel::kube::kubeconfig::{Credentials, Upstream};
use rustix::process::Signal;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use support::balancer::{Backend, Balancer};
use support::load::Load;
use support::tunnel;
use support::tunnel::{CLUSTER, SampleApi, Stub, StubOptions, USERS};

const AGENTS: usize = 200;

/// Agents in this process, each with a state directory of its own, connected to both stubs.
struct Agents {
    running: JoinSet<()>,
    shutdown: CancellationToken,
    dir: tempfile::TempDir,
}

impl Agents {
    fn start(stubs: &[Stub], token: &str, upstream: &tunnel::Upstream) -> Self {
        let (mut running, shutdown) = (JoinSet::new(), CancellationToken::new());
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream {
            server: upstream.url.parse().unwrap(),
            certificate_authority: upstream.ca.as_ref().map(|path| std::fs::read(path).unwrap()),
            server_name: None,
            credentials: upstream.token_file.clone().map_or(Credentials::Anonymous, Credentials::TokenFile),
            insecure: false,
        };
        for number in 0..AGENTS {
            let stubs = stubs.iter().map(|stub| stub.address.to_string().parse().unwrap()).collect();
            let agent = Agent::builder(stubs, dir.path().join(number.to_string()), upstream.clone())
                .token(token.parse().unwrap())
                .carrier(CarrierSettings { choice: CarrierChoice::Quic, ..CarrierSettings::default() })
                .drain_timeout(Duration::from_secs(1))
                .response_timeout(Duration::from_secs(60))
                .build()
                .unwrap();
            let shutdown = shutdown.clone();
            running.spawn(async move { agent.run(shutdown).await.unwrap() });
        }
        Self { running, shutdown, dir }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
        drop(self.dir);
    }
}

fn wait_for_all(stub: &Stub) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while stub.agents(CLUSTER).len() < AGENTS {
        assert!(Instant::now() < deadline, "{} of {AGENTS} agents are there", stub.agents(CLUSTER).len());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_agents_come_back_to_a_restarted_stub_one_by_one() {
    let api = SampleApi::start();
    let options = || {
        StubOptions::default().set("admin", "listen", "127.0.0.1:0").set("limits", "handshake_timeout", "60s").set(
            "agents",
            "report_interval",
            "20s",
        )
    };
    let first = Stub::start(options());
    let token = first.token_with(CLUSTER, &["--uses", &AGENTS.to_string()]);
    let second = first.start_another(options());
    let mut stubs = [first, second];
    let agents = Agents::start(&stubs, &token, &api.upstream());
    block_in_place(|| stubs.iter().for_each(wait_for_all));
    let backends = stubs.each_mut().map(|stub| Backend { address: stub.address, admin: stub.admin_address() });
    let balancer = Balancer::start(backends.to_vec());
    let load =
        Load::start(&balancer.kubeconfig(&stubs[0].kubeconfig(CLUSTER, "alice", &[USERS]), stubs[0].address)).await;
    load.goes_on(100).await;

    let (restarted_at, seconds) = block_in_place(|| {
        let stub = &mut stubs[0];
        stub.process.signal(Signal::TERM);
        assert!(stub.process.wait().success(), "{}", stub.process.stderr());
        let restarted_at = Timestamp::now();
        stub.restart();
        wait_for_all(stub);
        let since = |agent: &serde_json::Value| {
            let connected: Timestamp = agent["connectedSince"].as_str().unwrap().parse().unwrap();
            connected.duration_since(restarted_at).as_secs_f64()
        };
        let mut seconds: Vec<f64> = stub.agents(CLUSTER).iter().map(since).collect();
        seconds.sort_by(f64::total_cmp);
        (restarted_at, seconds)
    });
    load.goes_on(100).await;
    let outcome = load.ends().await;
    let at = |percent: usize| seconds[(AGENTS - 1) * percent / 100];
    println!(
        "{AGENTS} agents were back at a stub restarted at {restarted_at}: first {:.2} s, tenth {:.2} s, half {:.2} s, nine tenths {:.2} s, last {:.2} s",
        at(0),
        at(10),
        at(50),
        at(90),
        at(100)
    );
    println!("meanwhile: {outcome:?}; this process has {} MiB", memory() >> 20);
    assert_eq!(outcome.failures, Vec::<String>::new());
    // Each waits for up to half a second at random, or longer where it came before the stub.
    assert!(at(90) - at(10) > 0.15, "they came as a herd");
    agents.stop().await;
}

/// What this process has resident, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("this process runs");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
