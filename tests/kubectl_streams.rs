//! kubectl through the tunnel: what stays open. Watches, logs, exec, attach, cp and port-forward, over WebSocket and over
//! SPDY, with a new kubectl and an old one.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::process::Signal;
use support::kubectl::Kubectl;
use support::process::{Input, Process};
use support::terminal::Terminal;
use support::tunnel::Tunnel;
use support::{DEADLINE, eventually};

const WEB: [&str; 5] = ["-n", "demo", "web", "-c", "web"];

fn exec<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["exec"], &WEB[..], arguments].concat()
}

/// Bytes without a pattern that a mistake could keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_watch_shows_each_change() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let mut watch = kubectl.start(&["get", "cm", "-n", "kube-public", "-w", "-o", "name"]);
        watch.wait_for_stdout("what was there", |text| text.contains("configmap/cluster-info"));
        for name in ["first", "second"] {
            kubectl.ok(&["create", "cm", name, "-n", "kube-public"]);
            watch.wait_for_stdout("the new object", |text| text.contains(&format!("configmap/{name}")));
            kubectl.ok(&["delete", "cm", name, "-n", "kube-public"]);
            watch.wait_for_stdout("its end", |text| text.matches(&format!("configmap/{name}")).count() == 2);
        }
        watch.signal(Signal::TERM);
        watch.wait();
    }
    tunnel.wait_until_idle();
}

#[test]
fn logs_are_read_and_followed() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let fast = ["logs", "-n", "demo", "web", "-c", "fast"];
        eventually("three lines in the log", || {
            let lines = kubectl.ok(&[&fast[..], &["--tail=3"]].concat());
            (lines.lines().filter(|line| line.starts_with("tick ")).count() == 3).then_some(())
        });
        let mut following = kubectl.start(&[&fast[..], &["-f", "--tail=1"]].concat());
        let shown = following.wait_for_stdout("twenty lines", |text| text.lines().count() > 20);
        let numbers: Vec<u64> = shown.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "each line once and in order: {shown}");
        following.signal(Signal::TERM);
        following.wait();
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_command_has_its_outputs_apart_and_its_exit_code() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        assert_eq!(kubectl.ok(&exec(&["--", "echo", "hi"])), "hi\n", "{}", kubectl.name());
        let finished = kubectl.run(&exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]));
        assert_eq!((finished.stdout_text().as_str(), finished.code()), ("out\n", 7), "{}", kubectl.name());
        assert!(finished.stderr.starts_with("err\n"), "{}", finished.stderr);
        assert_eq!(kubectl.run(&exec(&["--", "false"])).code(), 1);
        let missing = kubectl.fails(&exec(&["--", "/no/such/program"]));
        assert!(missing.contains("stat /no/such/program: no such file or directory"), "{missing}");
        let missing = kubectl.fails(&["exec", "-n", "demo", "web", "-c", "nope", "--", "true"]);
        assert!(missing.contains("container nope is not valid for pod web"), "{missing}");
        let missing = kubectl.fails(&["exec", "-n", "demo", "nope", "--", "true"]);
        assert!(missing.contains("pods \"nope\" not found"), "{missing}");
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_commands_input_arrives_whole_and_ends() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let input = noise(100_000);
        let sum = kubectl.run_with_input(&exec(&["-i", "--", "sha256sum"]), Input::Bytes(input.clone()));
        assert_eq!(sum.ok(), format!("{}  -\n", sha256(&input)), "{}", kubectl.name());
        let back = kubectl.run_with_input(&exec(&["-i", "--", "cat"]), Input::Bytes(input.clone()));
        assert!(back.stdout == input, "{}: {} bytes came back", kubectl.name(), back.stdout.len());
        let zeros = kubectl.run(&exec(&["--", "head", "-c", "5000000", "/dev/zero"]));
        assert!(zeros.status.success() && zeros.stdout.len() == 5_000_000, "{}", kubectl.name());
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_shell_on_a_terminal_knows_its_size_and_obeys_ctrl_c() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let (mut terminal, input, output) = Terminal::open(24, 80);
        let mut shell = kubectl.start_on_terminal(&exec(&["-i", "-t", "--", "sh"]), input, output);
        terminal.wait_for("# ");
        terminal.type_keys("stty size\r");
        terminal.wait_for("\n24 80\r\n");
        terminal.resize(41, 123);
        shell.signal(Signal::WINCH);
        eventually("the new size in the container", || {
            terminal.type_keys("stty size\r");
            terminal.text().contains("\n41 123\r\n").then_some(())
        });
        terminal.type_keys("sleep 1000\r");
        terminal.wait_for("sleep 1000\r\n");
        terminal.type_keys("\x03");
        terminal.wait_for("^C");
        terminal.type_keys("exit 5\r");
        assert_eq!(shell.wait().code(), Some(5), "{}: {}", kubectl.name(), terminal.text());
    }
    tunnel.wait_until_idle();
}

