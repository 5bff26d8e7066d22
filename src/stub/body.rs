//! Bodies of answers to clients.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::task::AbortHandle;

use super::access_log::AccessRecord;
use super::registry::OpenStream;
use crate::carrier::{ReceiveError, ReceivedBody};

/// The body of an answer: the stub's own words, or what comes through the tunnel.
#[derive(Debug)]
pub enum AnswerBody {
    /// The stub's own.
    Own(Full<Bytes>),
    /// From the cluster.
    Tunnelled(Box<TunnelledBody>),
}

/// A body that comes through the tunnel, and everything that ends with it: the client's upload, the count of open
/// streams, the record of the request. Dropping it, which hyper does when the client goes away, cancels the request.
#[derive(Debug)]
pub struct TunnelledBody {
    /// The body.
    pub body: ReceivedBody,
    /// The task that sends the client's body, while there is one; held so that it ends with the answer.
    pub _upload: Option<AbortOnDrop>,
    /// The stream as it is counted.
    pub stream: OpenStream,
    /// What is logged at the end.
    pub record: AccessRecord,
}

/// Ends a task with its owner.
#[derive(Debug)]
pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Own(Full::new(bytes))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Tunnelled(body) => Poll::Ready(match ready!(Pin::new(&mut body.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                    body.stream.add_to_client(length);
                    body.record.add_bytes(length);
                    if body.body.is_end_stream() {
                        body.record.complete();
                    }
                    Some(Ok(frame))
                }
                Some(Err(error)) => {
                    body.record.broken_off(&error);
                    Some(Err(error))
                }
                None => {
                    body.record.complete();
                    None
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Tunnelled(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Tunnelled(body) => body.body.size_hint(),
        }
    }
}
