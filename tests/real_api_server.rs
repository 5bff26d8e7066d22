//! The tunnel in front of a real kube-apiserver, with `kubectl` and plain HTTP: what comes through it is what comes without it.
//!
//! Where there is no kube-apiserver each test says so and passes; `tests/kube-apiserver` builds one.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ALT_SVC, CONTENT_TYPE, DATE, EXPIRES, IF_NONE_MATCH, LOCATION, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::http::{Access, Answer, Client, Lines, read};
use support::kube_api_server::{KubeApiServer, RealTunnel};
use support::kubectl::Kubectl;
use support::load::Load;
use support::process::{Finished, Input, Process};
use support::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions, qtunnel};
use support::{DEADLINE, eventually, eventually_async};
use tokio::task::block_in_place;

const WEB: [&str; 6] = ["exec", "-n", "demo", "web", "-c", "web"];

const CONFIG_MAPS: &str = "/api/v1/namespaces/demo/configmaps";

// -- what is read

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Paths and how they are wanted, that answer the same each time.
const READINGS: [(&str, &str); 22] = [
    ("/version", JSON),
    ("/readyz", JSON),
    ("/livez?verbose", JSON),
    ("/api", JSON),
    ("/api", AGGREGATED),
    ("/apis", JSON),
    ("/apis", AGGREGATED),
    ("/apis/apps/v1", JSON),
    ("/openapi/v2", JSON),
    ("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"),
    ("/openapi/v3", JSON),
    ("/.well-known/openid-configuration", JSON),
    ("/api/v1/namespaces/demo/pods/web", JSON),
    ("/api/v1/namespaces/demo/pods/web", PROTOBUF),
    ("/api/v1/namespaces/demo/pods/web", "text/plain"),
    ("/apis/rbac.authorization.k8s.io/v1/clusterroles", JSON),
    ("/apis/rbac.authorization.k8s.io/v1/clusterroles", PROTOBUF),
    ("/apis/rbac.authorization.k8s.io/v1/clusterroles", TABLE),
    ("/api/v1/namespaces/demo/configmaps/missing", JSON),
    ("/api/v1/namespaces/demo/configmaps?continue=garbage", JSON),
    ("/api/v1/namespaces/demo/configmaps?labelSelector=a%20b%20c", JSON),
    ("/no/such/path", JSON),
];

/// What differs from one answer to the next or from one connection to the next, and what the stub says of itself.
const OWN_HEADERS: [HeaderName; 5] = [DATE, EXPIRES, TRANSFER_ENCODING, ALT_SVC, HeaderName::from_static("audit-id")];

async fn ask(client: &mut Client, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
    let mut request = client.request(path);
    for (name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    }
    read(client.send(request).await).await
}

