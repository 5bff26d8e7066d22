//! `qtunnel demo` as a user runs it: the real program, real signals, and kubectl where there is one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use qtunnel::demo::SampleCluster;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A place for temporary files, where those that stay behind are found.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn demo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
        command.arg("demo").args(arguments).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TMPDIR", self.0.path()).env("HOME", "/nonexistent");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs to the end.
    async fn run(&self, arguments: &[&str]) -> Output {
        timeout(DEADLINE, self.demo(arguments).output()).await.expect("an end in time").unwrap()
    }

    fn assert_empty(&self) {
        let left: Vec<_> = self.0.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A demo that runs.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it prints up to a line that begins with `last`.
    async fn printed_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        let read = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                text += &format!("{line}\n");
                if line.starts_with(last) {
                    return true;
                }
            }
            false
        };
        assert!(timeout(DEADLINE, read).await.expect("output in time"), "it ended early: {text}");
        text
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its exit code, and what it complained of.
    async fn ended_within(mut self, deadline: Duration) -> (Option<i32>, String) {
        let status = timeout(deadline, self.child.wait()).await.expect("an end in time").unwrap();
        let mut complaints = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut complaints).await.unwrap();
        (status.code(), complaints)
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A cluster that is no part of the demo, with its administrator's kubeconfig in `directory`.
async fn foreign_cluster(directory: &Path) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cluster = SampleCluster::new(address).unwrap();
    cluster.write(directory).unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move { cluster.serve(listener, stop).await });
    (address, shutdown.drop_guard())
}

#[tokio::test]
async fn every_check_of_the_sample_cluster_passes_and_a_signal_leaves_nothing_behind() {
    let place = Place::new();
    let mut demo = Running::start(place.demo(&[]));
    let output = demo.printed_until("Ctrl-C").await;
    for check in ["tunnel", "list namespaces", "list pods", "watch", "logs -f", "exec", "port-forward", "small GET"] {
        assert!(output.contains(&format!("  ✓ {check} ")), "{check}: {output}");
    }
    let dashboard = output.split("Watch it in a browser: http://").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    let dashboard = dashboard.trim_end_matches('/');
    let mut page = TcpStream::connect(dashboard).await.unwrap();
    page.write_all(format!("GET / HTTP/1.1\r\nHost: {dashboard}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    timeout(DEADLINE, page.read_to_string(&mut text)).await.expect("a page in time").unwrap();
    assert!(text.contains("<title>qtunnel</title>"), "{text}");
    assert!(!output.contains('\x1b'), "no terminal, no colours: {output:?}");
    let kubeconfig = output.split("export KUBECONFIG=").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    assert!(Path::new(kubeconfig).starts_with(place.0.path()), "{kubeconfig}");
    assert!(Path::new(kubeconfig).exists(), "{kubeconfig}");
    demo.signal(Signal::TERM);
    assert_eq!(demo.ended_within(STOP_DEADLINE).await, (Some(0), String::new()));
    place.assert_empty();
}

#[tokio::test]
async fn a_command_has_its_own_output_and_input() {
    let place = Place::new();
    let output = place.run(&["--", "sh", "-c", "test -r \"$KUBECONFIG\" && cat && echo out"]).await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "out\n"), "{}", text(&output.stderr));
    let complaints = text(&output.stderr);
    assert!(complaints.starts_with("qtunnel demo: the tunnel is up at 127.0.0.1:"), "{complaints}");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    place.assert_empty();
}

