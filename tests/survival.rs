//! One `kubectl exec` and one `kubectl logs -f` through everything at once: what lies between repairs itself, and neither notices.
//! In network namespaces; as root, skipped otherwise. `QTUNNEL_LONG_TESTS=1` makes the blackout a minute long.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::echo::EchoSession;
use support::eventually;
use support::kubectl::Kubectl;
use support::namespace::TwoLinks;
use support::process::Process;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, USERS};
use support::udp_relay::UdpRelay;

/// Each way; the round trip is twice that.
const DELAY: Duration = Duration::from_millis(25);

/// The longest silence that is accepted, on a machine that is busy with other tests. The aim is 3 round trips and 100 ms
/// for a change of address, and a second after an outage.
const SILENCE: Duration = Duration::from_secs(3);

/// Time for the sessions after each event.
const MOMENT: Duration = Duration::from_secs(2);

/// The public address of every stub.
const PUBLIC: &str = "10.79.0.1";

/// Two stubs that are one to users and agents, each behind a relay of its own.
struct Stubs {
    first: Stub,
    second: Stub,
    relays: [UdpRelay; 2],
}

impl Stubs {
    fn start(links: &TwoLinks) -> Self {
        let options = || StubOptions::default().host(PUBLIC).set("", "listen", "0.0.0.0:0");
        let (first, second) = links.public().run(|| {
            let first = Stub::start(options());
            let second = first.start_another(options());
            (first, second)
        });
        let relay = |stub: &Stub, port: u16| {
            let public = SocketAddr::new(PUBLIC.parse().unwrap(), port);
            UdpRelay::start_at(public, ([127, 0, 0, 1], stub.address.port()).into(), DELAY, links.public().enter())
        };
        let relays = [relay(&first, 4433), relay(&second, 4434)];
        Self { first, second, relays }
    }

    /// An agent in the private network that is connected to both.
    fn agent(&self, links: &TwoLinks, api: &SampleApi) -> Agent {
        let [first, second] = &self.relays;
        let options = AgentOptions::default().argument("--carrier=quic").argument(format!("--stub={}", second.address));
        links.private().run(|| Agent::start_at(first.address, &self.first, CLUSTER, &api.upstream(), options))
    }

    fn wait_for_agents(&self, count: usize) {
        self.first.wait_for_agents(CLUSTER, count);
        self.second.wait_for_agents(CLUSTER, count);
    }

    fn black_out(&self, dark: bool) {
        self.relays.iter().for_each(|relay| relay.black_out(dark));
    }
}

/// `kubectl logs -f` of a container that counts, a hundred lines a second.
struct LogSession(Process);

impl LogSession {
    fn start(kubectl: &Kubectl) -> Self {
        let mut process = kubectl.start(&["logs", "-f", "--tail=1", "-n", "demo", "web", "-c", "fast"]);
        process.wait_for_stdout("a line", |text| text.contains('\n'));
        Self(process)
    }

    /// The number of each whole line so far.
    fn ticks(&self) -> Vec<u64> {
        let text = self.0.stdout_text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let tick = |line: &str| line.split(' ').nth(1).and_then(|number| number.parse().ok());
        whole.lines().map(|line| tick(line).unwrap_or_else(|| panic!("{line:?} is no tick"))).collect()
    }

    /// Waits for a line that was not there at the call.
    fn goes_on(&self) {
        let before = self.ticks().len();
        eventually("another line of the log", || (self.ticks().len() > before).then_some(()));
    }

    /// Every line has come, once and in order.
    fn ends_well(mut self) -> usize {
        self.goes_on();
        assert_eq!(self.0.ended(), None, "{}", self.0.stderr());
        let ticks = self.ticks();
        let broken = ticks.windows(2).find(|pair| pair[1] != pair[0] + 1);
        assert_eq!(broken, None, "lost, doubled or out of order");
        ticks.len()
    }
}

#[test]
fn exec_and_logs_survive_a_new_address_a_blackout_a_dead_agent_and_the_restart_of_another_stub() {
    let Some(links) = TwoLinks::make() else { return };
    let mut stubs = Stubs::start(&links);
    let api = links.private().run(SampleApi::start);
    let agent = stubs.agent(&links, &api);
    stubs.wait_for_agents(1);
    let Some(kubectl) = Kubectl::newest(&stubs.first.kubeconfig(CLUSTER, "alice", &[USERS])) else { return };
    let (exec, log) = links.public().run(|| (EchoSession::start(&kubectl), LogSession::start(&kubectl)));
    // It comes after the sessions, so that it carries neither.
    let mut unrelated = stubs.agent(&links, &api);
    stubs.wait_for_agents(2);
    exec.runs_for(MOMENT);
    println!("undisturbed: longest silence {:?}", exec.longest_silence());
    let survived = |what: &str| {
        exec.runs_for(MOMENT);
        let silence = exec.longest_silence();
        println!("{what}: longest silence {silence:?}");
        assert!(silence < SILENCE, "{what}: {silence:?}");
        log.goes_on();
    };

    links.private().ip_batch(&[
        "addr del 10.77.0.2/24 dev first",
        "addr add 10.77.0.9/24 dev first",
        "route add default via 10.77.0.1",
    ]);
    survived("the agent's address changes");

    unrelated.process.kill();
    survived("an unrelated agent is killed");

    stubs.second.process.signal(Signal::TERM);
    assert!(stubs.second.process.wait().success(), "{}", stubs.second.process.stderr());
    links.public().run(|| stubs.second.restart());
    eventually("the agent at the restarted stub", || {
        stubs.second.agents(CLUSTER).iter().any(|agent| agent["state"] == "healthy").then_some(())
    });
    survived("another stub is restarted");

    let outage = Duration::from_secs(if support::long() { 60 } else { 10 });
    stubs.black_out(true);
    std::thread::sleep(outage);
    stubs.black_out(false);
    let back = Instant::now();
    let first = exec.first_after(back);
    println!("{outage:?} of blackout: echo {first:?} after it");
    assert!(first < SILENCE, "{first:?}");
    log.goes_on();
    exec.runs_for(MOMENT);

    exec.ends_well();
    println!("{} lines of the log, each once", log.ends_well());
    assert_eq!(stubs.first.process.logged("agent connected").len(), 2, "no agent had to connect to this stub again");
    drop(agent);
}
