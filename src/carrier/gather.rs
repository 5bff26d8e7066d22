//! Receiving on QUIC streams in larger pieces.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio_util::io::poll_read_buf;

use super::stream::StreamReadError;
use crate::wire::ErrorCode;

/// The most bytes taken at once: enough to keep the cost of each piece small, little enough that streams take turns.
pub const MAX_PIECE: usize = 64 * 1024;

/// Where gathering begins.
const MIN_PIECE: usize = 8 * 1024;

/// A piece shorter than this is not a full packet's: there is nothing behind it to gather.
const FULL_PACKET: usize = 1000;

/// The receiving half of a QUIC stream.
///
/// quinn hands out what one packet carried at a time. Behind a full one there is mostly more: gathering that here is
/// cheaper than to carry each packet's part through the layers above by itself.
pub struct GatheringStream {
    stream: quinn::RecvStream,
    /// How many bytes to gather into one piece, as the stream has shown to be worth it.
    batch: usize,
    /// An error that was met behind a piece that had to be given out first.
    failed: Option<StreamReadError>,
}

impl GatheringStream {
    /// Gathers what comes on `stream`.
    pub fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, batch: MIN_PIECE, failed: None }
    }

    /// QUIC's number of the stream.
    pub fn id(&self) -> quinn::StreamId {
        self.stream.id()
    }

    /// Whether the peer opened it before the handshake was complete.
    pub fn is_early(&self) -> bool {
        self.stream.is_0rtt()
    }

    /// The next piece in order; `None` at the clean end.
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamReadError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        // The future keeps nothing between polls, so one may be made for each.
        let read = pin!(self.stream.read_chunk(MAX_PIECE, true)).poll(context);
        read.map(|result| match result {
            Ok(Some(chunk)) if chunk.bytes.len() < FULL_PACKET => Ok(Some(chunk.bytes)),
            Ok(Some(chunk)) => Ok(Some(self.gather(chunk.bytes, context))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// `first` and whatever else is there already. Only what comes in several chunks is copied.
    fn gather(&mut self, first: Bytes, context: &mut Context<'_>) -> Bytes {
        let second = match pin!(self.stream.read_chunk(MAX_PIECE, true)).poll(context) {
            Poll::Ready(Ok(Some(chunk))) => chunk.bytes,
            // The end is met again by the next read.
            Poll::Ready(Ok(None)) | Poll::Pending => return first,
            Poll::Ready(Err(error)) => {
                self.failed = Some(error.into());
                return first;
            }
        };
        let mut batch = BytesMut::with_capacity(self.batch.max(first.len() + second.len()));
        batch.extend_from_slice(&first);
        batch.extend_from_slice(&second);
        while batch.len() < self.batch {
            match poll_read_buf(Pin::new(&mut self.stream), context, &mut batch) {
                // The end is met again by the next read.
                Poll::Ready(Ok(0)) | Poll::Pending => break,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error.into());
                    break;
                }
            }
        }
        let worth_more = batch.len() >= self.batch;
        let next = if worth_more { self.batch * 2 } else { self.batch / 2 };
        self.batch = next.clamp(MIN_PIECE, MAX_PIECE);
        batch.freeze()
    }

    /// Tells the peer that the rest is not wanted.
    pub fn stop(&mut self, code: ErrorCode) {
        // Fails only for a stream that has ended by itself.
        let _ = self.stream.stop(code.value().into());
    }
}
