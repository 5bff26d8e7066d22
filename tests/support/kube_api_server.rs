//! A real kube-apiserver on a real etcd, with a node whose kubelet is the sample API.
//!
//! The programs are those of `QTUNNEL_KUBE_APISERVER` and `QTUNNEL_ETCD`, or those in `target/kube-apiserver`, where
//! `tests/kube-apiserver` builds them.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::eventually;
use super::kubectl::Kubectl;
use super::kubelet::Kubelet;
use super::process::{Input, Process};
use super::test_authority::TestAuthority;
use super::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions, Upstream, run_qtunnel};

/// One at a time: each needs a processor for some seconds and 300 MB of memory.
static RUNNING: Mutex<()> = Mutex::new(());

/// The namespace, pod and containers have the names of the sample API's, so that what is made for that one can be used here.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: demo}
---
apiVersion: v1
kind: Node
metadata: {name: node}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
spec:
  nodeName: node
  automountServiceAccountToken: false
  # There is no controller that would take these from the node.
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: web, ports: [{containerPort: 80}]}
  - {name: sidecar, image: sidecar, stdin: true}
  - {name: fast, image: fast}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: alice-does-everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reads-pods}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: bob-reads-pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reads-pods}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: acts-as-bob}
rules: [{apiGroups: [""], resources: [users], verbs: [impersonate], resourceNames: [bob]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: carol-acts-as-bob}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: acts-as-bob}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}]
"#;

const AUDIT_POLICY: &str =
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// A running cluster of one node, with nobody in it but an API server.
pub struct KubeApiServer {
    /// The API server.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    authority: TestAuthority,
    _etcd: Process,
    kubelet: Kubelet,
    /// Keeps the port while nobody listens there.
    _port: Socket,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl KubeApiServer {
    /// Starts one in which alice may do everything, bob may read pods, and carol may act as bob. `None` where a program is
    /// missing.
    pub fn start() -> Option<Self> {
        let (api_server, etcd) = programs()?;
        let alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let (dir, authority) = (tempfile::tempdir().unwrap(), TestAuthority::new());
        let (port, address) = reserved_port();
        let etcd = start_etcd(&etcd, dir.path());
        let kubelet = Kubelet::start(authority.server().server_config());
        let process = start_api_server(&api_server, dir.path(), &authority, address);
        let server = Self { process, address, authority, _etcd: etcd, kubelet, _port: port, dir, _alone: alone };
        server.fill()
    }

    /// A kubeconfig that goes there without a tunnel, for this user with at most one group.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> PathBuf {
        let leaf = self.authority.user(user, groups);
        let encoded = |text: String| STANDARD.encode(text);
        self.kubeconfig_with(
            user,
            json!({"client-certificate-data": encoded(leaf.certificate()), "client-key-data": encoded(leaf.key())}),
        )
    }

    /// The same with a token.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> PathBuf {
        self.kubeconfig_with(name, json!({"token": token}))
    }

    /// How an agent with this token reaches it.
    pub fn upstream(&self, token: Option<&str>) -> Upstream {
        let token_file = token.map(|token| {
            let path = self.dir.path().join("agent-token");
            std::fs::write(&path, token).unwrap();
            path
        });
        Upstream { url: format!("https://{}", self.address), ca: Some(self.dir.path().join("ca.pem")), token_file }
    }

    /// What its audit log tells of the request with this id, when that is complete.
    pub fn audited(&self, id: &str) -> Value {
        eventually("the API server's audit log tells of a request", || {
            let text = std::fs::read_to_string(self.dir.path().join("audit.log")).ok()?;
            // The last line may be half there.
            let (whole, _) = text.rsplit_once('\n')?;
            let mut events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            events.find(|event| event["auditID"] == id && event["stage"] == "ResponseComplete")
        })
    }

    /// An administrator's kubectl, without a tunnel.
    pub fn administrator(&self) -> Kubectl {
        Kubectl::newest(&self.kubeconfig("administrator", &["system:masters"])).expect("there was one at the start")
    }

    /// Applies what `qtunnel agent manifest` prints, and gives a token of the ServiceAccount in it.
    fn apply_manifest(&self, stub: &Stub) -> String {
        let (address, token) = (stub.address.to_string(), stub.token_with(CLUSTER, &["--uses", "2"]));
        let mut arguments = vec!["agent", "manifest", "--stub", &address, "--token", &token];
        arguments.extend(["--impersonate-group", "devs"]);
        arguments.extend(USERS.iter().flat_map(|user| ["--impersonate-user", user]));
        let kubectl = self.administrator();
        let manifest = kubectl.file("manifest.yaml", run_qtunnel(arguments).ok());
        kubectl.ok(&["apply", "-f", &manifest]);
        kubectl.ok(&["create", "token", "qtunnel-agent", "-n", "qtunnel"]).trim().to_owned()
    }

    fn kubeconfig_with(&self, name: &str, user: Value) -> PathBuf {
        let cluster = json!({
            "server": format!("https://{}", self.address),
            "certificate-authority-data": STANDARD.encode(&self.authority.certificate),
        });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "direct",
            "contexts": [{"name": "direct", "context": {"cluster": "direct", "user": name}}],
            "clusters": [{"name": "direct", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
        });
        let path = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    /// Waits until it is ready and makes the objects.
    fn fill(mut self) -> Option<Self> {
        let kubectl = Kubectl::newest(&self.kubeconfig("administrator", &["system:masters"]))?;
        eventually("the API server is ready", || {
            assert!(self.process.ended().is_none(), "the API server ended");
            TcpStream::connect(self.address).ok()?;
            kubectl.run(&["get", "--raw", "/readyz"]).status.success().then_some(())
        });
        kubectl.ok(&["apply", "-f", &kubectl.file("objects.yaml", OBJECTS)]);
        let addresses = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
        let endpoints = json!({"kubeletEndpoint": {"Port": self.kubelet.address.port()}});
        set_status(&kubectl, "node/node", json!({"addresses": addresses, "daemonEndpoints": endpoints}));
        let container = |name: &str| {
            let state = json!({"running": {"startedAt": "2024-01-01T00:00:00Z"}});
            json!({"name": name, "image": name, "imageID": "", "ready": true, "restartCount": 0, "state": state})
        };
        let containers = ["web", "sidecar", "fast"].map(container);
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let status = json!({"phase": "Running", "conditions": conditions, "containerStatuses": containers});
        set_status(&kubectl, "pod/web", status);
        Some(self)
    }
}

