//! What people deploy with: manifests that Kubernetes understands and that run what they say, systemd units, the image's sources.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::{apps, coordination, core, networking, policy, rbac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use support::kubectl::{Kubectl, in_path};
use support::process::{Input, Process};
use support::shared_store::{administrator, take_pem_files};
use support::tunnel::{
    CLUSTER, SampleApi, Stub, StubOptions, change_settings, init_stub, qtunnel, run_qtunnel, start_stub,
};

/// Stands in `agent.yaml` for the join token.
const TOKEN_PLACEHOLDER: &str = "REPLACE-WITH-A-JOIN-TOKEN";

/// Every kustomization.
const KUSTOMIZATIONS: [&str; 4] = ["agent", "stub", "example/agent", "example/stub"];

/// The kinds of the manifests that the sample API serves.
const SAMPLE_KINDS: [&str; 7] =
    ["Namespace", "Secret", "ServiceAccount", "ConfigMap", "Service", "Deployment", "Lease"];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// The documents of a YAML file.
fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}:\n{yaml}"))
}

/// The only document of this kind.
fn only<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = documents.iter().filter(|document| document["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// The manifest for a token of its own.
fn manifest(arguments: &[&str]) -> Vec<Value> {
    documents(&manifest_text(&join_token(), arguments))
}

fn manifest_text(token: &str, arguments: &[&str]) -> String {
    let fixed = ["agent", "manifest", "--stub", "stub.example.com:8443", "--token", token];
    run_qtunnel(fixed.iter().chain(arguments)).ok()
}

fn join_token() -> String {
    let dir = tempfile::tempdir().unwrap();
    let stub = dir.path().join("stub");
    init_stub(&stub, None).ok();
    let config = stub.join("stub.toml");
    run_qtunnel(["token", "create", "--cluster", CLUSTER, "--config", config.to_str().unwrap()]).ok().trim().to_owned()
}

/// What kustomize makes of a folder; `None` without kubectl.
fn kustomized(name: &str) -> Option<Vec<Value>> {
    let kubectl = Kubectl::newest(Path::new("/dev/null"))?;
    let folder = deploy("kubernetes").join(name);
    Some(documents(&kubectl.ok(&["kustomize", folder.to_str().unwrap()])))
}

/// Every manifest there is, with a name for messages.
fn every_manifest() -> Vec<(String, Vec<Value>)> {
    let file = |name: &str| {
        let text = std::fs::read_to_string(deploy(name)).unwrap();
        (name.to_owned(), documents(&text))
    };
    let many = ["--namespace", "edge", "--replicas", "3", "--image", "registry.example.com/qtunnel@sha256:00"];
    let names = ["--impersonate-user", "alice", "--impersonate-user", "o\"b: '#", "--impersonate-group", "true"];
    let mut all = vec![
        file("kubernetes/agent/agent.yaml"),
        file("kubernetes/stub/stub.yaml"),
        ("agent manifest".to_owned(), manifest(&[&many[..], &names[..]].concat())),
    ];
    all.extend(KUSTOMIZATIONS.iter().filter_map(|name| Some(((*name).to_owned(), kustomized(name)?))));
    all
}

/// What is left of a document that went through the type of its kind: a field that Kubernetes does not know is lost.
fn understood(document: &Value) -> Value {
    fn through<T: Serialize + DeserializeOwned>(document: &Value) -> Value {
        let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document:#}"));
        serde_json::to_value(typed).unwrap()
    }
    match document["kind"].as_str().unwrap() {
        "Namespace" => through::<core::v1::Namespace>(document),
        "Secret" => through::<core::v1::Secret>(document),
        "ConfigMap" => through::<core::v1::ConfigMap>(document),
        "Service" => through::<core::v1::Service>(document),
        "ServiceAccount" => through::<core::v1::ServiceAccount>(document),
        "PersistentVolumeClaim" => through::<core::v1::PersistentVolumeClaim>(document),
        "Role" => through::<rbac::v1::Role>(document),
        "RoleBinding" => through::<rbac::v1::RoleBinding>(document),
        "Lease" => through::<coordination::v1::Lease>(document),
        "NetworkPolicy" => through::<networking::v1::NetworkPolicy>(document),
        "ClusterRole" => through::<rbac::v1::ClusterRole>(document),
        "ClusterRoleBinding" => through::<rbac::v1::ClusterRoleBinding>(document),
        "PodDisruptionBudget" => through::<policy::v1::PodDisruptionBudget>(document),
        "Deployment" => through::<apps::v1::Deployment>(document),
        "StatefulSet" => through::<apps::v1::StatefulSet>(document),
        kind => panic!("an unknown kind {kind}"),
    }
}

/// The pods' specifications of a manifest.
fn pod_specs(documents: &[Value]) -> Vec<&Value> {
    documents.iter().map(|document| &document["spec"]["template"]["spec"]).filter(|spec| spec.is_object()).collect()
}

/// The environment variables that a container sets to a text.
fn environment(container: &Value) -> Map<String, Value> {
    let variables = container["env"].as_array().unwrap().iter();
    let text = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry.get("value")?.clone()));
    variables.filter_map(text).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn the_kustomize_base_is_what_the_command_prints() {
    let token = join_token();
    let printed = manifest_text(&token, &[]).replace(&token, TOKEN_PLACEHOLDER);
    let path = deploy("kubernetes/agent/agent.yaml");
    if std::env::var_os("QTUNNEL_UPDATE_MANIFEST").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let same = std::fs::read_to_string(&path).unwrap() == printed;
    assert!(same, "{} is out of date: QTUNNEL_UPDATE_MANIFEST=1 cargo test --test deploy", path.display());
}

#[test]
fn kubernetes_knows_every_field_of_every_manifest() {
    for (name, documents) in every_manifest() {
        assert!(!documents.is_empty());
        for document in documents {
            let kind = &document["kind"];
            assert_eq!(understood(&document), document, "{name}: {kind}");
        }
    }
}

#[test]
fn an_agent_may_act_as_those_it_was_told_and_nobody_else() {
    let documents = manifest(&[
        "--impersonate-user",
        "alice",
        "--impersonate-user",
        "bob@example.com",
        "--impersonate-group",
        "oidc:devs",
        "--namespace",
        "edge",
    ]);
    let role = only(&documents, "ClusterRole");
    let extras = ["userextras/qtunnel.dev/original-user", "userextras/qtunnel.dev/original-groups"];
    let expected = json!([
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["alice", "bob@example.com"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["oidc:devs"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": extras, "verbs": ["impersonate"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"], "resourceNames": ["kube-system"]},
    ]);
    assert_eq!(role["rules"], expected);
    let binding = only(&documents, "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = only(&documents, "ServiceAccount");
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "edge"}])
    );
    assert_eq!(pod_specs(&documents)[0]["serviceAccountName"], account["metadata"]["name"]);
    // An installation in another namespace has rights of its own.
    assert_ne!(only(&manifest(&[]), "ClusterRole")["metadata"]["name"], role["metadata"]["name"]);
}

