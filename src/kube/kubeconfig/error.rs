//! What can be wrong with a kubeconfig.

use std::path::PathBuf;

/// Why there is no way to the API server. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file that cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file that is not a kubeconfig.
    #[error("{path:?} is not a kubeconfig: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says, without the text around it, which may be a secret.
        why: String,
    },
    /// Neither the file nor the caller chooses a context.
    #[error("the kubeconfig has no current-context; name one of its contexts")]
    NoContext,
    /// A context, cluster or user that is referred to but not there.
    #[error("the kubeconfig has no {what} {name:?}")]
    Missing {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Two entries of one name.
    #[error("the kubeconfig has more than one {what} {name:?}; rename all but one")]
    Ambiguous {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A value that makes no sense.
    #[error("the kubeconfig's {what} {name:?}: {why}")]
    Invalid {
        /// `cluster` or `user`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// Outside a cluster.
    #[error(
        "this process does not run in a Kubernetes pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); give it a kubeconfig"
    )]
    NotInCluster,
    /// The environment names an address that is none.
    #[error("KUBERNETES_SERVICE_HOST={host:?} and KUBERNETES_SERVICE_PORT={port:?} are not an address")]
    InvalidServiceAddress {
        /// The host.
        host: String,
        /// The port.
        port: String,
    },
}