fn comparable(mut headers: HeaderMap) -> HeaderMap {
    OWN_HEADERS.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_api_servers_byte_for_byte() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let access = Access::of(&tunnel.kubeconfig());
    // Over HTTP/1.1, where the API server does not end a connection now and then.
    let mut direct = Access::of(&tunnel.direct_kubeconfig()).http1().await;
    for mut through in [access.http1().await, access.http2().await] {
        for (path, wanted) in READINGS {
            for coding in ["identity", "gzip"] {
                let headers = [(ACCEPT, wanted), (ACCEPT_ENCODING, coding)];
                let (without, with) = eventually_async("an answer that does not change", async || {
                    let before = ask(&mut direct, path, &headers).await;
                    let with = ask(&mut through, path, &headers).await;
                    // In its first seconds the API server still puts its documents together.
                    let after = ask(&mut direct, path, &headers).await;
                    (before.body == after.body).then_some((before, with))
                })
                .await;
                let what = format!("{path} as {wanted}, {coding}");
                assert_eq!(with.status, without.status, "{what}");
                assert_eq!(comparable(with.headers), comparable(without.headers), "{what}");
                assert!(with.body == without.body, "{what}: {} and {} bytes", with.body.len(), without.body.len());
            }
        }
    }
    tunnel.stub.wait_until_idle(CLUSTER);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openapi_document_is_found_by_its_hash_and_kept() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let access = Access::of(&tunnel.kubeconfig());
    let mut direct = Access::of(&tunnel.direct_kubeconfig()).http1().await;
    let url = eventually_async("the document has a place", async || {
        let index = access.get("/openapi/v3").await.json();
        index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().map(str::to_owned)
    })
    .await;
    let without = direct.get(&url).await;
    for mut through in [access.http1().await, access.http2().await] {
        let moved = through.get("/openapi/v3/apis/apps/v1?hash=STALE").await;
        assert_eq!(moved.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(moved.headers[LOCATION], format!("/clusters/{CLUSTER}{url}"));
        let with = through.get(&url).await;
        assert_eq!(comparable(with.headers.clone()), comparable(without.headers.clone()));
        assert!(with.body == without.body, "{} and {} bytes", with.body.len(), without.body.len());
        let tag = with.headers["etag"].to_str().unwrap();
        let kept = ask(&mut through, &url, &[(IF_NONE_MATCH, tag)]).await;
        assert_eq!((kept.status, kept.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
}

// -- what kubectl says

/// One kubectl with and without the tunnel.
struct Both {
    with: Kubectl,
    without: Kubectl,
}

impl Both {
    fn of(with: &Path, without: &Path) -> Vec<Self> {
        let pairs = Kubectl::versions(with).into_iter().zip(Kubectl::versions(without));
        pairs.map(|(with, without)| Self { with, without }).collect()
    }

    /// Runs it both ways, which have to end and say the same. It must not change anything.
    #[track_caller]
    fn same(&self, arguments: &[&str]) -> Finished {
        let all = |finished: &Finished| (finished.code(), finished.stdout_text(), finished.stderr.clone());
        let (without, with) = eventually("an answer that does not change", || {
            let (before, with) = (self.without.run(arguments), self.with.run(arguments));
            (all(&before) == all(&self.without.run(arguments))).then_some((before, with))
        });
        assert_eq!(all(&with), all(&without), "{} {arguments:?}", self.with.name());
        with
    }

    /// Runs a whole story first without and then with the tunnel; each step has to end and say the same.
    fn same_story(&self, steps: &[&str]) {
        let told = |kubectl: &Kubectl| steps.iter().map(|step| tell(kubectl, step)).collect::<Vec<_>>();
        for (step, (without, with)) in steps.iter().zip(told(&self.without).into_iter().zip(told(&self.with))) {
            assert_eq!(with, without, "{} {step}", self.with.name());
        }
    }
}

/// Runs one step, which is words between spaces.
fn tell(kubectl: &Kubectl, step: &str) -> (i32, String, String) {
    let finished = kubectl.run(&step.split(' ').collect::<Vec<_>>());
    (finished.code(), finished.stdout_text(), finished.stderr)
}

#[test]
fn kubectl_shows_and_explains_the_same() {
    let Some(tunnel) = RealTunnel::start() else { return };
    for both in Both::of(&tunnel.kubeconfig(), &tunnel.direct_kubeconfig()) {
        for step in [
            "api-resources",
            "api-versions",
            "explain pod.spec.containers",
            "get ns,nodes,pods,sa,clusterroles -A -o yaml",
            "get pods -A -o name --field-selector spec.nodeName=node",
            "get pod web -n demo -o jsonpath={.status.containerStatuses[*].name}",
            "get pods,nodes missing -n demo",
            "get nonsense",
            "auth can-i --list",
            "auth can-i delete nodes",
            "logs -n demo web -c web --tail=0",
            "logs -n demo web -c missing",
            "logs -n demo missing",
            "exec -n demo web -c missing -- true",
            "wait --for=condition=Ready pod/web -n demo --timeout=5s",
            "drain node --dry-run=server --force",
        ] {
            both.same(&step.split(' ').collect::<Vec<_>>());
        }
        let pods = both.with.ok(&["get", "pods", "-n", "demo"]);
        assert!(pods.starts_with("NAME") && pods.contains("web") && pods.contains("3/3"), "{pods}");
    }
}

const NOTE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note, namespace: demo}\ndata: {a: \"1\"}\n";

const BOATS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bo]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Sails, type: integer, jsonPath: .spec.sails}]
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {sails: {type: integer, maximum: 9}}}}
"#;