#[test]
fn no_rule_is_for_everything_and_no_impersonation_for_everybody() {
    for (name, documents) in every_manifest() {
        for rule in documents.iter().filter_map(|document| document["rules"].as_array()).flatten() {
            for key in ["apiGroups", "resources", "verbs"] {
                assert!(strings(&rule[key]).iter().all(|value| !value.contains('*')), "{name}: {rule}");
            }
            let resources = strings(&rule["resources"]);
            let extras_of_our_own = resources.iter().all(|resource| resource.starts_with("userextras/qtunnel.dev/"));
            if strings(&rule["verbs"]).contains(&"impersonate") && !extras_of_our_own {
                assert!(!strings(&rule["resourceNames"]).is_empty(), "{name}: {rule}");
            }
        }
    }
}

#[test]
fn nothing_runs_as_root_or_can_write_to_its_root_file_system() {
    for (name, documents) in every_manifest() {
        let all_in_namespaces = only(&documents, "Namespace")["metadata"]["labels"].clone();
        assert_eq!(all_in_namespaces["pod-security.kubernetes.io/enforce"], "restricted", "{name}");
        for pod in pod_specs(&documents) {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            let init = pod["initContainers"].as_array().into_iter().flatten();
            for container in init.chain(pod["containers"].as_array().unwrap()) {
                let security = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], security, "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            }
        }
    }
}

