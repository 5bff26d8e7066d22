//! Bodies of answers to clients.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::task::AbortHandle;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::event_stream::EventStream;
use super::open_requests::{Ending, OpenRequest};
use super::record::RequestRecord;
use super::registry::OpenStream;
use crate::carrier::{ReceiveError, ReceivedBody};

/// The body of an answer: the stub's own words, or what comes through the tunnel as it comes. Dropping it before its end
/// cancels the request; what breaks on the way is an error, never a clean end.
#[derive(Debug)]
pub struct AnswerBody(Words);

#[derive(Debug)]
enum Words {
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
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    watch: Option<ResumableWatch>,
    record: RequestRecord,
}

/// A watch that ends between two events when it is asked to, so that its client resumes it elsewhere.
pub struct ResumableWatch {
    events: EventStream,
    asked: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_asked: bool,
}

/// Why the body of an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BrokenAnswer {
    /// What comes through the tunnel does.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// It has to end.
    #[error(transparent)]
    Ending(#[from] Ending),
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
        let ending = Box::pin(open.wait_for_ending());
        Self { body, _upload: upload, stream, open, ending, watch: None, record }
    }

    /// The same, to be ended as `watch` says.
    pub fn resumable(self, watch: Option<ResumableWatch>) -> Self {
        Self { watch, ..self }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        // Also where a long answer always has another piece ready.
        if let Some(ending) = self.open.ending() {
            return self.broken_off(ending.clone());
        }
        if self.watch.as_mut().is_some_and(|watch| watch.has_to_end(context)) {
            self.record.handed_over();
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                self.stream.meter().count_sent(data.len());
                if let Some(watch) = &mut self.watch {
                    watch.events.pass(data);
                }
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
                ready!(self.ending.as_mut().poll(context));
                match self.open.ending().cloned() {
                    Some(ending) => self.broken_off(ending),
                    None => Poll::Pending,
                }
            }
        }
    }

    fn broken_off(&mut self, ending: Ending) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        self.record.ended_by(&ending);
        Poll::Ready(Some(Err(ending.into())))
    }
}

impl ResumableWatch {
    /// A watch whose bytes are `events`, and that has to end once `asked` is ready.
    pub fn new(events: EventStream, asked: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { events, asked: Box::pin(asked), is_asked: false }
    }

    fn has_to_end(&mut self, context: &mut Context<'_>) -> bool {
        self.is_asked = self.is_asked || self.asked.as_mut().poll(context).is_ready();
        self.is_asked && self.events.is_between_events()
    }
}

impl std::fmt::Debug for ResumableWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResumableWatch").field("events", &self.events).field("is_asked", &self.is_asked).finish()
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
        Self(Words::Own(Full::new(bytes)))
    }
}

impl From<TunnelledBody> for AnswerBody {
    fn from(body: TunnelledBody) -> Self {
        Self(Words::Tunnelled(Box::new(body)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        match &mut self.0 {
            Words::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Words::Tunnelled(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Words::Own(body) => body.is_end_stream(),
            Words::Tunnelled(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Words::Own(body) => body.size_hint(),
            Words::Tunnelled(body) => body.body.size_hint(),
        }
    }
}