#[test]
fn objects_live_and_die_the_same() {
    let Some(tunnel) = RealTunnel::start() else { return };
    for both in Both::of(&tunnel.kubeconfig(), &tunnel.direct_kubeconfig()) {
        for kubectl in [&both.with, &both.without] {
            kubectl.file("one.yaml", NOTE);
            kubectl.file("two.yaml", NOTE.replace("\"1\"", "\"2\""));
            kubectl.file("stale.yaml", NOTE.replace("name: note", "resourceVersion: \"1\", name: note"));
            kubectl.file("held.yaml", NOTE.replace("name: note", "finalizers: [example.com/hold], name: note"));
            kubectl.file("boats.yaml", BOATS);
            let boat =
                "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: b, namespace: demo}\nspec: {sails: 3}\n";
            kubectl.file("boat.yaml", boat);
            kubectl.file("wrong.yaml", boat.replace('3', "30"));
        }
        both.same_story(&[
            "apply -f one.yaml",
            "apply -f one.yaml",
            "apply -f two.yaml --dry-run=server",
            "apply -f two.yaml",
            "create -f one.yaml",
            "replace -f stale.yaml",
            "patch cm note -n demo --type=json -p [{\"op\":\"add\",\"path\":\"/data/c\",\"value\":\"4\"}]",
            "patch cm note -n demo --type=json -p [{\"op\":\"test\",\"path\":\"/data/a\",\"value\":\"7\"}]",
            "patch cm note -n demo --type=merge -p {\"data\":{\"c\":null}}",
            "label cm note -n demo x=y",
            "get cm note -n demo -o jsonpath={.data}{.metadata.labels}",
            "delete -f one.yaml",
            "delete -f one.yaml",
            "apply --server-side -f one.yaml",
            "apply --server-side --field-manager=other -f two.yaml",
            "apply --server-side --field-manager=other --force-conflicts -f two.yaml",
            "delete -f one.yaml",
            "create -f held.yaml",
            "delete -f held.yaml --wait=false",
            "get cm note -n demo -o jsonpath={.metadata.finalizers}",
            "patch cm note -n demo --type=merge -p {\"metadata\":{\"finalizers\":null}}",
            "get cm note -n demo",
            "apply -f boats.yaml",
            "wait --for=condition=Established crd/boats.example.com --timeout=20s",
            "apply -f boat.yaml",
            "apply -f wrong.yaml",
            "get boats -n demo",
            "delete -f boat.yaml",
            "delete -f boats.yaml",
        ]);
    }
}

#[test]
fn large_lists_come_in_chunks() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let Some(kubectl) = Kubectl::newest(&tunnel.kubeconfig()) else { return };
    let item = |number: usize| {
        let metadata = json!({"name": format!("large-{number}"), "namespace": "demo", "labels": {"set": "large"}});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": "x".repeat(1024)}})
    };
    let items: Vec<Value> = (0..200).map(item).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    kubectl.ok(&["create", "-f", &kubectl.file("list.json", list)]);
    for both in Both::of(&tunnel.kubeconfig(), &tunnel.direct_kubeconfig()) {
        for size in ["0", "30"] {
            let chunks = format!("--chunk-size={size}");
            let names = both.same(&["get", "cm", "-n", "demo", "-l", "set=large", "-o", "name", &chunks]);
            assert_eq!(names.stdout_text().lines().count(), 200);
        }
    }
}

// -- who may do what

#[test]
fn what_is_forbidden_is_said_by_the_api_server() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let mallory = (tunnel.stub.kubeconfig(CLUSTER, "mallory", &[]), tunnel.cluster.kubeconfig("mallory", &[]));
    for both in Both::of(&mallory.0, &mallory.1) {
        for step in [
            "get secrets -A",
            "create cm mine -n demo",
            "delete ns demo",
            "exec -n demo web -c web -- true",
            "logs -n demo web -c web",
            "port-forward -n demo web :80",
            "auth can-i list pods",
        ] {
            let finished = both.same(&step.split(' ').collect::<Vec<_>>());
            assert_ne!(finished.code(), 0, "{step}");
        }
    }
}

