//! Where programs and people may ask what goes on.

use std::net::SocketAddr;

use serde::Deserialize;

/// The `[admin]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where to answer over plain HTTP: the dashboard, `/metrics`, `/healthz`, `/readyz` and `/api/v1/`. Nobody is
    /// authenticated there. Default: nowhere.
    pub listen: Option<SocketAddr>,
    /// Names besides `localhost` and IP addresses by which `listen` may be asked. Any other is refused, so that no web page
    /// can make a browser ask in its name (DNS rebinding). Default: none.
    pub hosts: Vec<String>,
    /// Whether the dashboard and `/api/v1/`, which tell of users and their requests, are for callers from other hosts too.
    /// Metrics and health always are. Default: no.
    pub remote_dashboard: bool,
}
