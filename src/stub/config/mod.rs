//! The stub's settings file, `stub.toml`: one file for each of its sections.

mod admin;
mod agents;
mod authentication;
mod authorization;
mod election;
mod http3;
mod kubernetes;
mod limits;
mod store;
mod tracing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

pub use admin::AdminConfig;
pub use agents::{AgentsConfig, is_worth_asking_for, keep_alive_for, report_interval_beside};
pub use authentication::{AuthenticationConfig, Method, TokenWebhookConfig};
pub use authorization::{AccessWebhookConfig, AuthorizationConfig};
pub use election::ElectionConfig;
pub use http3::Http3Config;
pub use kubernetes::KubernetesConfig;
pub use limits::LimitsConfig;
pub use store::StoreConfig;
pub use tracing::TracingConfig;

use super::audit::AuditConfig;
use crate::pki::{Store, StoreError};
use crate::threads::Threads;
use crate::wire::limits::{MAX_LIST_ENTRIES, MAX_REPORT_INTERVAL, MIN_REPORT_INTERVAL};

/// The settings of a stub. `qtunnel stub init` writes a file with all of them and what they mean.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StubConfig {
    /// The stub's name in logs and at its agents. Default `stub`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where to listen: TCP for users, UDP for agents, and TCP for agents whose network blocks UDP.
    pub listen: SocketAddr,
    /// What users and agents dial (`host:port`), for kubeconfig files and join instructions.
    pub public_address: String,
    /// Other stubs with the same keys (`host:port`, as agents dial them), at most 64. Agents that connect here connect to them
    /// too. This stub may be among them, so that all can have the same list. Default: none.
    #[serde(default)]
    pub peers: Vec<String>,
    /// How many threads do the work. The program `qtunnel` follows it; others bring their own. Default: one less than there are
    /// cores, and at least one.
    #[serde(default = "Threads::beside_the_kernel")]
    pub threads: Threads,
    /// With it, each cluster also has the host name `<id>.<base_domain>`.
    #[serde(default)]
    pub base_domain: Option<String>,
    /// Where this stub keeps what is its own, agents' TLS sessions among it, and by default also what it shares; relative to the
    /// settings file. Default: beside it.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Where keys, join tokens, known clusters and the list of revoked agents are kept, which stubs may share. Default: in
    /// `state_dir`.
    #[serde(default)]
    pub store: StoreConfig,
    /// Which of several stubs leads. Default: no election; every stub is ready.
    #[serde(default)]
    pub election: Option<ElectionConfig>,
    /// The cluster that keeps Secrets and Leases, where the settings want some.
    #[serde(default)]
    pub kubernetes: KubernetesConfig,
    /// Who users are.
    #[serde(default)]
    pub authentication: AuthenticationConfig,
    /// What users may do.
    pub authorization: AuthorizationConfig,
    /// Where it is told who did what. Default: nowhere but in the access log.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Where programs may ask what goes on. Default: only the admin socket.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Where spans of requests go. Default: nowhere.
    #[serde(default)]
    pub tracing: TracingConfig,
    /// How agents are treated.
    #[serde(default)]
    pub agents: AgentsConfig,
    /// HTTP/3 for clients.
    #[serde(default)]
    pub http3: Http3Config,
    /// Bounds for clients.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// Why a settings file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {path}: {source}; `qtunnel stub init --dir DIR` makes one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A value is not possible.
    #[error("the settings file {path} is not valid: {why}")]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Which value, and what is possible.
        why: String,
    },
    /// The file is not what it should be.
    #[error("the settings file {path} is not valid: {source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: Box<toml::de::Error>,
    },
}

impl StubConfig {
    /// Reads a settings file; relative paths in it become relative to its directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::read(path)?, path)
    }

    /// The text of a settings file.
    pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })
    }

    /// Understands the text of the settings file at `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Invalid { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|why| ConfigError::OutOfRange { path: path.to_owned(), why })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        config.state_dir = directory.join(&config.state_dir);
        if let StoreConfig::Directory { path: Some(path) } = &mut config.store {
            *path = directory.join(&path);
        }
        config.kubernetes.kubeconfig = config.kubernetes.kubeconfig.map(|file| directory.join(file));
        config.agents.qlog = config.agents.qlog.map(|path| directory.join(path));
        config.authorization.resolve(directory);
        config.audit.resolve(directory);
        config.authentication.resolve(directory);
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        self.authentication.check()?;
        self.authorization.check()?;
        let positive = [
            ("agents.certificate_ttl", self.agents.certificate_ttl),
            ("agents.idle_timeout", self.agents.idle_timeout),
            ("limits.authentication_timeout", self.limits.authentication_timeout),
            ("limits.handshake_timeout", self.limits.handshake_timeout),
            ("limits.dispatch_timeout", self.limits.dispatch_timeout),
            ("limits.response_timeout", self.limits.response_timeout),
            ("limits.silence_timeout", self.limits.silence_timeout),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| !value.is_positive()) {
            return Err(format!("{key} has to be longer than nothing"));
        }
        if let Some(key) = self.limits.impossible() {
            return Err(format!("limits.{key} has to be at least 1"));
        }
        if let Some(problem) = self.election.as_ref().and_then(ElectionConfig::problem) {
            return Err(problem.to_owned());
        }
        if self.peers.len() > MAX_LIST_ENTRIES {
            return Err(format!("peers has {} entries, and can have {MAX_LIST_ENTRIES}", self.peers.len()));
        }
        if let Some(peer) = self.peers.iter().find(|peer| !is_host_and_port(peer)) {
            return Err(format!("peers has {peer:?}, and has to have host:port"));
        }
        let interval = self.agents.report_interval;
        let allowed = MIN_REPORT_INTERVAL..=MAX_REPORT_INTERVAL;
        match interval.is_positive() && allowed.contains(&interval.unsigned_abs()) {
            true => Ok(()),
            false => Err(format!("agents.report_interval is {interval:#}, and has to be 10ms to 1h")),
        }
    }

    /// Opens what stubs share; see [`StoreConfig::open`].
    pub fn open_store(&self) -> Result<Arc<dyn Store>, StoreError> {
        self.store.open(&self.state_dir, &self.kubernetes.access())
    }

    /// Where the running stub answers `qtunnel status`.
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir.join("admin.sock")
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn default_name() -> String {
    "stub".to_owned()
}