#[test]
fn a_manifest_with_names_that_make_no_sense_is_refused() {
    let token = join_token();
    let cases = [
        (["--impersonate-user", "system:masters"], "system:masters"),
        (["--impersonate-user", "*"], "every name by itself"),
        (["--impersonate-group", ""], "is not a name"),
        (["--namespace", "Name Space"], "Name Space"),
        (["--image", "an image"], "an image"),
        (["--replicas", "0"], "0"),
    ];
    for (arguments, named) in cases {
        let fixed = ["agent", "manifest", "--stub", "stub.example.com:8443", "--token", &token];
        let finished = run_qtunnel(fixed.iter().chain(&arguments));
        assert_eq!((finished.code(), finished.stdout.len()), (2, 0), "{arguments:?}");
        assert!(finished.failed().contains(named), "{arguments:?}");
    }
}

#[test]
fn a_manifest_may_name_several_stubs() {
    let documents = manifest(&["--stub", "stub-1.example.com:8443,[2001:db8::1]:8443"]);
    let container = &pod_specs(&documents)[0]["containers"][0];
    let stubs = "stub.example.com:8443,stub-1.example.com:8443,[2001:db8::1]:8443";
    assert_eq!(environment(container)["QTUNNEL_STUB"], stubs);
}

#[test]
fn an_agents_environment_serves_its_manifest_too() {
    let token = join_token();
    let mut command = qtunnel(["agent", "manifest"]);
    command.env("QTUNNEL_STUB", "stub.example.com:8443").env("QTUNNEL_TOKEN", &token).env("QTUNNEL_STATE_DIR", "/x");
    let printed = Process::run("qtunnel agent manifest", command, Input::None);
    assert!(printed.stderr.contains("--uses 2") && printed.stderr.contains("--impersonate-user"), "{}", printed.stderr);
    assert_eq!(printed.ok(), manifest_text(&token, &[]));
}

#[test]
fn kubectl_applies_what_the_sample_api_serves() {
    let api = SampleApi::start();
    for kubectl in Kubectl::versions(&api.kubeconfig()) {
        for (name, documents) in every_manifest() {
            let served: Vec<_> = documents
                .into_iter()
                .filter(|document| SAMPLE_KINDS.iter().any(|kind| document["kind"] == *kind))
                .collect();
            let (namespaces, others): (Vec<_>, Vec<_>) =
                served.into_iter().partition(|document| document["kind"] == "Namespace");
            let list = |items: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
            let namespaces = kubectl.file("namespaces.json", list(namespaces));
            let others = kubectl.file("others.json", list(others));
            kubectl.ok(&["apply", "--filename", &namespaces]);
            for how in ["--dry-run=client", "--dry-run=server", "--dry-run=none"] {
                kubectl.ok(&["apply", how, "--filename", &others]);
            }
            let again = kubectl.ok(&["apply", "--filename", &others]);
            // stringData is for writing only: kubectl always takes it for a change.
            let unchanged = |line: &str| line.ends_with("unchanged") || line.starts_with("secret/");
            assert!(again.lines().all(unchanged), "{} {name}: {again}", kubectl.name());
        }
    }
}

#[test]
fn both_ports_of_the_stub_survive_a_change_of_its_services() {
    let stub = stub_documents();
    let services: Vec<_> = stub.iter().filter(|document| document["kind"] == "Service").collect();
    let ports: Vec<_> = services.iter().map(|service| service["spec"]["ports"].as_array().unwrap()).collect();
    // kubectl merges ports by their number alone.
    assert!(ports.iter().all(|ports| ports.len() == 1), "{ports:?}");
    let protocols: Vec<_> = ports.iter().map(|ports| ports[0]["protocol"].as_str().unwrap()).collect();
    assert_eq!(protocols, ["TCP", "UDP"]);
    assert_eq!(ports[0][0]["port"], ports[1][0]["port"]);
    let pod = &only(&stub, "Deployment")["spec"]["template"];
    for service in services {
        assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
        let target = &service["spec"]["ports"][0]["targetPort"];
        let listens = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
        assert!(listens.iter().any(|port| port["name"] == *target), "{target}");
    }
}

