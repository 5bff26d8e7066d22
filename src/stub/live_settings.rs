//! The settings that may change while the stub runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::config::{ConfigError, LimitsConfig, StubConfig, report_interval_beside};
use super::dispatch::Patience;
use super::limits::Limits;
use super::reload::Source;

/// What is in force of them now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSettings {
    /// `[limits]`, but for [`STAYING_LIMITS`].
    pub limits: LimitsConfig,
    /// `peers`. Agents learn of others when they connect again.
    pub peers: Vec<String>,
    /// `agents.certificate_ttl`.
    pub certificate_ttl: Duration,
    /// `agents.report_interval`. Agents that are connected hear of it with their next report.
    report_interval: Duration,
}

/// The limits for which memory is set aside at the start.
const STAYING_LIMITS: [&str; 2] = ["limits.client_connections", "limits.quic_handshakes"];

impl LiveSettings {
    /// Those of `config`.
    pub fn of(config: &StubConfig) -> Self {
        Self {
            limits: config.limits.clone(),
            peers: config.peers.clone(),
            certificate_ttl: config.agents.certificate_ttl.unsigned_abs(),
            report_interval: config.agents.report_interval.unsigned_abs(),
        }
    }

    /// How patient dispatching is.
    pub fn patience(&self) -> Patience {
        let limits = &self.limits;
        Patience { dispatch: limits.dispatch(), response: limits.response(), silence: limits.silence() }
    }

    /// How often an agent has to report while `others` are connected.
    pub fn report_interval_beside(&self, others: usize) -> Duration {
        report_interval_beside(self.report_interval, others)
    }

    /// Whether a change of this key comes into force while the stub runs.
    fn has(key: &str) -> bool {
        let is_live = matches!(key, "peers" | "agents.certificate_ttl" | "agents.report_interval");
        is_live || key.starts_with("limits.") && !STAYING_LIMITS.contains(&key)
    }
}

/// The settings file of a running stub. What it changes of [`LiveSettings`] comes into force; what else it changes is named in
/// the log, because it waits for the next start.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    live: Arc<ArcSwap<LiveSettings>>,
    limits: Arc<Limits>,
    at_start: OnceLock<Keys>,
}

/// The value of each key that a file has, as `section.key`.
type Keys = BTreeMap<String, toml::Value>;

impl SettingsFile {
    /// The file at `path`, which changes `live` and `limits`.
    pub fn new(path: &Path, live: Arc<ArcSwap<LiveSettings>>, limits: Arc<Limits>) -> Self {
        Self { path: path.to_owned(), live, limits, at_start: OnceLock::new() }
    }
}

impl Source for SettingsFile {
    type Content = String;
    type Value = ();
    type Error = ConfigError;

    fn name(&self) -> &'static str {
        "configuration"
    }

    fn read(&self) -> Result<String, ConfigError> {
        StubConfig::read(&self.path)
    }

    fn build(&self, text: &String) -> Result<(), ConfigError> {
        let live = LiveSettings::of(&StubConfig::parse(text, &self.path)?);
        // What is a configuration is a table.
        let keys = keys_of(text.parse().unwrap_or_default());
        let waiting = changed(self.at_start.get_or_init(|| keys.clone()), &keys);
        if !waiting.is_empty() {
            tracing::warn!(
                "the stub has to be started again for what has changed of these settings: {}",
                waiting.join(", ")
            );
        }
        self.limits.change(&live.limits);
        self.live.store(Arc::new(live));
        Ok(())
    }
}

/// The keys whose change does not come into force.
fn changed(old: &Keys, new: &Keys) -> Vec<String> {
    let differ = |key: &&String| old.get(*key) != new.get(*key) && !LiveSettings::has(key);
    let mut keys: Vec<String> = old.keys().chain(new.keys()).filter(differ).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

fn keys_of(table: toml::Table) -> Keys {
    let mut keys = Keys::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) => {
                keys.extend(keys_of(section).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => drop(keys.insert(name, value)),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::metrics::Metrics;
    use crate::stub::reload::{Followed, Reload};

    const SETTINGS: &str = "listen = '127.0.0.1:1'
public_address = 'a:1'
peers = ['a:1']
[authorization]
mode = 'allow-all'
[limits]
requests_per_user = 1
";

    #[test]
    fn limits_and_peers_change_while_a_stub_runs_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stub.toml");
        std::fs::write(&path, SETTINGS).unwrap();
        let config = StubConfig::load(&path).unwrap();
        let live = Arc::new(ArcSwap::from_pointee(LiveSettings::of(&config)));
        let limits = Arc::new(Limits::new(&config.limits, Arc::new(Metrics::default())));
        let file = Followed::load(SettingsFile::new(&path, live.clone(), limits.clone())).unwrap();
        let cluster = "eu".parse().unwrap();
        let _first = limits.admit_request("alice", &cluster, false).unwrap();
        assert!(limits.admit_request("alice", &cluster, false).is_err());

        let change = |from: &str, to: &str| {
            std::fs::write(&path, SETTINGS.replace(from, to)).unwrap();
            file.check(true);
        };
        change("requests_per_user = 1", "requests_per_user = 0");
        assert_eq!(file.status().failures, 1);
        assert!(limits.admit_request("alice", &cluster, false).is_err());
        change("requests_per_user = 1", "requests_per_user = 2\nresponse_timeout = '1s'");
        let _second = limits.admit_request("alice", &cluster, false).unwrap();
        assert!(limits.admit_request("alice", &cluster, false).is_err());
        assert_eq!(live.load().patience().response, Duration::from_secs(1));
        change("peers = ['a:1']", "peers = ['a:1', 'b:1']");
        assert_eq!(live.load().peers, ["a:1", "b:1"]);
        assert!(limits.admit_request("alice", &cluster, false).is_err(), "one is allowed, and two are there");
    }

    #[test]
    fn what_waits_for_the_next_start_is_named() {
        let keys = |text: &str| keys_of(text.parse().unwrap());
        let new = SETTINGS
            .replace("127.0.0.1:1", "127.0.0.1:2")
            .replace("'a:1']", "'b:1']")
            .replace("requests_per_user = 1", "requests_per_user = 3\nquic_handshakes = 5\n[audit]\nsink = 'stdout'");
        assert_eq!(changed(&keys(SETTINGS), &keys(&new)), ["audit.sink", "limits.quic_handshakes", "listen"]);
        assert_eq!(changed(&keys(SETTINGS), &keys(SETTINGS)), [""; 0]);
    }
}
