//! A webhook, as a kubeconfig file describes it: its cluster is the webhook, its user the stub
//! (`apiserver/pkg/util/webhook`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::outbound::{Outbound, OutboundConfigError};
use super::reload::Source;
use crate::kube::kubeconfig::{Kubeconfig, KubeconfigError, Upstream};

/// A webhook that may be asked.
pub type Webhook = Arc<Outbound>;

/// The file of a webhook, with the certificates and keys that it names.
#[derive(Debug)]
pub struct WebhookFile {
    name: &'static str,
    path: PathBuf,
    timeout: Duration,
}

/// Why the file of a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the {name} in {}: {why}", path.display())]
pub struct WebhookFileError {
    name: &'static str,
    path: PathBuf,
    why: Box<Reason>,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Outbound(#[from] OutboundConfigError),
}

impl WebhookFile {
    /// The file at `path`. `name` stands in the log; a question may take as long as `timeout`.
    pub fn new(name: &'static str, path: &Path, timeout: Duration) -> Self {
        Self { name, path: path.to_owned(), timeout }
    }

    fn failed(&self, why: impl Into<Reason>) -> WebhookFileError {
        WebhookFileError { name: self.name, path: self.path.clone(), why: Box::new(why.into()) }
    }
}

impl Source for WebhookFile {
    type Content = Upstream;
    type Value = Webhook;
    type Error = WebhookFileError;

    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self) -> Result<Upstream, WebhookFileError> {
        let kubeconfig = Kubeconfig::load(&self.path).map_err(|error| self.failed(error))?;
        kubeconfig.upstream(None).map_err(|error| self.failed(error))
    }

    fn build(&self, upstream: &Upstream) -> Result<Webhook, WebhookFileError> {
        Outbound::new(upstream, self.timeout).map(Arc::new).map_err(|error| self.failed(error))
    }
}
