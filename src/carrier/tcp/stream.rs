//! The halves of a stream over TCP.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::super::stream::{ConnectionEnd, StreamReadError, StreamWriteError};
use super::connection::Handle;
use super::state::{Receiving, Sending, StreamState};
use crate::wire::ErrorCode;

/// Bytes of one stream that wait for yamux here. It has a queue of its own, of about as much.
const OUTGOING_LIMIT: usize = 128 * 1024;

/// The sending half of a stream.
#[derive(Debug)]
pub struct TcpSendStream {
    state: Arc<StreamState>,
    /// Keeps the connection open while one of its streams is in use.
    _connection: Arc<Handle>,
}

impl TcpSendStream {
    /// The half of a stream of `connection`.
    pub(super) fn new(state: Arc<StreamState>, connection: Arc<Handle>) -> Self {
        Self { state, _connection: connection }
    }

    /// Writes all of `chunks`, waiting for the peer's credit.
    pub async fn write(&self, chunks: &mut [Bytes]) -> Result<(), StreamWriteError> {
        for chunk in chunks {
            while !chunk.is_empty() {
                std::future::poll_fn(|context| self.poll_write(context, chunk)).await?;
            }
        }
        Ok(())
    }

    /// Takes from the front of `chunk` what there is room for.
    fn poll_write(&self, context: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), StreamWriteError>> {
        let mut inner = self.state.inner();
        match (inner.sending, &inner.lost) {
            (Sending::Stopped(code), _) => return Poll::Ready(Err(StreamWriteError::Stopped(code))),
            (_, Some(end)) => return Poll::Ready(Err(end.clone().into())),
            (Sending::Open, None) => {}
            (Sending::Finishing | Sending::Resetting(_) | Sending::Done, None) => {
                let end = ConnectionEnd::Failed("the stream has been ended here".to_owned());
                return Poll::Ready(Err(end.into()));
            }
        }
        let credit = usize::try_from(inner.credit - inner.written).unwrap_or(usize::MAX);
        let room = credit.min(OUTGOING_LIMIT.saturating_sub(inner.outgoing_length));
        if room == 0 {
            inner.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let piece = chunk.split_to(chunk.len().min(room));
        inner.written += piece.len() as u64;
        inner.outgoing_length += piece.len();
        inner.outgoing.push_back(piece);
        inner.wake_pump();
        Poll::Ready(Ok(()))
    }

    /// Ends the direction cleanly behind what was written.
    pub fn finish(&self) {
        let mut inner = self.state.inner();
        if inner.sending == Sending::Open {
            inner.sending = Sending::Finishing;
            inner.wake_pump();
        }
    }

    /// Breaks the direction off.
    pub fn reset(&self, code: ErrorCode) {
        let mut inner = self.state.inner();
        if matches!(inner.sending, Sending::Open | Sending::Finishing) {
            inner.sending = Sending::Resetting(code);
            inner.drop_outgoing();
            inner.wake_pump();
        }
    }

    /// What [`stopped`] looks at.
    pub fn state(&self) -> Arc<StreamState> {
        self.state.clone()
    }
}

/// Waits until the peer wants no more (its code), or the end has gone out (`None`).
pub async fn stopped(state: Arc<StreamState>) -> Option<ErrorCode> {
    std::future::poll_fn(|context| {
        let mut inner = state.inner();
        match (inner.sending, &inner.lost) {
            (Sending::Stopped(code), _) => return Poll::Ready(Some(code)),
            (Sending::Done, _) => return Poll::Ready(None),
            (_, Some(_)) => return Poll::Ready(Some(ErrorCode::Internal)),
            _ => {}
        }
        if !inner.watchers.iter().any(|waker| waker.will_wake(context.waker())) {
            inner.watchers.push(context.waker().clone());
        }
        Poll::Pending
    })
    .await
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct TcpRecvStream {
    state: Arc<StreamState>,
    /// Keeps the connection open while one of its streams is in use.
    _connection: Arc<Handle>,
}

impl TcpRecvStream {
    /// The half of a stream of `connection`.
    pub(super) fn new(state: Arc<StreamState>, connection: Arc<Handle>) -> Self {
        Self { state, _connection: connection }
    }

    /// The next piece in order, of at most `limit` bytes; `None` at the clean end.
    pub fn poll_read(&self, context: &mut Context<'_>, limit: usize) -> Poll<Result<Option<Bytes>, StreamReadError>> {
        let mut inner = self.state.inner();
        if let Some(piece) = inner.incoming.pop(limit) {
            inner.read += piece.len() as u64;
            if inner.receiving == Receiving::Open && inner.announced - inner.read < inner.granted / 2 {
                inner.credit_due = true;
                inner.wake_pump();
            }
            return Poll::Ready(Ok(Some(piece)));
        }
        match (inner.receiving, &inner.lost) {
            (Receiving::Ended, _) => Poll::Ready(Ok(None)),
            (Receiving::Reset(code), _) => Poll::Ready(Err(StreamReadError::Reset(code))),
            (_, Some(end)) => Poll::Ready(Err(end.clone().into())),
            (Receiving::Unwanted, None) => {
                let end = ConnectionEnd::Failed("the stream has been stopped here".to_owned());
                Poll::Ready(Err(end.into()))
            }
            (Receiving::Open, None) => {
                inner.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Tells the peer that the rest is not wanted.
    pub fn stop(&self, code: ErrorCode) {
        let mut inner = self.state.inner();
        if inner.receiving == Receiving::Open {
            inner.stop_due = Some(code);
            inner.wake_pump();
        }
        inner.receiving = Receiving::Unwanted;
        inner.incoming.clear();
    }
}
