//! The stub's settings file, `stub.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use super::audit::{AuditConfig, SinkConfig};
use crate::carrier::{CongestionControl, QuicSettings, TcpSettings};
use crate::wire::limits::{MAX_REPORT_INTERVAL, MIN_REPORT_INTERVAL};

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
    /// With it, each cluster also has the host name `<id>.<base_domain>`.
    #[serde(default)]
    pub base_domain: Option<String>,
    /// Where keys, join tokens and known clusters are kept; relative to the settings file. Default: beside it.
    #[serde(default)]
    pub state_dir: PathBuf,
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
    /// How agents are treated.
    #[serde(default)]
    pub agents: AgentsConfig,
    /// Bounds for clients.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// The `[authentication]` section. Client certificates of the stub's user CA are always accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationConfig {
    /// Static bearer tokens, in the API server's format: a line `token,user,uid,"group1,group2"` for each. Relative to
    /// the settings file. Default: none.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// The `[authorization]` section: its `mode`, and what belongs to that mode. It has no default: leaving access open is a
/// decision that somebody has to write down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuthorizationConfig {
    // Braces, because serde lets unknown keys pass beside a unit variant.
    /// See [`super::authorize::AllowAll`].
    AllowAll {},
    /// See [`super::authorize::DenyAll`].
    DenyAll {},
    /// See [`super::authorize::PolicyFile`].
    Policy {
        /// The policy, YAML; relative to the settings file.
        policy_file: PathBuf,
    },
}

/// The `[admin]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where to answer `/metrics`, `/healthz`, `/readyz` and `/api/v1/status` over plain HTTP, to whoever asks. Default:
    /// nowhere.
    pub listen: Option<SocketAddr>,
}

/// The `[agents]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentsConfig {
    /// How long an agent's certificate is valid; agents renew theirs when two thirds are over. Default 720 h.
    pub certificate_ttl: SignedDuration,
    /// How often an agent reports at least. One that has not reported for three times as long gets no new requests while
    /// another agent serves its cluster. Default 5 s.
    pub report_interval: SignedDuration,
    /// How long a connection and its streams live without a packet from the agent. The agent's own setting counts if it is
    /// shorter. An agent whose connection does not answer gets no new requests after seconds. Default 5 min.
    pub idle_timeout: SignedDuration,
    /// Bytes that one stream may have in flight towards the stub. Default 16 MiB: 1 Gbit/s at 100 ms.
    pub stream_window: u32,
    /// How much the stub has in flight towards agents: `cubic` or `bbr`. Default `cubic`.
    pub congestion: CongestionControl,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        let quic = QuicSettings::default();
        Self {
            certificate_ttl: SignedDuration::from_hours(720),
            report_interval: SignedDuration::from_secs(5),
            idle_timeout: SignedDuration::from_mins(5),
            stream_window: quic.stream_window,
            congestion: quic.congestion,
        }
    }
}

/// Longer than an agent is silent on its own: a stub with thousands of idle agents answers, and asks only those that have
/// fallen silent.
const KEEP_ALIVE: Duration = Duration::from_secs(6);

impl AgentsConfig {
    /// The QUIC settings of connections from agents.
    pub fn quic(&self) -> QuicSettings {
        QuicSettings {
            idle_timeout: self.idle_timeout.unsigned_abs(),
            keep_alive: KEEP_ALIVE,
            stream_window: self.stream_window,
            congestion: self.congestion,
            ..QuicSettings::default()
        }
    }

    /// The same for connections over TCP.
    pub fn tcp(&self) -> TcpSettings {
        TcpSettings::from(&self.quic())
    }
}

