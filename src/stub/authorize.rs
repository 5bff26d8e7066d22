//! What users may do, as far as the stub decides it. Each cluster's RBAC decides again, for the same user.

use serde::Deserialize;

use crate::kube::RequestInfo;
use crate::wire::{ClusterId, Identity};

/// How the stub decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorizationMode {
    /// Every authenticated user may make every request to every cluster; only the clusters' RBAC decides.
    AllowAll,
    /// Nobody may do anything.
    DenyAll,
}

impl AuthorizationMode {
    /// Whether `_user` may make the request; if not, why.
    pub fn authorize(self, _user: &Identity, cluster: &ClusterId, _request: &RequestInfo) -> Result<(), String> {
        match self {
            Self::AllowAll => Ok(()),
            Self::DenyAll => Err(format!("the access node allows no requests to cluster \"{cluster}\"")),
        }
    }
}
