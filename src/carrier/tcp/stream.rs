//! A stream over TCP: yamux moves its records, and between two records it is what a QUIC stream is.
//!
//! The halves that the rest of the program holds and the [`Pump`] in the connection's task meet in a [`StreamState`]. The
//! pump always takes in whatever yamux has, so that a STOP or a RESET is never stuck behind bytes that nobody reads; what
//! the peer may send is bounded by CREDIT instead.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::io::AsyncWrite;

use super::super::stream::{ConnectionEnd, StreamReadError, StreamWriteError};
use super::connection::Handle;
use super::receive_buffer::ReceiveBuffer;
use crate::wire::limits::INITIAL_CREDIT;
use crate::wire::{ErrorCode, Record, RecordReader, WireError};

/// What the two ends of a stream within this process share.
#[derive(Debug)]
pub struct StreamState(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    sending: Sending,
    /// Written and not yet handed to yamux.
    outgoing: VecDeque<Bytes>,
    outgoing_length: usize,
    /// Bytes written since the beginning, and how many the peer takes.
    written: u64,
    credit: u64,
    receiving: Receiving,
    incoming: ReceiveBuffer,
    /// Bytes received and read since the beginning, and how many the peer has been told that it may send.
    received: u64,
    read: u64,
    announced: u64,
    /// By how much the peer's credit grew last.
    granted: u64,
    window: u64,
    credit_due: bool,
    stop_due: Option<ErrorCode>,
    lost: Option<ConnectionEnd>,
    pump: Option<Waker>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watchers: Vec<Waker>,
}

/// This side's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// To be ended once everything has gone out.
    Finishing,
    /// To be broken off.
    Resetting(ErrorCode),
    /// END or RESET has gone out.
    Done,
    /// The peer wants no more.
    Stopped(ErrorCode),
}

/// The peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Open,
    /// Whole; some of it may have yet to be read.
    Ended,
    Reset(ErrorCode),
    /// Nobody here wants the rest.
    Unwanted,
}

/// Bytes of one stream that wait for yamux here. It has a queue of its own, of about as much.
const OUTGOING_LIMIT: usize = 128 * 1024;

/// Records up to this length are written in one piece: it is what yamux puts into one frame.
const WHOLE_RECORD: usize = 16 * 1024;

/// Packets that one stream takes in before others have their turn.
const PACKETS_AT_ONCE: usize = 32;

impl StreamState {
    fn new(window: u64, acknowledge: bool) -> Self {
        Self(Mutex::new(Inner {
            sending: Sending::Open,
            outgoing: VecDeque::new(),
            outgoing_length: 0,
            written: 0,
            credit: INITIAL_CREDIT,
            receiving: Receiving::Open,
            incoming: ReceiveBuffer::default(),
            received: 0,
            read: 0,
            announced: INITIAL_CREDIT,
            granted: INITIAL_CREDIT,
            window: window.max(INITIAL_CREDIT),
            credit_due: acknowledge,
            stop_due: None,
            lost: None,
            pump: None,
            reader: None,
            writer: None,
            watchers: Vec::new(),
        }))
    }

    /// The connection is gone.
    pub fn lose(&self, end: &ConnectionEnd) {
        let mut inner = self.inner();
        inner.lost = Some(end.clone());
        inner.wake_reader();
        inner.wake_writer_and_watchers();
    }

