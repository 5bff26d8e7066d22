//! A running stub, for programs that build on the tunnel.

use std::sync::Arc;

use super::dial::{DialError, dial};
use super::record::new_audit_id;
use super::shared::Shared;
use crate::carrier::StreamSocket;
use crate::wire::{ClusterId, Dial};

/// What a program can do with its running stub; made by [`super::Stub::handle`]. Clones are the same stub.
#[derive(Debug, Clone)]
pub struct StubHandle(Arc<Shared>);

impl StubHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Connects to `address` (`HOST:PORT`) in the network of one of the cluster's agents, whose `--allow-dial` has to allow
    /// it. `network` is `"tcp"`. Nobody is asked at the stub: whether to connect is this program's decision.
    ///
    /// The socket's `shutdown` ends its own direction alone. What breaks on the way reads as an error, never as a clean end.
    ///
    /// # Errors
    ///
    /// See [`DialError`]. It takes at most the dispatch timeout of the settings and 15 s.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn example(stub: qtunnel::stub::StubHandle) -> anyhow::Result<()> {
    /// let database = stub.dial(&"prod-eu".parse()?, "tcp", "db.internal:5432").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dial(&self, cluster: &ClusterId, network: &str, address: &str) -> Result<StreamSocket, DialError> {
        let request = Dial { network: network.parse()?, address: address.parse()?, audit_id: new_audit_id() };
        tracing::info!(%cluster, audit_id = request.audit_id, address = %request.address, "connecting through an agent");
        dial(&self.0.registry, cluster, request, self.0.patience.dispatch).await
    }
}
