//! Every example runs as it is, and prints what its part has seen.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use support::process::{Input, Process};

/// Each example, and lines that it prints.
const EXAMPLES: [(&str, &[&str]); 9] = [
    ("agent_selector", &["selector: ", " of 2 agents of demo", " has served 3 requests", " has served 0 requests"]),
    ("audit_sink", &["audit: RequestReceived alice list ", "audit: ResponseComplete alice list "]),
    ("authenticator", &["directory: alice is in ", "alice sees ", "bob, whose certificate is good: 401 Unauthorized"]),
    (
        "authorizer",
        &[
            "on-call: bob create configmaps in demo: only who is on call",
            "403 Forbidden: ",
            "alice has made a ConfigMap",
        ],
    ),
    ("dial", &["the service says: through the tunnel", "elsewhere: the agent refuses: "]),
    ("election", &["election: stub-1 leads", "leads: true", "election: stub-1 hands over"]),
    (
        "front",
        &[
            "front: uid:",
            "/api/v1/namespaces/demo/pods: 200 OK, ",
            "/api/../api/v1/secrets: 400 Bad Request, ",
            "front: a connection was closed because the stub stops",
        ],
    ),
    ("session_store", &["sessions: one more of ", " sessions that an agent can resume"]),
    ("store", &["store: puts Keys ", "store: puts Tokens ", "alice sees ", "clusters in the store: demo"]),
];

#[test]
fn each_example_runs_and_prints_what_its_part_has_seen() {
    thread::scope(|scope| {
        for (name, words) in EXAMPLES {
            scope.spawn(move || check(name, words));
        }
    });
}

#[test]
fn no_example_is_forgotten() {
    let files = std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap();
    let names = files.filter_map(|file| file.unwrap().file_name().to_str()?.strip_suffix(".rs").map(str::to_owned));
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, EXAMPLES.map(|(name, _)| name));
}

fn check(name: &str, words: &[&str]) {
    let output = Process::run(name, Command::new(program(name)), Input::None).ok();
    for word in words {
        assert!(output.contains(word), "{name} does not say {word:?}:\n{output}");
    }
}

/// Where `cargo test` without a choice of targets puts it, as `cargo build --examples` does: beside the directory of the tests.
fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "there is no {}: `cargo build --examples` makes it", program.display());
    program
}
