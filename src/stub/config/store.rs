//! Where stubs keep what they share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::kube::ClusterAccess;
use crate::pki::store::{DirectoryStore, KubernetesStore, SecretNames, Store, StoreError};

/// The `[store]` section: its `kind`, and what belongs to that kind. Stubs with the same store are one to users and agents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StoreConfig {
    /// See [`DirectoryStore`].
    Directory {
        /// The directory, relative to the settings file. Default: `state_dir`.
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// See [`KubernetesStore`].
    Kubernetes {
        /// The namespace of the Secrets. Default: that of the pod, or of the kubeconfig's context.
        #[serde(default)]
        namespace: Option<String>,
        /// What the names of the Secrets begin with. Default `qtunnel-stub`.
        #[serde(default = "default_prefix")]
        name_prefix: String,
    },
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self::Directory { path: None }
    }
}

impl StoreConfig {
    /// Opens the store. Blocks for as long as its API server takes to answer, at most seconds.
    ///
    /// # Errors
    ///
    /// The API server cannot be reached, or refuses.
    pub fn open(&self, state_dir: &Path, access: &ClusterAccess) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Directory { path } => Arc::new(DirectoryStore::new(path.as_deref().unwrap_or(state_dir))),
            Self::Kubernetes { namespace, name_prefix } => {
                let names = SecretNames { namespace: namespace.clone(), prefix: name_prefix.clone() };
                Arc::new(KubernetesStore::connect(access.clone(), names)?)
            }
        })
    }
}

fn default_prefix() -> String {
    "qtunnel-stub".to_owned()
}