fn set_status(kubectl: &Kubectl, object: &str, status: Value) {
    let patch = json!({"status": status}).to_string();
    kubectl.ok(&["patch", object, "-n", "demo", "--subresource=status", "--type=merge", "-p", &patch]);
}

fn programs() -> Option<(PathBuf, PathBuf)> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kube-apiserver");
    let program = |variable: &str, name: &str| {
        let path = std::env::var_os(variable).map_or_else(|| built.join(name), PathBuf::from);
        if !path.is_file() {
            println!("skipped: there is no {name}; tests/kube-apiserver builds one");
            return None;
        }
        Some(path)
    };
    Some((program("QTUNNEL_KUBE_APISERVER", "kube-apiserver")?, program("QTUNNEL_ETCD", "etcd")?))
}

/// A port that the API server can share with this socket, and nobody else can have: it cannot be told to let the system
/// choose.
fn reserved_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// etcd on sockets in `dir`.
fn start_etcd(program: &Path, dir: &Path) -> Process {
    let mut command = Command::new(program);
    command.env_clear().current_dir(dir).args(["--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn"]);
    command.args(["--listen-client-urls=unix://client:0", "--advertise-client-urls=unix://client:0"]);
    command.args(["--listen-peer-urls=unix://peer:0", "--initial-advertise-peer-urls=unix://peer:0"]);
    command.arg("--initial-cluster=default=unix://peer:0");
    Process::start("etcd", command, Input::None)
}

fn start_api_server(program: &Path, dir: &Path, authority: &TestAuthority, address: SocketAddr) -> Process {
    let (server, kubelet_client) = (authority.server(), authority.user("api-server", &[]));
    let files = [
        ("ca.pem", authority.certificate.clone()),
        ("server.pem", server.certificate()),
        ("server.key", server.key()),
        ("kubelet-client.pem", kubelet_client.certificate()),
        ("kubelet-client.key", kubelet_client.key()),
        ("audit-policy.yaml", AUDIT_POLICY.to_owned()),
    ];
    for (name, content) in files {
        std::fs::write(dir.join(name), content).unwrap();
    }
    let mut command = Command::new(program);
    command.env_clear().current_dir(dir).arg(format!("--etcd-servers=unix://{}", dir.join("client:0").display()));
    command.args(["--bind-address=127.0.0.1", "--permit-port-sharing", "--endpoint-reconciler-type=none"]);
    command.arg(format!("--secure-port={}", address.port()));
    command.args(["--tls-cert-file=server.pem", "--tls-private-key-file=server.key", "--cert-dir=certificates"]);
    command.args(["--client-ca-file=ca.pem", "--anonymous-auth=false", "--authorization-mode=Node,RBAC"]);
    command.arg("--service-account-issuer=https://kubernetes.default.svc");
    command.args(["--service-account-signing-key-file=server.key", "--service-account-key-file=server.pem"]);
    command.arg("--service-cluster-ip-range=10.0.0.0/24");
    command.args(["--audit-policy-file=audit-policy.yaml", "--audit-log-path=audit.log"]);
    command.args(["--kubelet-client-certificate=kubelet-client.pem", "--kubelet-client-key=kubelet-client.key"]);
    command.args(["--kubelet-certificate-authority=ca.pem", "--kubelet-preferred-address-types=InternalIP"]);
    // Watches that begin with a list, which later versions do by themselves.
    command.arg("--feature-gates=WatchList=true");
    // The most that it takes: one request in fifty tells the agent to go on with another connection.
    command.arg("--goaway-chance=0.02");
    Process::start("the API server", command, Input::None)
}

/// A stub and an agent in front of a real API server.
pub struct RealTunnel {
    /// The public side.
    pub stub: Stub,
    /// The private side.
    pub agent: Agent,
    /// What is behind it.
    pub cluster: KubeApiServer,
}

/// Whom the agent of a [`RealTunnel`] may act as.
const USERS: [&str; 4] = ["alice", "bob", "carol", "mallory"];

impl RealTunnel {
    /// Starts all of it: the agent is the ServiceAccount of `qtunnel agent manifest`, with its rights and no others, which
    /// are to act as alice, bob, carol and mallory, and for the group `devs`.
    pub fn start() -> Option<Self> {
        Self::start_with(StubOptions::default())
    }

    /// The same with options.
    pub fn start_with(options: StubOptions) -> Option<Self> {
        let cluster = KubeApiServer::start()?;
        let stub = Stub::start(options);
        let token = cluster.apply_manifest(&stub);
        let agent = Agent::start(&stub, CLUSTER, &cluster.upstream(Some(&token)), AgentOptions::default());
        stub.wait_for_agents(CLUSTER, 1);
        Some(Self { stub, agent, cluster })
    }

    /// A kubeconfig for alice, who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.stub.kubeconfig(CLUSTER, "alice", &["devs"])
    }

    /// The same without the tunnel.
    pub fn direct_kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig("alice", &["devs"])
    }
}
