//! The `[audit]` section of the settings file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use super::OnFailure;

/// Events that may wait to be written, unless the settings say otherwise.
pub const DEFAULT_QUEUE_LENGTH: usize = 16_384;

/// The audit log. Default: none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Document")]
pub enum AuditConfig {
    /// There is none.
    #[default]
    None,
    /// There is one.
    Events {
        /// Where it goes.
        sink: SinkConfig,
        /// What happens when it cannot be written. It has no default: somebody has to decide.
        on_failure: OnFailure,
        /// Events that may wait to be written. Default 16,384, about 20 MiB if all are there. With `block` it bounds the
        /// requests that are open at once.
        queue_length: usize,
    },
}

/// Where audit events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// Standard output.
    Stdout,
    /// A file; see [`super::FileSink`].
    File {
        /// The file; relative to the settings file.
        path: PathBuf,
        /// Bytes that it may have before it is rotated. Default 100 MiB.
        max_length: u64,
        /// Rotated files that are kept. Default 10.
        keep: u32,
    },
    /// A webhook; see [`super::WebhookSink`].
    Webhook {
        /// A kubeconfig file: its cluster is the webhook, its user the stub. Relative to the settings file.
        kubeconfig: PathBuf,
        /// How long a request may take. Default 10 s.
        timeout: Duration,
    },
}

impl AuditConfig {
    /// Every relative path becomes relative to `directory`.
    pub(in crate::stub) fn resolve(&mut self, directory: &Path) {
        let Self::Events { sink, .. } = self else { return };
        match sink {
            SinkConfig::Stdout => {}
            SinkConfig::File { path, .. } | SinkConfig::Webhook { kubeconfig: path, .. } => {
                *path = directory.join(&path);
            }
        }
    }
}

/// An `[audit]` section that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[audit]: {0}")]
pub struct InvalidAuditConfig(&'static str);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    sink: Sink,
    on_failure: Option<OnFailure>,
    queue_length: Option<usize>,
    path: Option<PathBuf>,
    max_length: Option<u64>,
    keep: Option<u32>,
    kubeconfig: Option<PathBuf>,
    timeout: Option<SignedDuration>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Sink {
    None,
    Stdout,
    File,
    Webhook,
}

impl TryFrom<Document> for AuditConfig {
    type Error = InvalidAuditConfig;

    fn try_from(document: Document) -> Result<Self, InvalidAuditConfig> {
        let Document { sink, on_failure, queue_length, path, max_length, keep, kubeconfig, timeout } = document;
        let for_file = path.is_some() || max_length.is_some() || keep.is_some();
        if sink != Sink::Webhook && (kubeconfig.is_some() || timeout.is_some()) {
            return Err(InvalidAuditConfig("kubeconfig and timeout belong to sink = \"webhook\""));
        }
        let sink = match sink {
            Sink::File => SinkConfig::File {
                path: path.ok_or(InvalidAuditConfig("sink = \"file\" needs a path"))?,
                max_length: max_length.unwrap_or(100 << 20),
                keep: keep.unwrap_or(10),
            },
            _ if for_file => {
                return Err(InvalidAuditConfig("path, max_length and keep belong to sink = \"file\""));
            }
            Sink::Stdout => SinkConfig::Stdout,
            Sink::Webhook => SinkConfig::Webhook {
                kubeconfig: kubeconfig.ok_or(InvalidAuditConfig("sink = \"webhook\" needs a kubeconfig"))?,
                timeout: match timeout.unwrap_or(SignedDuration::from_secs(10)) {
                    timeout if timeout.is_positive() => timeout.unsigned_abs(),
                    _ => return Err(InvalidAuditConfig("timeout has to be longer than nothing")),
                },
            },
            Sink::None if on_failure.is_some() || queue_length.is_some() => {
                return Err(InvalidAuditConfig("sink = \"none\" has no on_failure and no queue_length"));
            }
            Sink::None => return Ok(Self::None),
        };
        let on_failure = on_failure.ok_or(InvalidAuditConfig(
            "say what happens when the audit log cannot be written: on_failure = \"block\" or \"drop\"",
        ))?;
        let queue_length = queue_length.unwrap_or(DEFAULT_QUEUE_LENGTH);
        // A queue that is shorter could not hold the events of one request, or more than tokio's channel can count.
        if !(16..=1 << 24).contains(&queue_length) {
            return Err(InvalidAuditConfig("queue_length has to be 16 to 16777216"));
        }
        Ok(Self::Events { sink, on_failure, queue_length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AuditConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_sink_has_the_keys_that_belong_to_it() {
        assert_eq!(read("sink = 'none'"), Ok(AuditConfig::None));
        let stdout =
            AuditConfig::Events { sink: SinkConfig::Stdout, on_failure: OnFailure::Drop, queue_length: 16_384 };
        assert_eq!(read("sink = 'stdout'\non_failure = 'drop'"), Ok(stdout));
        let sink = SinkConfig::File { path: "a.log".into(), max_length: 100 << 20, keep: 3 };
        let file = AuditConfig::Events { sink, on_failure: OnFailure::Block, queue_length: 100 };
        assert_eq!(read("sink = 'file'\npath = 'a.log'\nkeep = 3\non_failure = 'block'\nqueue_length = 100"), Ok(file));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, part) in [
            ("", "sink"),
            ("sink = 'syslog'", "syslog"),
            ("sink = 'file'\non_failure = 'drop'", "path"),
            ("sink = 'file'\npath = 'a'", "on_failure"),
            ("sink = 'stdout'\npath = 'a'\non_failure = 'drop'", "path"),
            ("sink = 'none'\non_failure = 'drop'", "on_failure"),
            ("sink = 'webhook'\non_failure = 'drop'", "kubeconfig"),
            ("sink = 'webhook'\nkubeconfig = 'k'\npath = 'a'\non_failure = 'drop'", "path"),
            ("sink = 'webhook'\nkubeconfig = 'k'\ntimeout = '0s'\non_failure = 'drop'", "timeout"),
            ("sink = 'stdout'\nkubeconfig = 'k'\non_failure = 'drop'", "kubeconfig"),
            ("sink = 'stdout'\non_failure = 'drop'\nqueue_length = 1", "queue_length"),
            ("sink = 'stdout'\non_failure = 'ignore'", "ignore"),
            ("sink = 'stdout'\non_failure = 'drop'\ncolour = 1", "colour"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(part), "{text:?}: {why}");
        }
    }
}
