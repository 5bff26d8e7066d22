//! An honest, small Kubernetes API server in process, good enough that real clients are useful against it.
//!
//! It serves `qtunnel demo`, the end-to-end tests and the benches. State is in memory. Nothing of the host is ever
//! run or read: commands, files and network services of its containers are played in process.
//!
//! The life of a request stands in `server.rs`: authenticate, impersonate, authorize, answer.

mod body;
mod crud;
mod discovery;
mod exec;
mod files;
mod gnostic;
mod identity;
mod log_ring;
mod logs;
mod managed_fields;
mod objects;
mod openapi;
mod patch;
mod payload;
mod pods;
mod port_forward;
mod process;
mod protobuf;
mod rbac;
mod request;
mod resources;
mod response;
mod reviews;
mod sample;
mod schemas;
mod seed;
mod selector;
mod server;
mod services;
mod shell;
mod sink;
pub(super) mod spdy;
mod status;
mod store;
mod table;
mod terminal;
mod watch;
mod websocket;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::rbac::Rule;
use self::{
    discovery::Discovery, identity::Authenticator, openapi::OpenApi, pods::Pods, rbac::Authorizer,
    resources::namespaces, store::Key,
};

/// The sample API. Clones share one state.
#[derive(Clone)]
pub struct SampleApi {
    shared: Arc<Shared>,
}

/// Settings of a [`SampleApi`].
#[derive(Debug)]
pub struct SampleApiBuilder {
    authenticator: Authenticator,
    rules: Vec<Rule>,
    cluster_name: String,
    max_concurrent_streams: u32,
}

/// What the sample API is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleApiStats {
    /// Requests received so far.
    pub requests: u64,
    /// Requests whose answer is not finished; upgraded ones are not among them.
    pub open_requests: u64,
    /// Open TCP connections, the upgraded ones included.
    pub open_connections: u64,
    /// Running exec, attach and port-forward sessions and WebSocket watches.
    pub open_upgrades: u64,
}

impl SampleApi {
    /// Settings to start from: no tokens, so that everybody is an administrator.
    pub fn builder() -> SampleApiBuilder {
        SampleApiBuilder {
            authenticator: Authenticator::default(),
            rules: Vec::new(),
            cluster_name: "sample".to_owned(),
            max_concurrent_streams: 250,
        }
    }

    /// Serves until `shutdown` is cancelled. With `tls` it speaks HTTP/1.1 and, where the configuration offers the
    /// ALPN protocol `h2`, HTTP/2; without, HTTP/1.1 in the clear. Several listeners may serve one API.
    ///
    /// Errors: none today; a listener that fails to accept is tried again.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        server::serve(self.shared, listener, tls, shutdown).await;
        Ok(())
    }

    /// What the API is busy with.
    pub fn stats(&self) -> SampleApiStats {
        let counters = &self.shared.counters;
        SampleApiStats {
            requests: counters.requests.load(Ordering::Relaxed),
            open_requests: counters.open_requests.load(Ordering::Relaxed),
            open_connections: counters.open_connections.load(Ordering::Relaxed),
            open_upgrades: counters.open_upgrades.load(Ordering::Relaxed),
        }
    }

    /// The uid of the namespace `kube-system`, by which a cluster is known; random for each API.
    pub fn cluster_uid(&self) -> String {
        let system = self.shared.store.get(&Key::new(namespaces(), "", "kube-system"));
        system.and_then(|namespace| Some(namespace["metadata"]["uid"].as_str()?.to_owned())).unwrap_or_default()
    }
}

impl SampleApiBuilder {
    /// Makes a bearer token stand for a user. From the first token on, requests without one are anonymous.
    pub fn token(mut self, token: &str, user: &str, groups: &[&str]) -> Self {
        self.authenticator.add(token, user, groups);
        self
    }

    /// Lets a user do everything, and impersonate anybody.
    pub fn impersonator(self, user: &str) -> Self {
        self.rule(Rule::for_user(user).verbs(&["*"]).resources(&["*"]).paths(&["*"]))
    }

    /// Adds a rule. Nobody may do what no rule allows, except for members of `system:masters`; everybody may
    /// discover.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The name that `kubectl get configmap cluster-info -n kube-public` shows. Default: `sample`.
    pub fn cluster_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.cluster_name);
        self
    }

    /// HTTP/2 streams one connection may have open. Default: 250, as of a real API server.
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.max_concurrent_streams = streams;
        self
    }

    /// The API, filled with a few objects.
    pub fn build(self) -> SampleApi {
        let store = store::Store::new();
        seed::fill(&store, &self.cluster_name);
        let shared = Shared {
            store,
            pods: Pods::default(),
            authenticator: self.authenticator,
            authorizer: Authorizer::new(self.rules),
            discovery: Discovery::new(),
            openapi: OpenApi::new(),
            counters: Counters::default(),
            max_concurrent_streams: self.max_concurrent_streams,
        };
        SampleApi { shared: Arc::new(shared) }
    }
}

/// The state all connections share.
struct Shared {
    store: store::Store,
    pods: Pods,
    authenticator: Authenticator,
    authorizer: Authorizer,
    discovery: Discovery,
    openapi: OpenApi,
    counters: Counters,
    max_concurrent_streams: u32,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    open_requests: Arc<AtomicU64>,
    open_connections: Arc<AtomicU64>,
    open_upgrades: Arc<AtomicU64>,
}

/// Counts something as open until it is dropped.
struct Open(Arc<AtomicU64>);

impl Open {
    fn new(counter: &Arc<AtomicU64>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