#[test]
fn the_agents_of_a_manifest_join_and_connect() {
    let api = SampleApi::start();
    let stub = Stub::start(StubOptions::default());
    let token = stub.token_with(CLUSTER, &["--uses", "2"]);
    let address = stub.address.to_string();
    let documents =
        documents(&run_qtunnel(["agent", "manifest", "--stub", &address, "--token", &token, "--replicas", "2"]).ok());
    let set = &only(&documents, "StatefulSet")["spec"];
    let container = &set["template"]["spec"]["containers"][0];
    let environment = environment(container);
    let secret = only(&documents, "Secret");
    let reference = container["env"].as_array().unwrap().iter().find(|entry| entry["name"] == "QTUNNEL_TOKEN").unwrap();
    let reference = &reference["valueFrom"]["secretKeyRef"];
    assert_eq!(reference["name"], secret["metadata"]["name"]);
    let mount = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let replicas = set["replicas"].as_u64().unwrap();
    let upstream = api.upstream();
    let volumes: Vec<_> = (0..replicas).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |volume: &tempfile::TempDir| {
        let mut command = qtunnel(strings(&container["args"]));
        for (name, value) in &environment {
            // The volume is mounted elsewhere; the rest is as it is in a pod.
            command.env(name, value.as_str().unwrap().replace(mount, volume.path().to_str().unwrap()));
        }
        command.env("QTUNNEL_TOKEN", secret["stringData"][reference["key"].as_str().unwrap()].as_str().unwrap());
        // Not in a pod there is no ServiceAccount.
        command.env("QTUNNEL_UPSTREAM", &upstream.url);
        command.envs(upstream.ca.iter().map(|ca| ("QTUNNEL_UPSTREAM_CA", ca)));
        command.envs(upstream.token_file.iter().map(|file| ("QTUNNEL_UPSTREAM_TOKEN_FILE", file)));
        Process::start("an agent of the manifest", command, Input::None)
    };
    let connected = || -> Vec<Value> {
        let mut agents: Vec<_> = volumes.iter().map(start).collect();
        let names = agents.iter_mut().map(|agent| agent.wait_for_log("connected")["agent"].clone()).collect();
        stub.wait_for_agents(CLUSTER, 2);
        names
    };
    let names = connected();
    assert!(names[0].is_string() && names[0] != names[1], "{names:?}");
    // With their volumes they come back as the same agents, though the token is used up.
    assert_eq!(connected(), names);
}

/// The stub's manifest.
fn stub_documents() -> Vec<Value> {
    documents(&std::fs::read_to_string(deploy("kubernetes/stub/stub.yaml")).unwrap())
}

/// What the stub's settings file says.
fn stub_settings() -> toml::Table {
    std::fs::read_to_string(deploy("kubernetes/stub/stub.toml")).unwrap().parse().unwrap()
}