#[test]
fn attached_one_talks_to_the_process_that_runs() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let attach = ["attach", "-n", "demo", "web", "-c", "sidecar", "-i"];
        let finished = kubectl.run_with_input(&attach, Input::Bytes(b"hello attach\n".to_vec()));
        assert!(finished.clone().ok().ends_with("hello attach\n"), "{}: {finished:?}", kubectl.name());
        let mut watching = kubectl.start(&["attach", "-n", "demo", "web", "-c", "fast"]);
        watching.wait_for_stdout("its output", |text| text.matches("tick ").count() > 10);
    }
    tunnel.wait_until_idle();
}

#[test]
fn folders_are_copied_both_ways() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let folder = kubectl.home().join("d/sub");
        std::fs::create_dir_all(&folder).unwrap();
        let content = noise(300_000);
        std::fs::write(folder.join("b.bin"), &content).unwrap();
        std::fs::write(kubectl.home().join("d/empty"), "").unwrap();
        kubectl.ok(&["cp", "-n", "demo", "d", "web:/tmp/d", "-c", "web"]);
        let sum = kubectl.ok(&exec(&["--", "sha256sum", "/tmp/d/sub/b.bin"]));
        assert_eq!(sum, format!("{}  /tmp/d/sub/b.bin\n", sha256(&content)), "{}", kubectl.name());
        kubectl.ok(&["cp", "-n", "demo", "web:/tmp/d", "back", "-c", "web"]);
        assert!(std::fs::read(kubectl.home().join("back/sub/b.bin")).unwrap() == content, "{}", kubectl.name());
        assert_eq!(std::fs::read(kubectl.home().join("back/empty")).unwrap(), b"");
        kubectl.ok(&exec(&["--", "rm", "-rf", "/tmp/d"]));
    }
    tunnel.wait_until_idle();
}

/// A running `kubectl port-forward` to the pod `web`.
struct Forward {
    process: Process,
    port: u16,
}

impl Forward {
    fn start(kubectl: &Kubectl, port: u16) -> Self {
        let mapping = format!(":{port}");
        let arguments = ["port-forward", "-n", "demo", "pod/web", &mapping, "--address", "127.0.0.1"];
        let mut process = kubectl.start(&arguments);
        // Forwarding from 127.0.0.1:40123 -> 80
        let said = process.wait_for_stdout("the local port", |text| text.contains("->"));
        let port = said.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        Self { process, port }
    }

    /// Sends `sent`, ends that direction, and reads to the end of the other.
    fn exchange(&self, sent: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut writer = socket.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                writer.write_all(sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            socket.read_to_end(&mut received).unwrap();
            received
        })
    }
}

#[test]
fn a_forwarded_port_serves_connections_side_by_side() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let web = Forward::start(&kubectl, 80);
        let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        std::thread::scope(|scope| {
            let pages: Vec<_> = (0..10).map(|_| scope.spawn(|| web.exchange(request))).collect();
            for page in pages {
                assert!(page.join().unwrap().ends_with(b"hello from web\n"), "{}", kubectl.name());
            }
        });
        let bulk = Forward::start(&kubectl, 19);
        assert_eq!(bulk.exchange(b"3000000\n").len(), 3_000_000, "{}", kubectl.name());
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_forwarded_connection_ends_in_each_direction_by_itself() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let sent = noise(1_000_000);
        // It counts until its input ends, and only then answers.
        assert_eq!(Forward::start(&kubectl, 9).exchange(&sent), b"1000000\n", "{}", kubectl.name());
        assert!(Forward::start(&kubectl, 7).exchange(&sent) == sent, "{}", kubectl.name());
    }
    tunnel.wait_until_idle();
}

#[test]
fn a_port_where_nobody_listens_is_said_to_be_one() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let forward = Forward::start(&kubectl, 4444);
        assert_eq!(forward.exchange(b""), b"");
        eventually("kubectl's complaint", || forward.process.stderr().contains("connection refused").then_some(()));
    }
    tunnel.wait_until_idle();
}

#[test]
fn what_is_not_allowed_is_refused_before_it_is_upgraded() {
    let tunnel = Tunnel::start();
    let kubeconfig = tunnel.stub.kubeconfig(support::tunnel::CLUSTER, "mallory", &[]);
    for kubectl in Kubectl::all(&kubeconfig) {
        let refused = kubectl.fails(&exec(&["--", "true"]));
        assert!(refused.contains("User \"mallory\" cannot get resource \"pods\""), "{}: {refused}", kubectl.name());
    }
    tunnel.wait_until_idle();
}
