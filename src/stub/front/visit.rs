//! The stay of a client: from its first request on one connection to the last.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use super::ClientConnection;
use crate::stub::body::AnswerBody;
use crate::stub::limits::Stranger;
use crate::stub::request;
use crate::stub::shared::Shared;

/// A client's connection, over which requests come. Clones are the same.
#[derive(Debug, Clone)]
pub struct Visit {
    shared: Arc<Shared>,
    connection: Arc<ClientConnection>,
}

/// Ends when the client has to go, and says why.
pub type Leaving = Pin<Box<dyn Future<Output = Leave> + Send>>;

/// Why a client has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Nobody has authenticated in time: the connection is to be closed at once.
    Stranger,
    /// The stub takes no more requests: the connection is to be closed when those that are open have ended.
    Closing,
}

impl Visit {
    pub(super) fn begin(shared: Arc<Shared>, connection: Arc<ClientConnection>, stranger: Stranger) -> (Self, Leaving) {
        let visit = Self { shared: shared.clone(), connection: connection.clone() };
        let leaving = async move {
            tokio::select! {
                () = shared.limits.wait_for_stranger(&connection, stranger) => Leave::Stranger,
                () = connection.closing(&shared.drain) => Leave::Closing,
            }
        };
        (visit, Box::pin(leaving))
    }

    /// What is known of the connection.
    pub(super) fn connection(&self) -> &Arc<ClientConnection> {
        &self.connection
    }

    /// Answers one request: authenticates whoever makes it, authorizes, and passes it on to the cluster that it names.
    /// Whatever is refused is an answer as well, a Kubernetes `Status`. Dropped before it is complete it cancels the
    /// request; so does dropping the body of the answer before its end.
    ///
    /// Upgrades (exec, attach, port-forward) work at the stub's own TCP port only: elsewhere the upgraded connection breaks off
    /// at once.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        // In a box: fronts hand on what serves a request several times, and it is large.
        Box::pin(request::serve(self.shared.clone(), self.connection.clone(), request)).await
    }
}
