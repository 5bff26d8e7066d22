//! What users may do.

use std::path::PathBuf;

use serde::Deserialize;

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
        for wrong in [
            "",
            "mode = 'open'",
            "mode = 'policy'",
            "mode = 'allow-all'\npolicy_file = 'p.yaml'",
            "mode = 'deny-all'\nx = 1",
            "mode = 'policy'\npolicy_file = 'p.yaml'\nx = 1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
