//! The cluster that keeps a stub's own Secrets and Leases.

use std::path::PathBuf;

use serde::Deserialize;

use crate::kube::ClusterAccess;

/// The `[kubernetes]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// How to reach its API server, relative to the settings file. Default: as the ServiceAccount of the pod that the stub
    /// runs in.
    pub kubeconfig: Option<PathBuf>,
}

impl KubernetesConfig {
    /// The same as the parts that use it want it.
    pub fn access(&self) -> ClusterAccess {
        ClusterAccess { kubeconfig: self.kubeconfig.clone() }
    }
}
