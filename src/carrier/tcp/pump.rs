//! What moves a stream's records between its state and yamux.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use futures_util::io::AsyncWrite;

use super::state::StreamState;
use crate::wire::{RecordReader, WireError};

/// Packets that one stream takes in before others have their turn.
const PACKETS_AT_ONCE: usize = 32;

/// Moves the records of one stream between its state and yamux. Done when both directions are over.
///
/// It takes in whatever yamux has, always, so that a STOP or a RESET is never stuck behind bytes that nobody reads; what
/// the peer may send is bounded by CREDIT instead.
#[derive(Debug)]
pub struct Pump {
    /// The halves' end of it.
    pub state: Arc<StreamState>,
    /// Whether the peer opened the stream.
    pub inbound: bool,
    stream: yamux::Stream,
    records: RecordReader,
    /// Encoded and not yet taken by yamux.
    writing: VecDeque<Bytes>,
}

/// How a pump ended.
#[derive(Debug)]
pub struct PumpEnd {
    /// Whether the peer had opened the stream.
    pub inbound: bool,
    /// An error means that the peer's bytes are not the protocol.
    pub result: Result<(), WireError>,
}

impl Pump {
    /// For a stream that the peer opened; it is acknowledged at once, because yamux opens no more than 256 streams that
    /// are not.
    pub fn inbound(stream: yamux::Stream, window: u64) -> Self {
        Self::new(stream, true, window)
    }

    /// For a stream opened here.
    pub fn outbound(stream: yamux::Stream, window: u64) -> Self {
        Self::new(stream, false, window)
    }

    fn new(stream: yamux::Stream, inbound: bool, window: u64) -> Self {
        let state = Arc::new(StreamState::new(window, inbound));
        Self { state, inbound, stream, records: RecordReader::for_stream(), writing: VecDeque::new() }
    }

    fn poll_pump(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.state.inner().pump = Some(context.waker().clone());
        self.take_in(context)?;
        self.send_out(context);
        if !self.writing.is_empty() || !self.state.inner().is_over() {
            return Poll::Pending;
        }
        // Whether the end of the yamux stream still reaches the peer does not matter: the records have said it all.
        let _ = ready!(Pin::new(&mut self.stream).poll_close(context));
        Poll::Ready(Ok(()))
    }

    fn take_in(&mut self, context: &mut Context<'_>) -> Result<(), WireError> {
        for _ in 0..PACKETS_AT_ONCE {
            match Pin::new(&mut self.stream).poll_next(context) {
                Poll::Ready(Some(Ok(packet))) => {
                    let packet = Bytes::from_owner(packet);
                    let length = packet.len();
                    self.records.push(packet);
                    let mut inner = self.state.inner();
                    while let Some(record) = self.records.next_record()? {
                        inner.apply(record, length)?;
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => {
                    self.state.inner().broken();
                    return Ok(());
                }
                Poll::Pending => return Ok(()),
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn send_out(&mut self, context: &mut Context<'_>) {
        loop {
            let Some(piece) = self.writing.front_mut() else {
                self.state.inner().next_pieces(&mut self.writing);
                if self.writing.is_empty() {
                    return;
                }
                continue;
            };
            match Pin::new(&mut self.stream).poll_write(context, piece) {
                Poll::Ready(Ok(written)) => {
                    piece.advance(written);
                    if piece.is_empty() {
                        self.writing.pop_front();
                    }
                }
                Poll::Ready(Err(_)) => {
                    self.writing.clear();
                    self.state.inner().broken();
                    return;
                }
                Poll::Pending => return,
            }
        }
    }
}

impl Future for Pump {
    type Output = PumpEnd;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<PumpEnd> {
        let result = ready!(self.poll_pump(context));
        Poll::Ready(PumpEnd { inbound: self.inbound, result })
    }
}