#[test]
fn acting_as_somebody_else_is_decided_in_the_cluster() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let kubectl =
        |user: &str, groups: &[&str]| Kubectl::newest(&tunnel.stub.kubeconfig(CLUSTER, user, groups)).unwrap();
    let pods = ["get", "pods", "-n", "demo", "-o", "name"];
    let create = ["create", "cm", "mine", "-n", "demo"];
    let (alice, bob, carol) = (kubectl("alice", &["devs"]), kubectl("bob", &[]), kubectl("carol", &[]));
    assert_eq!(bob.ok(&pods), "pod/web\n");
    assert!(carol.fails(&pods).contains("User \"carol\" cannot list resource \"pods\""));
    // carol may act as bob, and as nobody else. bob may not act as anybody.
    assert_eq!(carol.ok(&[&pods[..], &["--as", "bob"]].concat()), "pod/web\n");
    assert!(carol.fails(&[&create[..], &["--as", "bob"]].concat()).contains("User \"bob\" cannot create"));
    for (kubectl, wanted) in [(&carol, "alice"), (&bob, "carol")] {
        let refused = kubectl.fails(&[&create[..], &["--as", wanted]].concat());
        assert!(refused.contains(&format!("cannot impersonate users \"{wanted}\"")), "{refused}");
    }
    // alice may do everything, and so act as anybody; but the agent keeps to what its ServiceAccount may, and to its policy.
    let refused = alice.fails(&[&create[..], &["--as", "dave"]].concat());
    assert!(refused.contains("system:serviceaccount:qtunnel:qtunnel-agent\" cannot impersonate"), "{refused}");
    let refused = alice.fails(&[&create[..], &["--as", "bob", "--as-group", "system:masters"]].concat());
    assert!(refused.contains("agent does not impersonate the group \"system:masters\""), "{refused}");
    let refused = kubectl("eve", &["system:masters"]).fails(&create);
    assert!(refused.contains("agent does not impersonate the group \"system:masters\""), "{refused}");
    let whoami = alice.ok(&["auth", "whoami", "-o", "json"]);
    let user = serde_json::from_str::<Value>(&whoami).unwrap()["status"]["userInfo"].clone();
    assert_eq!(user, json!({"username": "alice", "groups": ["devs", "system:authenticated"]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_audit_logs_know_a_request_by_one_id() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    let options = StubOptions::default().set("audit", "sink", "file").set("audit", "path", log.to_str().unwrap());
    let Some(tunnel) = RealTunnel::start_with(options.set("audit", "on_failure", "block")) else { return };
    let mut carol = Access::of(&tunnel.stub.kubeconfig(CLUSTER, "carol", &[])).http2().await;
    let as_bob = [(HeaderName::from_static("impersonate-user"), "bob")];
    let answer = ask(&mut carol, "/api/v1/namespaces/demo/pods", &as_bob).await;
    assert_eq!(answer.status, StatusCode::OK);
    let id = answer.headers["audit-id"].to_str().unwrap();
    let at_the_api_server = tunnel.cluster.audited(id);
    assert_eq!(at_the_api_server["user"]["username"], "system:serviceaccount:qtunnel:qtunnel-agent");
    let user = &at_the_api_server["impersonatedUser"];
    assert_eq!((&user["username"], &user["extra"]["qtunnel.dev/original-user"]), (&json!("bob"), &json!(["carol"])));
    let at_the_stub = eventually("the stub's audit log tells of it", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let (whole, _) = text.rsplit_once('\n')?;
        let mut events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.find(|event| event["auditID"] == id && event["stage"] == "ResponseComplete")
    });
    for field in ["verb", "requestURI", "objectRef", "responseStatus"] {
        assert_eq!(at_the_stub[field], at_the_api_server[field], "{field}");
    }
    assert_eq!(at_the_stub["user"]["username"], "carol");
    assert_eq!(at_the_stub["impersonatedUser"]["username"], "bob");
}

#[test]
fn a_users_own_token_passes_through() {
    let Some(cluster) = KubeApiServer::start() else { return };
    let stub = Stub::start(StubOptions::default());
    let options = AgentOptions::default().argument("--auth").argument("passthrough");
    let _agent = Agent::start(&stub, CLUSTER, &cluster.upstream(None), options);
    stub.wait_for_agents(CLUSTER, 1);
    let administrator = cluster.administrator();
    administrator.ok(&["create", "sa", "robot", "-n", "demo"]);
    let rights = ["--clusterrole=reads-pods", "--serviceaccount=demo:robot"];
    administrator.ok(&[&["create", "rolebinding", "robot", "-n", "demo"], &rights[..]].concat());
    let token = administrator.ok(&["create", "token", "robot", "-n", "demo"]);
    let direct = cluster.kubeconfig_with_token("robot", token.trim());
    for both in Both::of(&stub.kubeconfig(CLUSTER, "alice", &[]), &direct) {
        for step in ["get pods -n demo -o yaml", "get pods -A", "create cm mine -n demo --as bob", "auth can-i --list"]
        {
            let arguments: Vec<_> = step.split(' ').chain(["--token", token.trim()]).collect();
            both.same(&arguments);
        }
        let refused = both.with.fails(&["create", "cm", "mine", "-n", "demo"]);
        assert!(refused.contains("wants your own token"), "{refused}");
    }
}

// -- what stays open

#[test]
fn commands_run_in_a_pod_over_every_protocol() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let noise: Vec<u8> = (0..300_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let exec = |arguments: &[&str], input: Input| kubectl.run_with_input(&[&WEB[..], arguments].concat(), input);
        let finished = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"], Input::None);
        assert_eq!((finished.stdout_text().as_str(), finished.code()), ("out\n", 7), "{}", kubectl.name());
        assert!(finished.stderr.starts_with("err\n"), "{}: {}", kubectl.name(), finished.stderr);
        let back = exec(&["-i", "--", "cat"], Input::Bytes(noise.clone()));
        assert!(back.stdout == noise, "{}: {} bytes came back", kubectl.name(), back.stdout.len());
        let zeros = exec(&["--", "head", "-c", "5000000", "/dev/zero"], Input::None);
        assert!(zeros.status.success() && zeros.stdout.len() == 5_000_000, "{}", kubectl.name());
        let attach = ["attach", "-n", "demo", "web", "-c", "sidecar", "-i"];
        let attached = kubectl.run_with_input(&attach, Input::Bytes(b"hello attach\n".to_vec()));
        assert!(attached.ok().ends_with("hello attach\n"), "{}", kubectl.name());
        let file = kubectl.file("noise", &noise);
        kubectl.ok(&["cp", "-n", "demo", &file, "web:/tmp/noise", "-c", "web"]);
        kubectl.ok(&["cp", "-n", "demo", "web:/tmp/noise", "back", "-c", "web"]);
        assert!(std::fs::read(kubectl.home().join("back")).unwrap() == noise, "{}", kubectl.name());
    }
    tunnel.stub.wait_until_idle(CLUSTER);
}

