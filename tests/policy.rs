//! The stub's policy, as users and administrators see it.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::eventually;
use support::http::{Access, Lines};
use support::http1::{End, within};
use support::kubectl::Kubectl;
use support::process::{Finished, Input};
use support::tunnel::{
    Agent, AgentOptions, CLUSTER, IMPERSONATORS, SampleApi, Stub, StubOptions, Tunnel, USERS, change_settings,
    run_qtunnel, start_stub,
};
use support::user::User;
use tempfile::TempDir;

/// How long a right that was taken away may go on to be used.
const REVOCATION: Duration = Duration::from_secs(10);

/// A policy file that a test changes.
struct PolicyFile {
    folder: TempDir,
}

impl PolicyFile {
    fn new(text: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    fn options(&self) -> StubOptions {
        let path = self.path().to_str().unwrap().to_owned();
        StubOptions::default().set("authorization", "mode", "policy").set("authorization", "policy_file", path)
    }

    fn tunnel(&self) -> Tunnel {
        Tunnel::start_with(self.options(), AgentOptions::default())
    }
}

/// A policy that lets these users do everything with resources and read every path.
fn everything_for(users: &str) -> String {
    format!(
        "apiVersion: qtunnel.dev/v1
kind: Policy
rules:
- {{name: resources, clusters: ['*'], users: [{users}], verbs: ['*'], apiGroups: ['*'], resources: ['*']}}
- {{name: paths, clusters: ['*'], users: [{users}], verbs: [get], nonResourceURLs: ['*']}}
"
    )
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be half there.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn alice_may_only_exec_in_namespace_demo_of_prod_eu_and_here_is_the_audit_line_of_it() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policy.example.yaml");
    let policy = PolicyFile::new(&std::fs::read_to_string(example).unwrap());
    let audit = policy.folder.path().join("audit.log");
    let options = policy.options().set("audit", "sink", "file").set("audit", "path", audit.to_str().unwrap()).set(
        "audit",
        "on_failure",
        "block",
    );
    let (api, stub) = (SampleApi::start(), Stub::start(options));
    let _agents = ["prod-eu", "prod-us"].map(|cluster| {
        let agent = Agent::start(&stub, cluster, &api.upstream(), AgentOptions::default());
        stub.wait_for_agents(cluster, 1);
        agent
    });
    // In the clusters she may do everything.
    let alice = |cluster| Kubectl::newest(&stub.kubeconfig(cluster, "alice", &[USERS]));
    let (Some(europe), Some(america)) = (alice("prod-eu"), alice("prod-us")) else { return };

    assert_eq!(europe.ok(&["exec", "-n", "demo", "web", "-c", "web", "--", "echo", "hi"]), "hi\n");
    let no_rule = "no rule of the access node's policy allows it";
    for refused in [
        europe.fails(&["exec", "-n", "kube-system", "dns", "--", "echo", "hi"]),
        europe.fails(&["get", "pods", "-n", "demo"]),
        europe.fails(&["delete", "pod", "web", "-n", "demo"]),
        europe.fails(&["logs", "web", "-n", "demo", "-c", "web"]),
        america.fails(&["exec", "-n", "demo", "web", "-c", "web", "--", "echo", "hi"]),
    ] {
        assert!(refused.contains("(Forbidden)") && refused.contains(no_rule), "{refused}");
    }

    let exec = eventually("the exec's last audit event", || {
        lines_of(&audit).into_iter().find(|event| {
            event["stage"] == "ResponseComplete"
                && event["objectRef"]["subresource"] == "exec"
                && event["responseStatus"]["code"] == 101
        })
    });
    assert_eq!(exec["user"]["username"], "alice");
    assert_eq!(exec["objectRef"]["namespace"], "demo");
    assert_eq!(exec["annotations"]["qtunnel.dev/cluster"], "prod-eu");
    assert_eq!(exec["annotations"]["authorization.k8s.io/decision"], "allow");
    let reason = exec["annotations"]["authorization.k8s.io/reason"].as_str().unwrap();
    assert!(reason.contains("\"alice-exec-in-demo\""), "{reason}");
    let events = lines_of(&audit);
    let stages: Vec<_> =
        events.iter().filter(|event| event["auditID"] == exec["auditID"]).map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    let denied = events.iter().find(|event| event["objectRef"]["namespace"] == "kube-system").unwrap();
    assert_eq!(denied["annotations"]["authorization.k8s.io/decision"], Value::Null, "received, not decided yet");
    let denied = events.iter().rfind(|event| event["objectRef"]["namespace"] == "kube-system").unwrap();
    assert_eq!(denied["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(denied["responseStatus"]["code"], 403);
}

#[test]
fn a_user_who_loses_the_right_loses_what_is_open() {
    let policy = PolicyFile::new(&everything_for("alice, bob"));
    let tunnel = policy.tunnel();
    let kubeconfig = |user| tunnel.stub.kubeconfig(CLUSTER, user, &[USERS]);
    let alice = Kubectl::all(&kubeconfig("alice"));
    let Some(bob) = Kubectl::newest(&kubeconfig("bob")) else { return };
    let follow = ["logs", "-f", "--tail=1", "-n", "demo", "web", "-c", "fast"];
    let mut hers = Vec::new();
    for kubectl in &alice {
        let mut session =
            kubectl.start_with_input(&["exec", "-i", "-n", "demo", "web", "-c", "web", "--", "cat"], Input::Piped);
        let stdin = session.take_stdin();
        (&stdin).write_all_text("hello\n");
        session.wait_for_stdout("the echo", |text| text == "hello\n");
        let mut log = kubectl.start(&follow);
        log.wait_for_stdout("a line", |text| text.contains("tick"));
        hers.push((kubectl.name(), session, stdin, log));
    }
    let mut watch = bob.start(&["get", "pods", "-n", "demo", "-w", "-o", "name"]);
    watch.wait_for_stdout("what is there", |text| text.contains("pod/web"));
    let mut his = bob.start(&follow);
    his.wait_for_stdout("a line", |text| text.contains("tick"));

    policy.write(&everything_for("bob"));
    let changed = Instant::now();
    for (name, mut session, _stdin, mut log) in hers {
        // kubectl over SPDY exits 0 even at a TCP reset.
        let status = session.wait_at_most(REVOCATION);
        assert!(!status.success() || name != "kubectl", "{name} must not take the end of its session for a good one");
        log.wait_at_most(REVOCATION);
        assert!(changed.elapsed() < REVOCATION, "{name}: {:?}", changed.elapsed());
    }
    for kubectl in &alice {
        assert!(kubectl.fails(&["get", "pods", "-n", "demo"]).contains("(Forbidden)"));
    }
    assert!(!tunnel.stub.process.logged("ending a request").is_empty());
    let seen = his.stdout().len();
    eventually("more of bob's log", || (his.stdout().len() > seen).then_some(()));
    assert!(watch.ended().is_none() && his.ended().is_none(), "bob has lost nothing");
}

/// Writing to a pipe that is kept open.
trait WriteText {
    fn write_all_text(self, text: &str);
}

impl WriteText for &std::process::ChildStdin {
    fn write_all_text(mut self, text: &str) {
        std::io::Write::write_all(&mut self, text.as_bytes()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_not_allowed_any_more_is_broken_off_over_either_http() {
    let policy = PolicyFile::new(&everything_for("alice"));
    let tunnel = policy.tunnel();
    let access = Access::of(&tunnel.kubeconfig());
    let (mut http1, mut http2) = (access.http1().await, access.http2().await);
    let path = "/api/v1/namespaces/demo/pods?watch=true";
    let watches = [http1.open(path).await, http2.open(path).await].map(|response| Lines::of(response.into_body()));
    let mut open = Vec::new();
    for mut watch in watches {
        watch.next().await;
        open.push(watch);
    }
    policy.write(&everything_for("bob"));
    for watch in open {
        assert!(watch.broken_off().await, "a clean end would look like a watch that has timed out");
    }
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_not_allowed_any_more_is_reset() {
    let policy = PolicyFile::new(&everything_for("alice"));
    let audit = policy.folder.path().join("audit.log");
    let options = policy.options().set("audit", "sink", "file").set("audit", "path", audit.to_str().unwrap()).set(
        "audit",
        "on_failure",
        "drop",
    );
    let tunnel = Tunnel::start_with(options, AgentOptions::default());
    let user = User::of(&tunnel.kubeconfig(), tunnel.stub.address);
    let mut client = user.connect().await;
    let path = "/api/v1/namespaces/demo/pods/web/exec?container=web&command=cat&stdin=true&stdout=true";
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
        ("Content-Length", "0"),
    ];
    client.write(&user.request("POST", path, &headers)).await.unwrap();
    assert_eq!(within("the 101", client.head()).await.unwrap().unwrap().status(), 101);
    policy.write(&everything_for("bob"));
    let (_, end) = within("the end", client.rest()).await;
    assert_eq!(end, End::Aborted(std::io::ErrorKind::ConnectionReset));
    eventually("the audit event of the end", || {
        let ends = |event: &Value| event["annotations"]["qtunnel.dev/end"] == "revoked";
        lines_of(&audit).iter().any(ends).then_some(())
    });
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_policy_changes_nothing_and_a_hangup_applies_a_good_one_at_once() {
    let policy = PolicyFile::new(&everything_for("alice"));
    let mut tunnel = policy.tunnel();
    let access = Access::of(&tunnel.kubeconfig());
    policy.write("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n- {name: typo, cluster: ['*']}\n");
    let complaint = tunnel.stub.process.wait_for_log("the policy stays as it was");
    let message = complaint["message"].as_str().unwrap();
    assert!(message.contains("policy.yaml") && message.contains("cluster"), "{message}");
    assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 200);
    policy.write(&everything_for("bob"));
    tunnel.stub.process.signal(Signal::HUP);
    tunnel.stub.process.wait_for_log("the policy file has changed and is in force");
    assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 403);
    assert_eq!(tunnel.stub.process.logged("the policy stays as it was").len(), 1, "it is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn acting_as_another_needs_a_right_at_the_stub_too() {
    let rule = |verbs: &str, resources: &str| {
        format!(
            "- {{name: '{verbs}', clusters: ['*'], users: [alice], verbs: [{verbs}], apiGroups: [''], resources: [{resources}]}}\n"
        )
    };
    let pods = format!("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n{}", rule("list", "pods"));
    let policy = PolicyFile::new(&pods);
    let mut tunnel = policy.tunnel();
    let access = Access::of(&tunnel.stub.kubeconfig(CLUSTER, "alice", &[USERS, IMPERSONATORS]));
    let status = async || {
        let mut client = access.http1().await;
        let mut request = client.request("/api/v1/namespaces/demo/pods");
        for (name, value) in [("impersonate-user", "bob"), ("impersonate-group", USERS)] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        client.send(request).await.status()
    };
    assert_eq!(access.get("/api/v1/namespaces/demo/pods").await.status, 200);
    assert_eq!(status().await, 403);
    policy.write(&(pods + &rule("impersonate", "users, groups")));
    tunnel.stub.process.wait_for_log("the policy file has changed and is in force");
    assert_eq!(status().await, 200);
}

#[test]
fn a_stub_with_a_policy_that_cannot_be_used_does_not_start() {
    let mut stub = Stub::start(StubOptions::default());
    stub.process.kill();
    let policy = stub.state_dir().join("policy.yaml");
    let set = |value: &str| {
        change_settings(
            &stub.config(),
            &[("authorization", "mode", "policy".into()), ("authorization", "policy_file", value.into())],
        )
    };
    let refuses = || {
        let finished = start_stub(&stub.config()).finish();
        finished.failed()
    };
    set("nowhere.yaml");
    assert!(refuses().contains("cannot read the policy file"));
    set("policy.yaml");
    std::fs::write(policy, "kind: Policy").unwrap();
    assert!(refuses().contains("is not valid"));
}

#[test]
fn a_decision_is_explained() {
    let policy = PolicyFile::new(include_str!("../deploy/policy.example.yaml"));
    let stub = Stub::start(policy.options());
    let check = |arguments: &[&str]| -> Finished {
        let config = stub.config();
        let fixed =
            ["policy", "check", "--config", config.to_str().unwrap(), "--user", "alice", "--cluster", "prod-eu"];
        run_qtunnel(fixed.iter().chain(arguments))
    };
    let exec = ["--verb", "get", "--resource", "pods/exec", "--namespace", "demo", "--name", "web"];
    let allowed = check(&exec).ok();
    assert_eq!(
        allowed,
        "allowed: user \"alice\", create pods/exec \"web\" in namespace \"demo\" of cluster \"prod-eu\"\n  \
         allowed by rule \"alice-exec-in-demo\" of the access node's policy\n"
    );
    let refused = check(&["--verb", "list", "--resource", "deployments.apps"]);
    assert_eq!(refused.code(), 1);
    let text = refused.stdout_text();
    assert!(text.starts_with("refused: user \"alice\", list deployments.apps of cluster \"prod-eu\"\n"), "{text}");
    assert!(text.contains("alice-exec-in-demo: its verbs do not match"), "{text}");
    let json = check(&[&exec[..], &["--output", "json"]].concat()).ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["allowed"], true);
    let rules = json["rules"].as_array().unwrap();
    let matching: Vec<_> = rules.iter().filter(|rule| rule["matches"] == true).map(|rule| &rule["name"]).collect();
    assert_eq!(matching, ["alice-exec-in-demo"]);
    assert_eq!(check(&["--verb", "get", "--path", "/version"]).code(), 0);
    assert_eq!(check(&["--verb", "get"]).code(), 2, "neither a resource nor a path");
}

#[test]
fn the_labels_of_a_cluster_are_explained() {
    let policy = PolicyFile::new(include_str!("../deploy/policy.example.yaml"));
    let stub = Stub::start(policy.options());
    let check = |cluster: &str| -> Finished {
        let config = stub.config();
        let question = ["--user", "carol", "--group", "auditors", "--verb", "list", "--resource", "pods"];
        let fixed = ["policy", "check", "--config", config.to_str().unwrap(), "--cluster", cluster];
        run_qtunnel(fixed.iter().chain(&question))
    };
    assert!(check("prod-eu").ok().contains("\"auditors-read-production\""));
    for (cluster, labels) in [("staging-1", "env=staging"), ("elsewhere", "none")] {
        let refused = check(cluster);
        assert_eq!(refused.code(), 1);
        let text = refused.stdout_text();
        assert!(text.contains("auditors-read-production: its clusterSelector does not match\n"), "{text}");
        assert!(text.contains(&format!("Labels of the cluster: {labels}\n")), "{text}");
    }
}