/// The `[limits]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections of clients at once, and of agents over TCP. Default 20,000.
    pub client_connections: u32,
    /// Requests at once on one HTTP/2 connection, watches among them. Default 10,000.
    pub requests_per_connection: u32,
    /// How long a TLS or QUIC handshake may take, and a client's request head. Default 10 s.
    pub handshake_timeout: SignedDuration,
    /// How long a request waits for an agent to take its stream, and for one whose connection answers. Default 10 s.
    pub dispatch_timeout: SignedDuration,
    /// How long an answer to a request that is not long-running (a watch, a log, an exec) may take to begin. Default 10 min.
    pub response_timeout: SignedDuration,
    /// While an agent's connection does not answer, how long a request is waited for whose answer has not begun. Answers
    /// that have begun wait for as long as the connection lives. Default 30 s.
    pub silence_timeout: SignedDuration,
    /// At a stop, how long requests may take to end. Default 10 s.
    pub shutdown_timeout: SignedDuration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            client_connections: 20_000,
            requests_per_connection: 10_000,
            handshake_timeout: SignedDuration::from_secs(10),
            dispatch_timeout: SignedDuration::from_secs(10),
            response_timeout: SignedDuration::from_mins(10),
            silence_timeout: SignedDuration::from_secs(30),
            shutdown_timeout: SignedDuration::from_secs(10),
        }
    }
}

impl LimitsConfig {
    /// See [`LimitsConfig::handshake_timeout`].
    pub fn handshake(&self) -> Duration {
        self.handshake_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::dispatch_timeout`].
    pub fn dispatch(&self) -> Duration {
        self.dispatch_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::response_timeout`].
    pub fn response(&self) -> Duration {
        self.response_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::silence_timeout`].
    pub fn silence(&self) -> Duration {
        self.silence_timeout.unsigned_abs()
    }

    /// See [`LimitsConfig::shutdown_timeout`].
    pub fn shutdown(&self) -> Duration {
        self.shutdown_timeout.unsigned_abs()
    }
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
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Invalid { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|why| ConfigError::OutOfRange { path: path.to_owned(), why })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        config.state_dir = directory.join(&config.state_dir);
        if let AuthorizationConfig::Policy { policy_file } = &mut config.authorization {
            *policy_file = directory.join(&policy_file);
        }
        if let AuditConfig::Events { sink: SinkConfig::File { path, .. }, .. } = &mut config.audit {
            *path = directory.join(&path);
        }
        config.authentication.token_file = config.authentication.token_file.map(|file| directory.join(file));
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let positive = [
            ("agents.certificate_ttl", self.agents.certificate_ttl),
            ("agents.idle_timeout", self.agents.idle_timeout),
            ("limits.handshake_timeout", self.limits.handshake_timeout),
            ("limits.dispatch_timeout", self.limits.dispatch_timeout),
            ("limits.response_timeout", self.limits.response_timeout),
            ("limits.silence_timeout", self.limits.silence_timeout),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| !value.is_positive()) {
            return Err(format!("{key} has to be longer than nothing"));
        }
        let interval = self.agents.report_interval;
        let allowed = MIN_REPORT_INTERVAL..=MAX_REPORT_INTERVAL;
        match interval.is_positive() && allowed.contains(&interval.unsigned_abs()) {
            true => Ok(()),
            false => Err(format!("agents.report_interval is {interval:#}, and has to be 10ms to 1h")),
        }
    }

    /// Where the running stub answers `qtunnel status`.
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir.join("admin.sock")
    }
}

fn default_name() -> String {
    "stub".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(text: &str) -> Result<AuthorizationConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_mode_of_authorization_has_the_keys_that_belong_to_it() {
        assert_eq!(authorization("mode = 'allow-all'"), Ok(AuthorizationConfig::AllowAll {}));
        let policy = AuthorizationConfig::Policy { policy_file: "p.yaml".into() };
        assert_eq!(authorization("mode = 'policy'\npolicy_file = 'p.yaml'"), Ok(policy));
        for wrong in [
            "",
            "mode = 'open'",
            "mode = 'policy'",
            "mode = 'allow-all'\npolicy_file = 'p.yaml'",
            "mode = 'deny-all'\nx = 1",
            "mode = 'policy'\npolicy_file = 'p.yaml'\nx = 1",
        ] {
            assert!(authorization(wrong).is_err(), "{wrong}");
        }
    }
}
