//! Bodies of answers to clients.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::task::AbortHandle;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::open_requests::{OpenRequest, Revoked};
use super::record::RequestRecord;
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
    body: ReceivedBody,
    _upload: Option<AbortOnDrop>,
    stream: OpenStream,
    open: OpenRequest,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    record: RequestRecord,
}

/// Why the body of an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BrokenAnswer {
    /// What comes through the tunnel does.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The user has lost the right to it.
    #[error(transparent)]
    Revoked(#[from] Revoked),
}

impl TunnelledBody {
    /// The rest of an answer. `upload` is the task that sends the client's body, while there is one; `record` is written
    /// at the end.
    pub fn new(
        body: ReceivedBody,
        upload: Option<AbortOnDrop>,
        stream: OpenStream,
        open: OpenRequest,
        record: RequestRecord,
    ) -> Self {
        let revoked = Box::pin(open.wait_until_revoked());
        Self { body, _upload: upload, stream, open, revoked, record }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        // Also where a long answer always has another piece ready.
        if let Some(revoked) = self.open.revoked() {
            return self.revoked(revoked.clone());
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.stream.meter().count_sent(frame.data_ref().map_or(0, Bytes::len));
                if self.body.is_end_stream() {
                    self.record.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.broken_off(&error);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.record.complete();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.revoked.as_mut().poll(context));
                match self.open.revoked().cloned() {
                    Some(revoked) => self.revoked(revoked),
                    None => Poll::Pending,
                }
            }
        }
    }

    fn revoked(&mut self, revoked: Revoked) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        self.record.revoked();
        Poll::Ready(Some(Err(revoked.into())))
    }
}

/// The body of a request that is no longer than it may be.
#[derive(Debug)]
pub struct BoundedBody<B> {
    body: B,
    left: Option<u64>,
}

/// Why the body of a request breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BrokenBody<E> {
    /// It did by itself.
    #[error("{0}")]
    Body(E),
    /// A body that had not said how long it is.
    #[error("it is longer than limits.request_body_length")]
    TooLong,
}

impl<B> BoundedBody<B> {
    /// Lets no more than `bound` bytes of `body` pass.
    pub fn new(body: B, bound: Option<u64>) -> Self {
        Self { body, left: bound }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for BoundedBody<B> {
    type Data = Bytes;
    type Error = BrokenBody<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
        let frame = frame.map_err(BrokenBody::Body)?;
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        if let Some(left) = &mut self.left {
            match left.checked_sub(length) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(Some(Err(BrokenBody::TooLong))),
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
    type Error = BrokenAnswer;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Tunnelled(body) => body.poll(context),
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