#[test]
fn logs_are_followed() {
    let Some(tunnel) = RealTunnel::start() else { return };
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let mut following = kubectl.start(&["logs", "-n", "demo", "web", "-c", "fast", "-f", "--tail=1"]);
        let shown = following.wait_for_stdout("twenty lines", |text| text.lines().count() > 20);
        let numbers: Vec<u64> = shown.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "each line once and in order: {shown}");
        following.signal(Signal::TERM);
        following.wait();
    }
    tunnel.stub.wait_until_idle(CLUSTER);
}

#[test]
fn ports_are_forwarded_over_every_protocol() {
    let Some(tunnel) = RealTunnel::start() else { return };
    for kubectl in Kubectl::all(&tunnel.kubeconfig()) {
        let mut forward = kubectl.start(&["port-forward", "-n", "demo", "pod/web", ":80", "--address", "127.0.0.1"]);
        let said = forward.wait_for_stdout("the local port", |text| text.contains("->"));
        let port = said.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse::<u16>().unwrap();
        std::thread::scope(|scope| {
            let pages: Vec<_> = (0..10).map(|_| scope.spawn(|| page(port))).collect();
            for page in pages {
                assert!(page.join().unwrap().ends_with("hello from web\n"), "{}", kubectl.name());
            }
        });
    }
    tunnel.stub.wait_until_idle(CLUSTER);
}