/// Creates the objects of a kind, as `kubectl apply` does.
async fn create<K>(client: &kube::Client, documents: &[Value], kind: &str) -> Vec<String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let mut names = Vec::new();
    for document in documents.iter().filter(|document| document["kind"] == kind) {
        let namespace = document["metadata"]["namespace"].as_str().unwrap();
        let object: K = serde_json::from_value(document.clone()).unwrap();
        kube::Api::namespaced(client.clone(), namespace).create(&Default::default(), &object).await.unwrap();
        names.push(document["metadata"]["name"].as_str().unwrap().to_owned());
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stubs_of_the_manifests_share_secrets_and_elect_a_leader() {
    let (api, documents) = (SampleApi::start(), stub_documents());
    let client = administrator(&api).await;
    let namespace = serde_json::from_value(only(&documents, "Namespace").clone()).unwrap();
    kube::Api::<core::v1::Namespace>::all(client.clone()).create(&Default::default(), &namespace).await.unwrap();
    let mut secrets = create::<core::v1::Secret>(&client, &documents, "Secret").await;
    let leases = create::<coordination::v1::Lease>(&client, &documents, "Lease").await;
    let root = tempfile::tempdir().unwrap();
    init_stub(&root.path().join("keys"), None).ok();
    let keys = json!({
        "kind": "Secret",
        "metadata": {"name": "qtunnel-stub-keys", "namespace": "qtunnel-stub"},
        "data": take_pem_files(&root.path().join("keys")),
    });
    secrets.extend(create::<core::v1::Secret>(&client, &[keys], "Secret").await);

    // They may change what they need, by name, and nothing else.
    secrets.sort();
    let rules = only(&documents, "Role")["rules"].as_array().unwrap().clone();
    let mut named = strings(&rules[0]["resourceNames"]);
    named.sort_unstable();
    assert_eq!(
        (strings(&rules[0]["resources"]), named),
        (vec!["secrets"], secrets.iter().map(String::as_str).collect())
    );
    assert_eq!(strings(&rules[1]["resourceNames"]), leases);
    assert!(rules.len() == 2 && rules.iter().all(|rule| strings(&rule["verbs"]) == ["get", "update"]), "{rules:?}");

    let kubeconfig = api.kubeconfig().to_str().unwrap().to_owned();
    let start = |name: &str| {
        let state = root.path().join(name);
        std::fs::create_dir(&state).unwrap();
        let config = state.join("stub.toml");
        std::fs::write(&config, stub_settings().to_string()).unwrap();
        // Not in a pod there is no ServiceAccount, and no namespace of it.
        let here = [
            ("", "state_dir", state.to_str().unwrap().into()),
            ("", "listen", "127.0.0.1:0".into()),
            ("", "name", name.into()),
            ("admin", "listen", "127.0.0.1:0".into()),
            ("kubernetes", "kubeconfig", kubeconfig.clone().into()),
            ("store", "namespace", "qtunnel-stub".into()),
        ];
        change_settings(&config, &here);
        let mut process = start_stub(&config);
        process.wait_for_log("stub listens");
        (config, process)
    };
    let (config, mut leader) = start("one");
    leader.wait_for_log("this stub leads");
    let (_, mut other) = start("two");
    other.wait_for_log("another leader");
    run_qtunnel(["token", "create", "--config", config.to_str().unwrap(), "--cluster", CLUSTER]).ok();
}

#[test]
fn the_stub_that_stands_by_neither_gets_requests_nor_keeps_the_leader_where_it_is() {
    let documents = stub_documents();
    let deployment = &only(&documents, "Deployment")["spec"];
    let container = &deployment["template"]["spec"]["containers"][0];
    let probe = &container["readinessProbe"]["httpGet"];
    assert_eq!(probe["path"], "/readyz");
    let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == probe["port"]).unwrap();
    let admin = stub_settings()["admin"]["listen"].as_str().unwrap().to_owned();
    assert_eq!(admin.rsplit_once(':').unwrap().1, port["containerPort"].to_string());
    // One of two is never ready: what waits for it waits for ever.
    let replicas = &deployment["replicas"];
    assert_eq!(&deployment["strategy"]["rollingUpdate"]["maxUnavailable"], replicas);
    assert_eq!(&only(&documents, "PodDisruptionBudget")["spec"]["maxUnavailable"], replicas);
    // The Lease of the settings is the one that the stub may change.
    let lease = &only(&documents, "Lease")["metadata"];
    let name = format!("{}/{}", lease["namespace"].as_str().unwrap(), lease["name"].as_str().unwrap());
    assert_eq!(stub_settings()["election"]["lease"].as_str(), Some(name.as_str()));
}

