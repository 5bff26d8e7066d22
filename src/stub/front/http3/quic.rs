//! QUIC connections as the HTTP/3 layer wants them.
//!
//! Different from the layer's own binding: what comes is guarded ([`super::guard`]), a stream that is dropped before its end
//! is broken off instead of finished, and whoever answers learns that a client has lost interest.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::guard::StreamGuard;
use crate::wire::limits::MAX_HEAD_LENGTH;

/// The most bytes taken from a stream at once.
const MAX_PIECE: usize = 64 * 1024;

/// The most bytes on a unidirectional stream of a client, which has settings and little else to say.
const MAX_UNIDIRECTIONAL: usize = 64 * 1024;

type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// A client's loss of interest in an answer, or the end of its connection.
pub type Cancelled = Waiting<()>;

/// A connection.
pub struct QuicConnection {
    connection: quinn::Connection,
    bidirectional: Option<Waiting<Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>>,
    unidirectional: Option<Waiting<Result<quinn::RecvStream, ConnectionError>>>,
    opener: Opener,
    latest: Latest,
}

/// How the client of the stream that was accepted last tells that it wants no answer any more. The layer has no place to
/// hand it on together with the stream.
#[derive(Clone, Default)]
pub struct Latest(Arc<Mutex<Option<Cancelled>>>);

impl Latest {
    /// Takes it for the stream that was accepted just now.
    pub fn take(&self) -> Option<Cancelled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, cancelled: Cancelled) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancelled);
    }
}

impl QuicConnection {
    /// The server's end of `connection`. `latest` follows the streams that are accepted.
    pub fn new(connection: quinn::Connection, latest: Latest) -> Self {
        let opener = Opener { connection: connection.clone(), opening: None };
        Self { connection, bidirectional: None, unidirectional: None, opener, latest }
    }
}

impl quic::Connection<Bytes> for QuicConnection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let accepting = self.unidirectional.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        });
        let accepted = ready!(accepting.as_mut().poll(context));
        self.unidirectional = None;
        let guard = StreamGuard::unidirectional(MAX_UNIDIRECTIONAL);
        Poll::Ready(accepted.map(|stream| RecvStream { stream, guard, ended: false }).map_err(connection_error))
    }

    fn poll_accept_bidi(&mut self, context: &mut Context<'_>) -> Poll<Result<BidiStream, ConnectionErrorIncoming>> {
        let accepting = self.bidirectional.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        });
        let accepted = ready!(accepting.as_mut().poll(context));
        self.bidirectional = None;
        let (send, recv) = accepted.map_err(connection_error)?;
        let stopped = send.stopped();
        self.latest.set(Box::pin(async move {
            // Also the end of the stream and of the connection: nobody waits for an answer then.
            let _ = stopped.await;
        }));
        let guard = StreamGuard::request(MAX_HEAD_LENGTH as u64);
        Poll::Ready(Ok(BidiStream {
            send: SendStream { stream: send, writing: None, ended: false },
            recv: RecvStream { stream: recv, guard, ended: false },
        }))
    }

    fn opener(&self) -> Opener {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for QuicConnection {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, context: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(context)
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(context)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens streams to the client.
pub struct Opener {
    connection: quinn::Connection,
    opening: Option<Waiting<Result<quinn::SendStream, ConnectionError>>>,
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self { connection: self.connection.clone(), opening: None }
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, _context: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        // RFC 9114, section 6.1.
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server opens no bidirectional streams".into())))
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        let opening = self.opening.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.opening = None;
        Poll::Ready(opened.map(|stream| SendStream { stream, writing: None, ended: false }).map_err(connection_lost))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

/// Both directions of a request's stream.
pub struct BidiStream {
    send: SendStream,
    recv: RecvStream,
}

impl quic::BidiStream<Bytes> for BidiStream {
    type SendStream = SendStream;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}

impl quic::SendStream<Bytes> for BidiStream {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(context)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::RecvStream for BidiStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(context)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

/// The sending half of a stream. Dropped before its end it is reset with H3_INTERNAL_ERROR: quinn by itself would finish it,
/// and the client would take a part for the whole.
pub struct SendStream {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    ended: bool,
}

impl quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, data.chunk())).map_err(write_error)?;
            data.advance(written);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(StreamErrorIncoming::Unknown("data was sent before the stream was ready for it".into()));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.ended = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(error.into())))
    }

    fn reset(&mut self, code: u64) {
        self.ended = true;
        // Fails only for a stream that the client has stopped: then it knows.
        let _ = self.stream.reset(varint(code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            quic::SendStream::reset(self, Code::H3_INTERNAL_ERROR.value());
        }
    }
}

/// The receiving half of a stream. Dropped before its end it tells the client to stop, which is no reproach: an answer may
/// be complete before the request is (RFC 9114, section 4.1).
pub struct RecvStream {
    stream: quinn::RecvStream,
    guard: StreamGuard,
    ended: bool,
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        // The future keeps nothing between polls, so one may be made for each.
        let chunk = ready!(pin!(self.stream.read_chunk(MAX_PIECE, true)).poll(context)).map_err(|error| {
            self.ended = true;
            read_error(error)
        })?;
        let Some(chunk) = chunk else {
            self.ended = true;
            return Poll::Ready(match self.guard.may_end() {
                true => Ok(None),
                false => Err(StreamErrorIncoming::StreamTerminated { error_code: Code::H3_FRAME_ERROR.value() }),
            });
        };
        if let Err(excess) = self.guard.follow(&chunk.bytes) {
            tracing::debug!("a client's stream is not read on: {excess}");
            self.stop_sending(Code::H3_EXCESSIVE_LOAD.value());
            let error_code = Code::H3_EXCESSIVE_LOAD.value();
            return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code }));
        }
        Poll::Ready(Ok(Some(chunk.bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only for a stream that has ended by itself.
            let _ = self.stream.stop(varint(code));
        }
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        quic::RecvStream::stop_sending(self, Code::H3_NO_ERROR.value());
    }
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    // Both are integers below 2^62 (RFC 9000, section 2.1), so the one always fits the other.
    StreamId::try_from(u64::from(VarInt::from(id))).expect("a stream id is a variable-length integer")
}

fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn connection_lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        ReadError::ConnectionLost(error) => connection_lost(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        WriteError::ConnectionLost(error) => connection_lost(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}
