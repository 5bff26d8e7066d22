//! The running side of pods: containers with a log, files, and something that plays their process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{files::FileSystem, log_ring::LogRing, status::ApiError};

/// The containers somebody has looked into. A container comes into being when it is first asked for, and behaves as
/// if it had run since its pod was created.
#[derive(Default)]
pub(super) struct Pods {
    running: Mutex<HashMap<(String, String), Running>>,
}

struct Running {
    uid: String,
    stopped: CancellationToken,
    containers: HashMap<String, Arc<Container>>,
}

/// One container.
pub(super) struct Container {
    /// Name of the pod, which is its hostname.
    pub hostname: String,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// What its process has written.
    pub log: LogRing,
    /// Its files, in memory.
    pub files: Mutex<FileSystem>,
    /// What its process does.
    pub process: MainProcess,
    /// Cancelled when the pod is deleted.
    pub stopped: CancellationToken,
}

/// What the process of a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MainProcess {
    /// Writes a line every so often.
    Ticker,
    /// Writes what it reads.
    Cat,
}

impl Pods {
    /// The container of that name in that pod. Without a name, the only one.
    ///
    /// Errors: 400 for a name that is not in the pod, or that is needed.
    pub fn container(&self, pod: &Value, name: Option<&str>) -> Result<Arc<Container>, ApiError> {
        let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        let spec = container_spec(pod, name)?;
        let container = spec["name"].as_str().unwrap_or_default().to_owned();
        let mut running = self.lock();
        let started = || Running { uid: text("uid"), stopped: CancellationToken::new(), containers: HashMap::new() };
        let entry = running.entry((text("namespace"), text("name"))).or_insert_with(started);
        if entry.uid != text("uid") {
            entry.stopped.cancel();
            *entry = started();
        }
        let stopped = entry.stopped.clone();
        let container =
            entry.containers.entry(container).or_insert_with(|| Arc::new(Container::new(pod, spec, stopped)));
        Ok(container.clone())
    }

    /// Any container, for what belongs to the pod as a whole. Errors: 400 for a pod without containers.
    pub fn first_container(&self, pod: &Value) -> Result<Arc<Container>, ApiError> {
        self.container(pod, pod["spec"]["containers"][0]["name"].as_str())
    }

    /// Ends the containers of a pod.
    pub fn stop(&self, namespace: &str, name: &str) {
        if let Some(pod) = self.lock().remove(&(namespace.to_owned(), name.to_owned())) {
            pod.stopped.cancel();
        }
    }

    // A panic elsewhere leaves whole entries behind, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn new(pod: &Value, spec: &Value, stopped: CancellationToken) -> Self {
        let environment = environment(spec);
        let per_second = environment.iter().find(|(key, _)| key == "TICKS_PER_SECOND");
        let per_second = per_second.and_then(|(_, value)| value.parse().ok()).unwrap_or(1);
        let created = pod["metadata"]["creationTimestamp"].as_str().and_then(|text| text.parse().ok());
        let process = if spec["command"][0] == "cat" { MainProcess::Cat } else { MainProcess::Ticker };
        let log = match process {
            MainProcess::Cat => LogRing::quiet(),
            MainProcess::Ticker => LogRing::ticking(created.unwrap_or_else(Timestamp::now), per_second),
        };
        let hostname = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Self { hostname, environment, log, files: Mutex::new(FileSystem::new()), process, stopped }
    }

    /// The container's files.
    pub fn files(&self) -> MutexGuard<'_, FileSystem> {
        // A panic elsewhere leaves whole files behind, so a poisoned lock is usable.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of the pod's spec that is this container (`podutils.FindContainerByName`; `pod/rest/subresources.go`).
fn container_spec<'a>(pod: &'a Value, name: Option<&str>) -> Result<&'a Value, ApiError> {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    match (name.filter(|name| !name.is_empty()), containers) {
        (Some(name), _) => containers
            .iter()
            .find(|container| container["name"] == name)
            .ok_or_else(|| ApiError::bad_request(format!("container {name} is not valid for pod {pod_name}"))),
        (None, [only]) => Ok(only),
        (None, _) => {
            let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
            let names = names.join(" ");
            let message = format!("a container name must be specified for pod {pod_name}, choose one of: [{names}]");
            Err(ApiError::bad_request(message))
        }
    }
}

fn environment(spec: &Value) -> Vec<(String, String)> {
    let given = spec["env"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let given =
        given.filter_map(|entry| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_str()?.to_owned())));
    let path =
        [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()), ("HOME".to_owned(), "/root".to_owned())];
    path.into_iter().chain(given).collect()
}
