//! What users may do.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use serde::Deserialize;

use crate::stub::authorize::{AccessWebhookSettings, FailurePolicy};

/// The `[authorization]` section: its `mode`, and what belongs to that mode. It has no default: leaving access open is a
/// decision that somebody has to write down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuthorizationConfig {
    // Braces, because serde lets unknown keys pass beside a unit variant.
    /// See [`crate::stub::authorize::AllowAll`].
    AllowAll {},
    /// See [`crate::stub::authorize::DenyAll`].
    DenyAll {},
    /// See [`crate::stub::authorize::PolicyFile`].
    Policy {
        /// The policy, YAML; relative to the settings file.
        policy_file: PathBuf,
    },
    /// See [`crate::stub::authorize::AccessWebhook`].
    Webhook(AccessWebhookConfig),
}

/// What belongs to `mode = "webhook"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessWebhookConfig {
    /// A kubeconfig file: its cluster is the webhook, its user the stub. Relative to the settings file.
    pub kubeconfig: PathBuf,
    /// How long a question may take. Default 3 s.
    #[serde(default = "three_seconds")]
    pub timeout: SignedDuration,
    /// How long it is not asked again about what it has allowed; also of open requests. Default 10 s.
    #[serde(default = "ten_seconds")]
    pub authorized_ttl: SignedDuration,
    /// How long it is not asked again about what it has not allowed. Default 10 s.
    #[serde(default = "ten_seconds")]
    pub unauthorized_ttl: SignedDuration,
    /// What it counts as when it does not answer: `deny`, or `no-opinion`. Default `deny`.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// A policy that decides where the webhook has no opinion, YAML; relative to the settings file. Default: what it does not
    /// allow is refused.
    #[serde(default)]
    pub policy_file: Option<PathBuf>,
}

fn three_seconds() -> SignedDuration {
    SignedDuration::from_secs(3)
}

fn ten_seconds() -> SignedDuration {
    SignedDuration::from_secs(10)
}

impl AuthorizationConfig {
    /// Every relative path becomes relative to `directory`.
    pub(super) fn resolve(&mut self, directory: &Path) {
        let files: Vec<&mut PathBuf> = match self {
            Self::AllowAll {} | Self::DenyAll {} => Vec::new(),
            Self::Policy { policy_file } => vec![policy_file],
            Self::Webhook(webhook) => [&mut webhook.kubeconfig].into_iter().chain(&mut webhook.policy_file).collect(),
        };
        for path in files {
            *path = directory.join(&path);
        }
    }

    /// What cannot be meant.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Webhook(webhook) = self else { return Ok(()) };
        let ttls = [webhook.authorized_ttl, webhook.unauthorized_ttl];
        match webhook.timeout.is_positive() && !ttls.iter().any(SignedDuration::is_negative) {
            true => Ok(()),
            false => Err("authorization: timeout has to be longer than nothing, and no ttl negative".to_owned()),
        }
    }
}

impl AccessWebhookConfig {
    /// How the webhook is asked.
    pub fn settings(&self) -> AccessWebhookSettings {
        AccessWebhookSettings {
            kubeconfig: self.kubeconfig.clone(),
            timeout: self.timeout.unsigned_abs(),
            authorized_ttl: self.authorized_ttl.unsigned_abs(),
            unauthorized_ttl: self.unauthorized_ttl.unsigned_abs(),
            on_failure: self.failure_policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AuthorizationConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_mode_of_authorization_has_the_keys_that_belong_to_it() {
        assert_eq!(read("mode = 'allow-all'"), Ok(AuthorizationConfig::AllowAll {}));
        let policy = AuthorizationConfig::Policy { policy_file: "p.yaml".into() };
        assert_eq!(read("mode = 'policy'\npolicy_file = 'p.yaml'"), Ok(policy));
        let Ok(AuthorizationConfig::Webhook(webhook)) = read("mode = 'webhook'\nkubeconfig = 'w.yaml'") else {
            panic!()
        };
        assert_eq!((webhook.failure_policy, webhook.policy_file), (FailurePolicy::Deny, None));
        for wrong in [
            "",
            "mode = 'open'",
            "mode = 'policy'",
            "mode = 'allow-all'\npolicy_file = 'p.yaml'",
            "mode = 'deny-all'\nx = 1",
            "mode = 'webhook'",
            "mode = 'webhook'\nkubeconfig = 'w.yaml'\nfailure_policy = 'allow'",
            "mode = 'webhook'\nkubeconfig = 'w.yaml'\nx = 1",
            "mode = 'policy'\npolicy_file = 'p.yaml'\nx = 1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
