//! What the program says when something is not as it should be, and how it stops.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::http::{Access, Lines};
use support::process::Process;
use support::tunnel::{
    Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions, Tunnel, change_settings, init_stub, run_qtunnel,
    start_stub,
};

/// How long a stop may take when nothing is going on.
const STOP: Duration = Duration::from_secs(5);

/// A stub's directory, with nobody running.
struct StubDir {
    dir: tempfile::TempDir,
}

impl StubDir {
    fn new() -> Self {
        let stub = Self { dir: tempfile::tempdir().unwrap() };
        init_stub(&stub.file(""), None).ok();
        change_settings(&stub.config(), &[("", "listen", "127.0.0.1:0".into())]);
        stub
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("stub").join(name)
    }

    fn config(&self) -> std::path::PathBuf {
        self.file("stub.toml")
    }

    /// Starts the stub, which has to end by itself, and gives what it says.
    fn complaint(&self) -> String {
        complaint(&["stub", "--config", self.config().to_str().unwrap()])
    }
}

/// Runs the program, which has to fail, and gives its one line.
fn complaint(arguments: &[&str]) -> String {
    let finished = run_qtunnel(arguments);
    assert_eq!(finished.code(), 1, "{arguments:?}: {}", finished.stderr);
    let lines: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((lines.len(), finished.stdout.len()), (1, 0), "{}", finished.stderr);
    let error = finished.stderr;
    let causes: Vec<&str> = error.split(": ").collect();
    assert!(causes.windows(2).all(|pair| pair[0] != pair[1]), "said twice: {error}");
    error
}

fn snapshot(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_stubs_keys_are_never_made_over() {
    let stub = StubDir::new();
    let before = snapshot(&stub.file(""));
    let error = init_stub(&stub.file(""), None).failed();
    assert!(error.contains("exists already"), "{error}");
    // Without its settings the keys are still keys.
    fs::remove_file(stub.config()).unwrap();
    let error = init_stub(&stub.file(""), None).failed();
    assert!(error.contains("exists already"), "{error}");
    assert!(!stub.config().exists());
    let settings = before.iter().position(|(path, _)| *path == stub.config()).unwrap();
    assert_eq!(snapshot(&stub.file("")), [&before[..settings], &before[settings + 1..]].concat());
}

#[test]
fn a_taken_port_is_named() {
    let stub = StubDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    change_settings(&stub.config(), &[("", "listen", address.clone().into())]);
    let error = stub.complaint();
    assert!(error.contains(&format!("cannot listen on TCP {address}")) && error.contains("`listen`"), "{error}");
}

#[test]
fn settings_that_are_not_understood_are_refused() {
    let stub = StubDir::new();
    let good = fs::read_to_string(stub.config()).unwrap();
    let cases = [
        (good.clone() + "\n[surprise]\nkey = 1\n", "surprise"),
        (format!("lisen = \"127.0.0.1:0\"\n{good}"), "lisen"),
        (good.replace("allow-all", "allow-some"), "allow-some"),
        (good.replace("mode = \"allow-all\"", ""), "mode"),
        (good.replace("127.0.0.1:0", "somewhere"), "listen"),
        ("no settings at all".to_owned(), "stub.toml"),
    ];
    for (text, named) in cases {
        fs::write(stub.config(), &text).unwrap();
        let error = stub.complaint();
        assert!(error.contains(named) && error.contains("stub.toml"), "{named}: {error}");
    }
    fs::remove_file(stub.config()).unwrap();
    let error = stub.complaint();
    assert!(error.contains("stub.toml") && error.contains("qtunnel stub init"), "{error}");
}

#[test]
fn a_key_that_cannot_be_used_is_named() {
    for name in ["server-key.pem", "agent-ca.pem", "user-ca-key.pem"] {
        let stub = StubDir::new();
        let whole = fs::read(stub.file(name)).unwrap();
        fs::write(stub.file(name), "rubbish").unwrap();
        assert!(stub.complaint().contains(name));
        fs::remove_file(stub.file(name)).unwrap();
        assert!(stub.complaint().contains(name));
        fs::create_dir(stub.file(name)).unwrap();
        assert!(stub.complaint().contains(name));
        fs::remove_dir(stub.file(name)).unwrap();
        fs::write(stub.file(name), whole).unwrap();
        start_stub(&stub.config()).wait_for_log("stub listens");
    }
}

#[test]
fn a_file_of_tokens_that_cannot_be_used_keeps_the_stub_from_starting() {
    let stub = StubDir::new();
    change_settings(&stub.config(), &[("authentication", "token_file", "tokens.csv".into())]);
    assert!(stub.complaint().contains("tokens.csv"));
    fs::write(stub.file("tokens.csv"), "only-a-token\n").unwrap();
    assert!(stub.complaint().contains("tokens.csv"));
}

#[test]
fn a_kubeconfig_is_made_for_known_clusters_only() {
    let stub = StubDir::new();
    let config = stub.config();
    let config = config.to_str().unwrap();
    let error = complaint(&["kubeconfig", "--config", config, "--cluster", "nowhere", "--user", "alice"]);
    assert!(error.contains("cluster \"nowhere\" does not exist") && error.contains("qtunnel token create"), "{error}");
    run_qtunnel(["token", "create", "--config", config, "--cluster", "c1"]).ok();
    let error = complaint(&["kubeconfig", "--config", config, "--cluster", "nowhere", "--user", "alice"]);
    assert!(error.contains("known: c1"), "{error}");
    assert_eq!(run_qtunnel(["token", "create", "--config", config, "--cluster", "No Name"]).code(), 2);
}

#[test]
fn the_status_of_a_stub_that_does_not_run_is_not_to_be_had() {
    let stub = StubDir::new();
    let error = complaint(&["status", "--config", stub.config().to_str().unwrap()]);
    assert!(error.contains("no stub answers"), "{error}");
}

#[test]
fn an_agent_names_the_file_that_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (state, missing) = (file("state"), file("missing"));
    let agent = ["agent", "--stub", "127.0.0.1:9", "--state-dir", &state];
    let server = ["--upstream", "https://127.0.0.1:9"];
    let cases: [&[&str]; 3] = [
        &["--kubeconfig", &missing],
        &[server[0], server[1], "--upstream-ca", &missing],
        &[server[0], server[1], "--upstream-token-file", &missing],
    ];
    for arguments in cases {
        let error = complaint(&[&agent[..], arguments].concat());
        assert!(error.contains(&missing), "{arguments:?}: {error}");
    }
    fs::write(&missing, "rubbish").unwrap();
    let error = complaint(&[&agent[..], cases[0]].concat());
    assert!(error.contains(&missing), "{error}");
    let error = complaint(&[&agent[..], cases[1]].concat());
    assert!(error.contains("--upstream-ca") && error.contains(&missing), "{error}");
    // Not in a cluster, and nothing said of another one.
    let error = complaint(&agent);
    assert!(error.contains("KUBERNETES_SERVICE_HOST") || error.contains("--upstream"), "{error}");
}