#[tokio::test]
async fn kubectl_works_in_the_demo() {
    let place = Place::new();
    let output = place.run(&["--", "kubectl", "get", "pods", "-A"]).await;
    if output.status.code() == Some(127) {
        return println!("skipped: no kubectl found");
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pods = text(&output.stdout);
    assert!(pods.contains("demo") && pods.contains("web") && pods.contains("Running"), "{pods}");
}

#[tokio::test]
async fn the_status_of_the_command_is_the_demos() {
    let place = Place::new();
    assert_eq!(place.run(&["--", "sh", "-c", "exit 7"]).await.status.code(), Some(7));
    assert_eq!(place.run(&["--", "sh", "-c", "kill -9 $$"]).await.status.code(), Some(128 + 9));
    assert_eq!(place.run(&["--", "/nonexistent/command"]).await.status.code(), Some(127));
    place.assert_empty();
}

#[tokio::test]
async fn a_signal_reaches_the_command_which_decides() {
    let place = Place::new();
    let script = "trap 'exit 9' TERM; echo waiting; while :; do sleep 0.1; done";
    let mut demo = Running::start(place.demo(&["--", "sh", "-c", script]));
    demo.printed_until("waiting").await;
    demo.signal(Signal::TERM);
    assert_eq!(demo.ended_within(STOP_DEADLINE).await.0, Some(9));
    place.assert_empty();
}

#[tokio::test]
async fn what_a_foreign_cluster_forbids_is_skipped_and_explained() {
    let (place, files) = (Place::new(), tempfile::tempdir().unwrap());
    let (_address, _cluster) = foreign_cluster(files.path()).await;
    let kubeconfig = files.path().join("kubeconfig.yaml");
    let mut demo = Running::start(place.demo(&["--kubeconfig", kubeconfig.to_str().unwrap()]));
    let output = demo.printed_until("Ctrl-C").await;
    assert!(output.contains("skipped: pods is forbidden: User \"qtunnel-demo\" cannot list"), "{output}");
    assert!(output.contains("kubectl create clusterrolebinding qtunnel-demo"), "{output}");
    assert!(output.contains("  ✓ small GET "), "{output}");
    demo.signal(Signal::INT);
    assert_eq!(demo.ended_within(STOP_DEADLINE).await.0, Some(0));
}

#[tokio::test]
async fn a_foreign_cluster_is_only_looked_at() {
    let (place, files) = (Place::new(), tempfile::tempdir().unwrap());
    let (_address, _cluster) = foreign_cluster(files.path()).await;
    let kubeconfig = files.path().join("kubeconfig.yaml");
    let arguments = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--as-user", "alice", "--as-group", "qtunnel:users"];
    let mut demo = Running::start(place.demo(&arguments));
    let output = demo.printed_until("Ctrl-C").await;
    for check in ["list namespaces", "list pods", "watch", "logs -f", "exec", "port-forward", "small GET"] {
        assert!(output.contains(&format!("  ✓ {check} ")), "{check}: {output}");
    }
    assert!(output.contains("to the first event"), "{output}");
    demo.signal(Signal::TERM);
    assert_eq!(demo.ended_within(STOP_DEADLINE).await.0, Some(0));
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_an_error_that_says_so() {
    let (place, files) = (Place::new(), tempfile::tempdir().unwrap());
    let (address, cluster) = foreign_cluster(files.path()).await;
    drop(cluster);
    // The port is free again when nobody can connect any more.
    let gone = async { while tokio::net::TcpStream::connect(address).await.is_ok() {} };
    timeout(DEADLINE, gone).await.unwrap();
    let kubeconfig = files.path().join("kubeconfig.yaml");
    let output = place.run(&["--kubeconfig", kubeconfig.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let complaints = text(&output.stderr);
    let error = complaints.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains("cannot be reached") && error.contains(&address.to_string()), "{complaints}");
    place.assert_empty();
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_flag_that_helps() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = place.run(&["--port", &port]).await;
    assert_eq!(output.status.code(), Some(1));
    let complaints = text(&output.stderr);
    assert!(complaints.contains(&port) && complaints.contains("choose another --port"), "{complaints}");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    place.assert_empty();
}

#[tokio::test]
async fn a_check_that_fails_is_explained_and_ends_the_demo() {
    let (place, files) = (Place::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(a_broken_api_server(listener));
    let kubeconfig = files.path().join("kubeconfig.yaml");
    let broken = format!(
        "{{current-context: c, clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}], contexts: [{{name: c, context: {{cluster: c}}}}]}}"
    );
    std::fs::write(&kubeconfig, broken).unwrap();
    let output = place.run(&["--kubeconfig", kubeconfig.to_str().unwrap()]).await;
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}{}", text(&output.stderr));
    assert!(printed.contains("✗ list pods"), "{printed}");
    assert!(printed.contains("failed: 500 Internal Server Error: out of order"), "{printed}");
    assert!(printed.contains("run again with `--log qtunnel=debug`"), "{printed}");
    assert!(printed.contains("3 of 7 checks failed"), "{printed}");
    place.assert_empty();
}

/// Knows its version and whether it lives, and nothing else.
async fn a_broken_api_server(listener: TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (reader, mut writer) = socket.into_split();
            let mut lines = BufReader::new(reader).lines();
            let request = lines.next_line().await.unwrap_or_default().unwrap_or_default();
            while lines.next_line().await.ok().flatten().is_some_and(|line| !line.is_empty()) {}
            let (status, body) = match request.split(' ').nth(1) {
                Some("/version") => ("200 OK", r#"{"gitVersion": "v0"}"#),
                Some(path) if path.starts_with("/livez") || path.starts_with("/readyz") => ("200 OK", "ok"),
                _ => ("500 Internal Server Error", "out of order"),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            // A client that goes away is no matter.
            let _ = writer.write_all(format!("{head}{body}").as_bytes()).await;
        });
    }
}