fn page(port: u16) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    // Without this end an old kubectl waits for one from the other side.
    socket.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

/// More than the 250 streams that the API server allows on one HTTP/2 connection.
const MANY: usize = 300;

async fn create_config_map(client: &mut Client, name: &str) -> Value {
    let mut request = client.request(CONFIG_MAPS);
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    *request.body_mut() = Full::new(Bytes::from(object.to_string()));
    let answer = read(client.send(request).await).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    answer.json()
}

/// Reads events up to the one about this object.
async fn told_of(lines: &mut Lines, name: &str) -> Value {
    loop {
        let event: Value = serde_json::from_str(&lines.next().await).unwrap();
        if event["object"]["metadata"]["name"] == name {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_watches_share_a_connection() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let shared = Access::of(&tunnel.kubeconfig()).http2().await;
    let path = format!("{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true");
    let watch = async || {
        let response = shared.share().open(&path).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines::of(response.into_body())
    };
    let mut watches = join_all((0..MANY).map(|_| watch())).await;
    let created = create_config_map(&mut shared.share(), "new").await;
    for event in join_all(watches.iter_mut().map(|lines| told_of(lines, "new"))).await {
        assert_eq!((&event["type"], &event["object"]["metadata"]), (&json!("ADDED"), &created["metadata"]));
    }
    drop(watches);
    tunnel.stub.wait_until_idle(CLUSTER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_with_what_there_is_and_says_when_it_is_too_late() {
    let Some(tunnel) = RealTunnel::start() else { return };
    let mut client = Access::of(&tunnel.kubeconfig()).http2().await;
    create_config_map(&mut client, "there").await;
    let initial = "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut lines = Lines::of(client.open(&format!("{CONFIG_MAPS}?{initial}")).await.into_body());
    told_of(&mut lines, "there").await;
    let bookmark: Value = serde_json::from_str(&lines.next().await).unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    // etcd never had an event so early in a range that a watch may begin with.
    let late = client.open(&format!("{CONFIG_MAPS}?watch=true&resourceVersion=1")).await;
    let event: Value = serde_json::from_str(&Lines::of(late.into_body()).next().await).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_are_restarted_lose_no_request() {
    let Some(mut tunnel) = RealTunnel::start() else { return };
    let token = tunnel.cluster.administrator().ok(&["create", "token", "qtunnel-agent", "-n", "qtunnel"]);
    let upstream = tunnel.cluster.upstream(Some(token.trim()));
    let _other = Agent::start(&tunnel.stub, CLUSTER, &upstream, AgentOptions::default());
    tunnel.stub.wait_for_agents(CLUSTER, 2);
    let load = Load::start(&tunnel.kubeconfig()).await;
    for _ in 0..2 {
        load.goes_on(150).await;
        block_in_place(|| {
            tunnel.agent.process.signal(Signal::TERM);
            assert!(tunnel.agent.process.wait().success());
            tunnel.agent.restart();
            tunnel.stub.wait_for_agents(CLUSTER, 2);
        });
    }
    load.goes_on(150).await;
    let outcome = load.ends().await;
    assert!(outcome.failures.is_empty(), "{outcome:?}");
}

// -- the first minutes

#[test]
fn the_demo_works_in_front_of_it() {
    let Some(cluster) = KubeApiServer::start() else { return };
    let kubeconfig = cluster.kubeconfig("administrator", &["system:masters"]);
    let mut command = qtunnel(["demo", "--as-user", "alice", "--kubeconfig"]);
    command.arg(kubeconfig);
    let mut demo = Process::start("the demo", command, Input::None);
    let said = demo.wait_for_stdout("its end", |text| text.contains("Ctrl-C stops everything"));
    for check in ["list pods", "watch", "logs -f", "exec", "port-forward"] {
        assert!(said.contains(&format!("✓ {check} ")), "{check}: {said}");
    }
    demo.signal(Signal::INT);
    demo.wait();
}