    /// Nobody here wants the stream, which the peer has not heard of yet.
    pub fn abandon(&self) {
        let mut inner = self.inner();
        inner.sending = Sending::Done;
        inner.receiving = Receiving::Unwanted;
        inner.wake_pump();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake_pump(&mut self) {
        self.pump.take().into_iter().for_each(Waker::wake);
    }

    fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake_writer_and_watchers(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
        self.watchers.drain(..).for_each(Waker::wake);
    }

    fn drop_outgoing(&mut self) {
        self.outgoing.clear();
        self.outgoing_length = 0;
    }

    /// What a record of the peer means; `packet_length` is what a piece of it keeps alive.
    fn apply(&mut self, record: Record, packet_length: usize) -> Result<(), WireError> {
        match record {
            Record::Bytes(bytes) => {
                self.received += bytes.len() as u64;
                if self.received > self.announced {
                    let limit = usize::try_from(self.announced).unwrap_or(usize::MAX);
                    return Err(WireError::TooLong { what: "a stream", length: self.received, limit });
                }
                if self.receiving == Receiving::Open {
                    self.incoming.push(bytes, packet_length);
                    self.wake_reader();
                }
            }
            Record::End if self.receiving == Receiving::Open => {
                self.receiving = Receiving::Ended;
                self.wake_reader();
            }
            Record::Reset(code) if self.receiving == Receiving::Open => {
                self.receiving = Receiving::Reset(code);
                self.incoming.clear();
                self.wake_reader();
            }
            Record::Stop(code) if self.sending != Sending::Done => self.stopped_by_peer(code),
            Record::Credit(offset) => {
                self.credit = self.credit.max(offset);
                self.writer.take().into_iter().for_each(Waker::wake);
            }
            // For a direction that is over already. The reader lets no record of the connection stream through here.
            _ => {}
        }
        Ok(())
    }

    fn stopped_by_peer(&mut self, code: ErrorCode) {
        self.sending = Sending::Stopped(code);
        self.drop_outgoing();
        self.wake_writer_and_watchers();
    }

    /// Yamux has ended the stream and the records had not: whatever is still open is broken off.
    fn broken(&mut self) {
        if self.receiving == Receiving::Open {
            self.receiving = Receiving::Reset(ErrorCode::Internal);
            self.incoming.clear();
            self.wake_reader();
        }
        if self.sending != Sending::Done {
            self.stopped_by_peer(ErrorCode::Internal);
        }
        self.stop_due = None;
    }

    /// Nothing more will be said in either direction.
    fn is_over(&self) -> bool {
        self.receiving != Receiving::Open
            && matches!(self.sending, Sending::Done | Sending::Stopped(_))
            && self.stop_due.is_none()
    }

    /// What to send next, as pieces for yamux; signals go before bytes. None: nothing.
    fn next_pieces(&mut self, pieces: &mut VecDeque<Bytes>) {
        let mut out = BytesMut::new();
        if let Some(code) = self.stop_due.take() {
            Record::Stop(code).encode(&mut out);
        }
        if std::mem::take(&mut self.credit_due) && self.receiving == Receiving::Open {
            self.announced = self.read + self.window;
            self.granted = self.window;
            Record::Credit(self.announced).encode(&mut out);
        }
        match self.sending {
            Sending::Resetting(code) => {
                Record::Reset(code).encode(&mut out);
                self.sending = Sending::Done;
            }
            Sending::Open | Sending::Finishing if !self.outgoing.is_empty() => {
                self.take_bytes_record(out, pieces);
                return;
            }
            Sending::Finishing => {
                Record::End.encode(&mut out);
                self.sending = Sending::Done;
                self.wake_writer_and_watchers();
            }
            Sending::Open | Sending::Done | Sending::Stopped(_) => {}
        }
        if !out.is_empty() {
            pieces.push_back(out.freeze());
        }
    }

    /// One BYTES record, behind what is in `out`: short pieces joined and copied, a long one as it is.
    fn take_bytes_record(&mut self, mut out: BytesMut, pieces: &mut VecDeque<Bytes>) {
        let mut length = 0;
        let joined = self
            .outgoing
            .iter()
            .take_while(|piece| {
                length += piece.len();
                length <= WHOLE_RECORD
            })
            .count();
        if joined == 0 {
            // The caller has seen that there is one.
            let long = self.outgoing.pop_front().unwrap_or_default();
            self.outgoing_length -= long.len();
            Record::encode_bytes_header(long.len(), &mut out);
            pieces.extend([out.freeze(), long]);
        } else {
            let length = self.outgoing.iter().take(joined).map(Bytes::len).sum();
            self.outgoing_length -= length;
            out.reserve(16 + length);
            Record::encode_bytes_header(length, &mut out);
            self.outgoing.drain(..joined).for_each(|piece| out.extend_from_slice(&piece));
            pieces.push_back(out.freeze());
        }
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

/// Moves the records of one stream between its state and yamux. Done when both directions are over.
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
