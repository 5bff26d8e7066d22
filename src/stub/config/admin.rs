//! Where programs may ask what goes on.

use std::net::SocketAddr;

use serde::Deserialize;

/// The `[admin]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where to answer `/metrics`, `/healthz`, `/readyz` and `/api/v1/status` over plain HTTP, to whoever asks. Default:
    /// nowhere.
    pub listen: Option<SocketAddr>,
}
