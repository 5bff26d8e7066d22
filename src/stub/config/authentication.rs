//! Who users are.

use std::path::PathBuf;

use serde::Deserialize;

/// The `[authentication]` section. Client certificates of the stub's user CA are always accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationConfig {
    /// Static bearer tokens, in the API server's format: a line `token,user,uid,"group1,group2"` for each. Relative to
    /// the settings file. Default: none.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}
