//! `qtunnel top` on a terminal.

mod support;

use std::ffi::OsStr;

use rustix::process::Signal;
use rustix::termios::LocalModes;
use support::http::{Access, Lines};
use support::process::{Input, Process};
use support::terminal::Terminal;
use support::tunnel::{CLUSTER, Tunnel, qtunnel, run_qtunnel};

/// What a program asks for to have the screen for itself, and to give it back (xterm's `?1049`).
const TAKE_SCREEN: &str = "\x1b[?1049h";
const GIVE_BACK_SCREEN: &str = "\x1b[?1049l";

fn start(tunnel: &Tunnel) -> (Process, Terminal) {
    let (terminal, input, output) = Terminal::open(40, 160);
    let mut command = qtunnel([OsStr::new("top"), "--config".as_ref(), tunnel.stub.config().as_ref()]);
    command.env("TERM", "xterm-256color");
    (Process::start_with_stdout("qtunnel top", command, Input::From(input), Some(output)), terminal)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_a_live_request_are_shown_until_q() {
    let tunnel = Tunnel::start();
    let agent = tunnel.stub.agents(CLUSTER)[0]["name"].as_str().unwrap().to_owned();
    let mut client = Access::of(&tunnel.kubeconfig()).http1().await;
    let mut watch = Lines::of(client.open("/api/v1/namespaces/demo/pods?watch=true").await.into_body());
    watch.next().await;
    let (mut top, mut terminal) = start(&tunnel);
    terminal.wait_for(TAKE_SCREEN);
    terminal.type_keys("2");
    terminal.wait_for_on_screen(&agent);
    terminal.type_keys("3");
    terminal.wait_for_on_screen("alice");
    terminal.wait_for_on_screen("demo/*");
    drop((watch, client));
    terminal.wait_for_on_screen("nothing here");
    terminal.type_keys("q");
    assert!(top.wait().success());
    terminal.wait_for(GIVE_BACK_SCREEN);
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let tunnel = Tunnel::start();
    let (mut top, terminal) = start(&tunnel);
    terminal.wait_for("qtunnel top");
    assert!(!terminal.modes().contains(LocalModes::ECHO), "keys are not echoed");
    top.signal(Signal::TERM);
    assert!(top.wait().success());
    terminal.wait_for(GIVE_BACK_SCREEN);
    assert!(terminal.modes().contains(LocalModes::ECHO | LocalModes::ICANON));
}

#[test]
fn without_a_terminal_or_a_stub_it_says_so() {
    let mut tunnel = Tunnel::start();
    let config = tunnel.stub.config();
    let arguments = [OsStr::new("top"), "--config".as_ref(), config.as_ref()];
    let complaint = run_qtunnel(arguments).failed();
    assert!(complaint.contains("needs a terminal"), "{complaint}");
    tunnel.stub.process.kill();
    let (top, terminal) = start(&tunnel);
    let complaint = top.finish().failed();
    assert!(complaint.contains("no stub answers"), "{complaint}");
    assert!(!terminal.text().contains(TAKE_SCREEN));
}
