//! The demo checks itself: as a user's client, with the user's kubeconfig, through the tunnel.

mod exec;
mod port_forward;
mod reading;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use tokio::time::timeout;

use super::client::{Client, ClientError};
use super::report::Report;
use super::tunnel::DemoCluster;

/// How many checks ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// All is well.
    pub passed: usize,
    /// Could not be made.
    pub skipped: usize,
    /// Something is wrong.
    pub failed: usize,
    /// Those of the skipped ones that the cluster's RBAC forbids.
    pub forbidden: usize,
}

/// Why the cluster cannot be reached through the tunnel.
#[derive(Debug, thiserror::Error)]
#[error("the cluster cannot be reached through the tunnel: {0}; {advice}", advice = advice(.0))]
pub struct Unreachable(CheckError);

/// A way through the tunnel that works.
pub struct Reached {
    client: Client,
    version: String,
}

impl Reached {
    /// The API server's version, as it says: `v1.36.1`.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// How a check went well.
enum Finding {
    /// As it should, with what was seen and how long that took.
    Passed { time: Duration, detail: String },
    /// It could not be made here.
    Skipped(String),
}

/// How a check went wrong.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the WebSocket broke: {0}")]
    WebSocket(#[from] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("the stream broke: {0}")]
    Stream(#[from] std::io::Error),
    #[error("{0}")]
    Unexpected(String),
    #[error("it did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
}

type CheckResult = Result<Finding, CheckError>;

/// A container to look into.
struct Target {
    namespace: String,
    pod: String,
    container: String,
    port: Option<u16>,
}

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Asks the cluster for its version, through the tunnel. The agent has to be connected.
pub async fn reach(kubeconfig: &Path) -> Result<Reached, Unreachable> {
    let attempt = async {
        let client = Client::connect(kubeconfig).await?;
        let answer = client.get("/version").await?;
        let version = answer["gitVersion"].as_str().unwrap_or("of unknown version").to_owned();
        Ok(Reached { client, version })
    };
    timeout(CHECK_TIMEOUT, attempt).await.unwrap_or(Err(CheckError::TimedOut(CHECK_TIMEOUT))).map_err(Unreachable)
}

/// Makes every check and prints how it went.
pub async fn run(reached: &Reached, cluster: &DemoCluster, report: &mut Report<impl Write>) -> Tally {
    let client = &reached.client;
    let real = matches!(cluster, DemoCluster::Real { .. });
    let mut checks = Checks { report, patience: CHECK_TIMEOUT, rbac_may_forbid: real, tally: Tally::default() };
    checks.make("list namespaces", reading::namespaces(client)).await;
    checks.make("list pods", reading::pods(client)).await;
    if real {
        let target = running_pod(client).await;
        checks.make("watch", reading::watch_namespaces(client)).await;
        checks.make("logs -f", with(target.as_ref(), |target| reading::any_logs(client, target))).await;
        checks.make("exec", with(target.as_ref(), |target| exec::cat_if_there(client, target))).await;
        checks.make("port-forward", with(target.as_ref(), |target| port_forward::knock(client, target))).await;
        checks.make("small GET", reading::latency(client, "/version")).await;
    } else {
        let target = sample_pod();
        checks.make("watch", reading::watch_new_configmap(client, &target.namespace)).await;
        checks.make("logs -f", reading::ticking_logs(client, &target)).await;
        checks.make("exec", exec::cat(client, &target)).await;
        checks.make("port-forward", port_forward::page(client, &target)).await;
        checks.make("small GET", reading::latency(client, "/api/v1/namespaces/demo/configmaps/settings")).await;
    }
    checks.tally
}

/// Makes checks one after the other.
struct Checks<'a, W> {
    report: &'a mut Report<W>,
    /// How long each may take.
    patience: Duration,
    /// In a cluster that is not ours it is no fault that the user may not do something.
    rbac_may_forbid: bool,
    tally: Tally,
}

impl<W: Write> Checks<'_, W> {
    async fn make(&mut self, name: &str, check: impl Future<Output = CheckResult>) {
        self.report.running(name);
        match timeout(self.patience, check).await.unwrap_or(Err(CheckError::TimedOut(self.patience))) {
            Ok(Finding::Passed { time, detail }) => {
                self.tally.passed += 1;
                self.report.passed(name, time, &detail);
            }
            Ok(Finding::Skipped(why)) => {
                self.tally.skipped += 1;
                self.report.skipped(name, &why);
            }
            Err(CheckError::Client(ClientError::Status { code: StatusCode::FORBIDDEN, message }))
                if self.rbac_may_forbid =>
            {
                self.tally.skipped += 1;
                self.tally.forbidden += 1;
                self.report.skipped(name, &message);
            }
            Err(error) => {
                self.tally.failed += 1;
                self.report.failed(name, &error.to_string(), advice(&error));
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

impl Target {
    /// The path of a subresource of the pod.
    fn path(&self, subresource: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{}/{subresource}", self.namespace, self.pod)
    }
}

/// A check that needs a pod, or its absence.
async fn with<'a, F>(target: Option<&'a Target>, check: impl FnOnce(&'a Target) -> F) -> CheckResult
where
    F: Future<Output = CheckResult>,
{
    match target {
        Some(target) => check(target).await,
        None => Ok(Finding::Skipped("there is no running pod that this user may see".to_owned())),
    }
}

/// What the sample cluster always has: a container that writes a hundred lines a second, and a web page.
fn sample_pod() -> Target {
    Target { namespace: "demo".to_owned(), pod: "web".to_owned(), container: "fast".to_owned(), port: Some(80) }
}

/// A running pod of a real cluster; rather one with a port.
async fn running_pod(client: &Client) -> Option<Target> {
    let pods = client.get("/api/v1/pods?fieldSelector=status.phase%3DRunning&limit=100");
    // Why there is no list has been said by the check that lists pods.
    let list = timeout(CHECK_TIMEOUT, pods).await.ok()?.ok()?;
    let mut targets: Vec<Target> = list["items"].as_array()?.iter().filter_map(target_in).collect();
    let best = targets.iter().position(|target| target.port.is_some()).unwrap_or(0);
    (best < targets.len()).then(|| targets.swap_remove(best))
}

/// The first container of a pod.
fn target_in(pod: &Value) -> Option<Target> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let container = &pod["spec"]["containers"][0];
    let mut ports = container["ports"].as_array().into_iter().flatten();
    let tcp = ports.find(|port| matches!(port["protocol"].as_str(), None | Some("TCP")));
    Some(Target {
        namespace: text(&pod["metadata"]["namespace"])?,
        pod: text(&pod["metadata"]["name"])?,
        container: text(&container["name"])?,
        port: tcp.and_then(|port| port["containerPort"].as_u64()).and_then(|port| port.try_into().ok()),
    })
}

/// What to do about an error.
fn advice(error: &CheckError) -> &'static str {
    let CheckError::Client(ClientError::Status { code, .. }) = error else {
        return "run again with `--log qtunnel=debug` to see what stub and agent saw";
    };
    match *code {
        StatusCode::UNAUTHORIZED => {
            "is this machine's clock right, and is the kubeconfig given to the demo still valid?"
        }
        StatusCode::FORBIDDEN => {
            "choose another --as-user or --as-group, or give the demo a kubeconfig of someone who may impersonate"
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            "does the API server answer `kubectl get --raw /readyz` without the tunnel?"
        }
        _ => "run again with `--log qtunnel=debug` to see what stub and agent saw",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::Style;
    use serde_json::json;

    async fn make(rbac_may_forbid: bool, result: CheckResult) -> (Tally, String) {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, Style::Plain);
        let mut checks =
            Checks { report: &mut report, patience: CHECK_TIMEOUT, rbac_may_forbid, tally: Tally::default() };
        checks.make("exec", async { result }).await;
        (checks.tally, String::from_utf8(out).unwrap())
    }

    fn status(code: StatusCode) -> CheckResult {
        Err(ClientError::Status { code, message: "the server's words".to_owned() }.into())
    }

    #[tokio::test]
    async fn what_a_real_cluster_forbids_is_skipped_in_its_own_words() {
        let (tally, text) = make(true, status(StatusCode::FORBIDDEN)).await;
        assert_eq!(tally, Tally { skipped: 1, forbidden: 1, ..Tally::default() });
        assert!(text.contains("skipped: the server's words"), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_of_the_sample_cluster_is_a_failure() {
        let (tally, _) = make(false, status(StatusCode::FORBIDDEN)).await;
        assert_eq!(tally, Tally { failed: 1, ..Tally::default() });
    }

    #[tokio::test]
    async fn a_failure_says_what_to_do() {
        let (_, text) = make(true, status(StatusCode::BAD_GATEWAY)).await;
        assert!(text.contains("failed: 502 Bad Gateway: the server's words\n"), "{text}");
        assert!(text.contains("kubectl get --raw /readyz"), "{text}");
    }

    #[tokio::test]
    async fn a_check_that_hangs_fails_in_time() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, Style::Plain);
        let mut checks =
            Checks { report: &mut report, patience: Duration::ZERO, rbac_may_forbid: false, tally: Tally::default() };
        checks.make("watch", std::future::pending()).await;
        assert_eq!(checks.tally.failed, 1);
    }

    #[test]
    fn a_pods_first_container_and_its_first_tcp_port_are_looked_at() {
        let ports = json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080, "protocol": "TCP"}]);
        let target = target_in(&json!({
            "metadata": {"namespace": "a", "name": "b"},
            "spec": {"containers": [{"name": "c", "ports": ports}, {"name": "d"}]},
        }));
        let target = target.unwrap();
        assert_eq!((target.path("log").as_str(), target.port), ("/api/v1/namespaces/a/pods/b/log", Some(8080)));
        assert!(target_in(&json!({"metadata": {"name": "b"}})).is_none());
    }
}
