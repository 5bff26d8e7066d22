//! The guide in docs/access.md, step by step as it stands there.

mod support;

use std::path::Path;

use serde_json::Value;
use support::eventually;
use support::kubectl::Kubectl;
use support::tunnel::{Agent, AgentOptions, SampleApi, Stub, StubOptions, USERS, run_qtunnel};

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
    stub.restart();

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

    let api = SampleApi::start();
    let _agent = Agent::start(&stub, "prod-eu", &api.upstream(), AgentOptions::default());
    stub.wait_for_agents("prod-eu", 1);
    // The sample API knows no role bindings; there it is this group that may do everything.
    let Some(kubectl) = Kubectl::newest(&stub.kubeconfig("prod-eu", "alice", &[USERS])) else { return };
    let exec = commands.iter().find(|command| command.contains(" exec ")).unwrap();
    let exec: Vec<&str> = exec.split_whitespace().skip_while(|word| *word != "exec").collect();
    assert_eq!(kubectl.ok(&exec), "web\n");
    assert!(kubectl.fails(&["delete", "pod", "web", "-n", "demo"]).contains("no rule of the access node's policy"));

    let grep = commands.iter().find(|command| command.starts_with("grep ")).unwrap();
    let pattern = grep.split('\'').nth(1).unwrap();
    let events = eventually("the events of the exec", || {
        let log = std::fs::read_to_string(state.join("audit.log")).unwrap();
        let lines: Vec<String> = log.lines().filter(|line| line.contains(pattern)).map(str::to_owned).collect();
        (lines.len() == 3).then_some(lines)
    });
    for (event, stage) in events.iter().zip(["RequestReceived", "ResponseStarted", "ResponseComplete"]) {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!((&event["stage"], &event["user"]["username"]), (&stage.into(), &"alice".into()), "{event}");
        assert_eq!(event["annotations"]["qtunnel.dev/cluster"], "prod-eu", "{event}");
    }
}
