//! Records of connections over QUIC (qlog), for whoever looks into a bad network.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use support::eventually;
use support::tunnel::{Agent, AgentOptions, CLUSTER, SampleApi, Stub, StubOptions};

/// The events of the only record whose name begins so, and its title.
fn record(directory: &Path, beginning: &str) -> Option<(String, Vec<Value>)> {
    let files: Vec<_> = fs::read_dir(directory).ok()?.map(|entry| entry.unwrap()).collect();
    // Joining is a connection of its own.
    let file = files
        .iter()
        .filter(|file| file.file_name().to_string_lossy().starts_with(beginning))
        .max_by_key(|file| file.metadata().unwrap().len())?;
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(file.path()).unwrap();
    let mut lines =
        text.split('\u{1e}').filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap());
    let header: Value = lines.next()?;
    Some((header["title"].as_str().unwrap().to_owned(), lines.collect()))
}

fn has(events: &[Value], name: &str) -> bool {
    events.iter().any(|event| event["name"].as_str().is_some_and(|other| other.ends_with(name)))
}

#[test]
fn both_ends_record_their_connections_when_asked_to() {
    let api = SampleApi::start();
    let records = tempfile::tempdir().unwrap();
    let (at_stub, at_agent) = (records.path().join("stub"), records.path().join("agent"));
    let mut stub = Stub::start(StubOptions::default().set("agents", "qlog", at_stub.to_str().unwrap()));
    let options = AgentOptions::default().argument("--carrier=quic").argument(format!("--qlog={}", at_agent.display()));
    let mut agent = Agent::start(&stub, CLUSTER, &api.upstream(), options);
    eventually("the agent", || (!stub.agents(CLUSTER).is_empty()).then_some(()));
    for process in [&mut agent.process, &mut stub.process] {
        process.signal(Signal::TERM);
        assert!(process.wait().success());
    }
    for (directory, beginning) in [(&at_stub, "accepted"), (&at_agent, "dialled")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
        let (title, events) = record(directory, beginning).unwrap();
        assert!(title.contains(beginning), "{title}");
        assert!(["packet_sent", "packet_received"].iter().all(|name| has(&events, name)), "{events:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("qlog");
    let finished = support::tunnel::run_qtunnel([
        "agent",
        "--stub=127.0.0.1:1",
        "--state-dir=/nonexistent",
        "--upstream=http://127.0.0.1:1",
        &format!("--qlog={}", below.display()),
    ]);
    assert!(!finished.status.success());
    assert!(finished.stderr.contains("for qlog"), "{}", finished.stderr);
}