#[test]
fn settings_of_an_agent_that_are_not_understood_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, "stub = \"127.0.0.1:9\"\nstate-dir = \"state\"\nupstraem = \"http://127.0.0.1:9\"\n").unwrap();
    let error = complaint(&["agent", "--config", config.to_str().unwrap()]);
    assert!(error.contains("upstraem") && error.contains("agent.toml"), "{error}");
}

#[test]
fn every_process_stops_cleanly_when_told_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let Tunnel { stub, agent, api } = Tunnel::start();
        for mut process in [agent.process, stub.process, api.process] {
            process.signal(signal);
            let status = process.wait_at_most(STOP);
            assert!(status.success(), "{signal:?}: {status}: {}", process.stderr());
        }
    }
}

#[test]
fn an_agent_stops_while_it_looks_for_its_stub() {
    let api = SampleApi::start();
    let mut stub = Stub::start(StubOptions::default());
    let token = stub.token(CLUSTER);
    stub.process.kill();
    let options = AgentOptions { token: Some(token), ..AgentOptions::default() };
    let mut agent = Agent::start(&stub, CLUSTER, &api.upstream(), options);
    agent.process.wait_for_log("the API server answers");
    agent.process.signal(Signal::TERM);
    assert!(agent.process.wait_at_most(STOP).success());
}

/// A tunnel with a log that is being followed, and how long its two sides wait for such at a stop.
async fn tunnel_in_use(patience: &str) -> (Tunnel, Lines) {
    let stub = StubOptions::default().set("limits", "shutdown_timeout", patience);
    let agent =
        AgentOptions { arguments: vec!["--drain-timeout".to_owned(), patience.to_owned()], ..AgentOptions::default() };
    let tunnel = Tunnel::start_with(stub, agent);
    let mut client = Access::of(&tunnel.kubeconfig()).http1().await;
    let response = client.open("/api/v1/namespaces/demo/pods/web/log?container=fast&follow=true&tailLines=1").await;
    let mut lines = Lines::of(response.into_body());
    lines.next().await;
    (tunnel, lines)
}

/// Told to stop, the process lets the log go on for its patience, and not for longer.
async fn cuts_off_what_does_not_end(process: &mut Process, mut lines: Lines) {
    let began = Instant::now();
    process.signal(Signal::TERM);
    process.wait_for_log("SIGTERM");
    while began.elapsed() < Duration::from_millis(500) {
        lines.next().await;
    }
    assert!(process.wait_at_most(STOP).success(), "{}", process.stderr());
    assert!(began.elapsed() > Duration::from_secs(1));
    // A clean end would say that the log is over.
    assert!(lines.broken_off().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_that_stops_cuts_off_what_does_not_end() {
    let (mut tunnel, lines) = tunnel_in_use("1s").await;
    cuts_off_what_does_not_end(&mut tunnel.stub.process, lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_cuts_off_what_does_not_end() {
    let (mut tunnel, lines) = tunnel_in_use("1s").await;
    cuts_off_what_does_not_end(&mut tunnel.agent.process, lines).await;
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_process_at_once() {
    let (mut tunnel, _lines) = tunnel_in_use("1h").await;
    for process in [&mut tunnel.agent.process, &mut tunnel.stub.process] {
        process.signal(Signal::INT);
        process.wait_for_log("SIGINT: stopping");
        assert!(process.ended().is_none());
        process.signal(Signal::INT);
        assert_eq!(process.wait_at_most(STOP).code(), Some(1));
    }
}