#[test]
fn kubectl_puts_a_stubs_keys_into_the_secret_that_stubs_read() {
    let Some(kubectl) = Kubectl::newest(Path::new("/dev/null")) else { return };
    let keys = kubectl.home().join("stub-keys");
    init_stub(&keys, None).ok();
    let from = format!("--from-file={}", keys.display());
    let fixed = ["create", "secret", "generic", "qtunnel-stub-keys", "--dry-run=client", "--output=json", &from];
    let secret: Value = serde_json::from_str(&kubectl.ok(&fixed)).unwrap();
    let documents = stub_documents();
    let rules = only(&documents, "Role")["rules"].as_array().unwrap();
    assert!(strings(&rules[0]["resourceNames"]).contains(&secret["metadata"]["name"].as_str().unwrap()));
    let mut files: Vec<_> = secret["data"].as_object().unwrap().keys().filter(|name| name.ends_with(".pem")).collect();
    files.sort();
    let authorities = ["agent-ca-key.pem", "agent-ca.pem", "server-ca-key.pem", "server-ca.pem"];
    assert_eq!(files, [&authorities[..], &["server-key.pem", "server.pem", "user-ca-key.pem", "user-ca.pem"]].concat());
}

#[test]
fn the_example_overlays_change_what_they_are_for() {
    let Some(agent) = kustomized("example/agent") else { return };
    let names: Vec<_> = only(&agent, "ClusterRole")["rules"].as_array().unwrap().iter().collect();
    assert!(names.iter().any(|rule| rule["resourceNames"] == json!(["alice", "bob"])), "{names:?}");
    let container = &pod_specs(&agent)[0]["containers"][0];
    assert_eq!(environment(container)["QTUNNEL_STUB"], "stub.example.org:8443");
    assert_eq!(environment(container)["QTUNNEL_STATE_DIR"], "/var/lib/qtunnel/agent");
    let image = container["image"].as_str().unwrap();
    assert!(image.starts_with("registry.example.com/qtunnel:"), "{image}");
    let stub = kustomized("example/stub").unwrap();
    let settings = only(&stub, "ConfigMap")["data"]["stub.toml"].as_str().unwrap();
    assert!(settings.contains("stub.example.org"), "{settings}");
}

#[test]
fn the_image_of_every_manifest_is_this_version() {
    let image = concat!("qtunnel:", env!("CARGO_PKG_VERSION"));
    for name in ["kubernetes/agent/agent.yaml", "kubernetes/stub/stub.yaml", "Containerfile", "README.md"] {
        assert!(std::fs::read_to_string(deploy(name)).unwrap().contains(image), "{name}");
    }
}

#[test]
fn the_image_is_built_from_a_whole_workspace() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(deploy("Containerfile")).unwrap();
    for line in text.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let (target, sources) = words[1..].split_last().unwrap();
        for source in sources {
            let mut copy = Command::new("cp");
            copy.arg("-rT").arg(root.join(source));
            copy.arg(context.path().join(target).join(if *target == "./" { source } else { "" }));
            Process::run(line, copy, Input::None).ok();
        }
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(context.path()).args(["metadata", "--locked", "--offline", "--format-version=1"]);
    Process::run("cargo metadata", cargo, Input::None).ok();
}

#[test]
fn systemd_understands_the_units() {
    let Some(program) = in_path("systemd-analyze") else {
        println!("skipped: there is no systemd-analyze");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for name in ["qtunnel-stub.service", "qtunnel-agent.service"] {
        let unit = std::fs::read_to_string(deploy("systemd").join(name)).unwrap();
        // What it starts has to be there.
        let unit = unit.replace("/usr/local/bin/qtunnel", env!("CARGO_BIN_EXE_qtunnel"));
        let path = folder.path().join(name);
        std::fs::write(&path, unit).unwrap();
        let mut command = Command::new(&program);
        command.arg("verify").arg(&path);
        let verified = Process::run(format!("systemd-analyze verify {name}"), command, Input::None);
        assert_eq!((verified.stdout_text(), verified.stderr.as_str(), verified.code()), (String::new(), "", 0));
    }
}
