//! A running stub, for programs that build on the tunnel.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use super::body::AnswerBody;
use super::caller::Errand;
use super::dial::{DialError, dial};
use super::record::new_audit_id;
use super::request::serve_program;
use super::shared::Shared;
use crate::carrier::StreamSocket;
use crate::kube::Status;
use crate::wire::{ClusterId, Dial, Identity};

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
        dial(&self.0.registry, cluster, request, self.0.live().patience().dispatch).await
    }

    /// Makes one request at `cluster`'s API server in the name of `identity`, of whom this program is sure. The path is the
    /// cluster's own (`/api/v1/pods`); host and credentials in the request are not looked at.
    ///
    /// It takes the way of a client's request: the authorizer decides, limits hold, audit log, metrics and dashboard tell of
    /// it, with `::1` as its source; the agent's policy and the cluster's RBAC have their say. It ends when the authorizer takes
    /// the right away or the stub stops. Dropping the body of the answer before its end cancels it. Agents in pass-through mode
    /// answer 401, because there is no token of the user's.
    ///
    /// # Errors
    ///
    /// What a client would have been answered by the stub itself, as a Kubernetes `Status`: 403, 404 for an unknown cluster, 429,
    /// 503 without an agent, and others. Upgrades (exec, attach, port-forward) are refused with a 400. What the API server
    /// answers is no error, whatever its code. It takes at most the dispatch and response timeouts of the settings until the
    /// answer begins.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use bytes::Bytes;
    /// # use http_body_util::Empty;
    /// # async fn example(stub: qtunnel::stub::StubHandle) -> anyhow::Result<()> {
    /// let alice = qtunnel::wire::Identity::named("alice");
    /// let request = http::Request::get("/api/v1/namespaces/demo/pods").body(Empty::<Bytes>::new())?;
    /// let pods = stub.request(&"prod-eu".parse()?, alice, request).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn request<B>(
        &self,
        cluster: &ClusterId,
        identity: Identity,
        request: Request<B>,
    ) -> Result<Response<AnswerBody>, Status>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        serve_program(&self.0, Errand { identity, cluster }, request).await
    }
}
