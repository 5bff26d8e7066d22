//! The guide in docs/access.md, step by step as it stands there.

mod support;

use std::path::Path;

use support::tunnel::{Stub, StubOptions, run_qtunnel, start_stub};

/// The blocks of one language in the guide.
fn blocks(language: &str) -> Vec<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/access.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let begin = format!("```{language}\n");
    guide.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_guide_leads_to_where_it_says() {
    let mut stub = Stub::start(StubOptions::default());
    stub.token("prod-eu");
    stub.process.kill();
    let state = stub.state_dir();
    std::fs::write(state.join("policy.yaml"), &blocks("yaml")[0]).unwrap();
    let mut settings: toml::Table = std::fs::read_to_string(stub.config()).unwrap().parse().unwrap();
    settings.extend(blocks("toml")[0].parse::<toml::Table>().unwrap());
    std::fs::write(stub.config(), settings.to_string()).unwrap();
    let mut running = start_stub(&stub.config());
    running.wait_for_log("stub listens");

    let commands: Vec<String> = blocks("sh").concat().lines().map(str::to_owned).collect();
    let run = |part: &str| {
        let command = commands.iter().find(|command| command.contains(part)).unwrap();
        let command = command.replace("/etc/qtunnel", state.to_str().unwrap());
        let command = command.replace("alice.yaml", state.join("alice.yaml").to_str().unwrap());
        run_qtunnel(command.split_whitespace().skip(1))
    };
    assert!(run("--verb create").ok().contains("alice-exec-in-demo"));
    let refused = run("--verb delete");
    assert_eq!(refused.code(), 1);
    assert!(refused.stdout_text().starts_with("refused"), "{}", refused.stdout_text());
    run("qtunnel kubeconfig").ok();
    assert!(state.join("audit.log").exists());
}
