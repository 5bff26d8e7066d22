//! Streams that speak the wire protocol.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::stream::{RecvStream, SendStream, StreamReadError, StreamWriteError};
use crate::wire::limits::MAX_DATA_LENGTH;
use crate::wire::{
    ErrorCode, Frame, FrameReader, MAX_DATA_HEADER_LENGTH, RequestHead, StreamKind, WireError, encode_data_header,
};

/// Why a frame could not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The frame goes past a bound of the protocol; nothing was sent.
    #[error(transparent)]
    Frame(#[from] WireError),
    /// The stream takes nothing more.
    #[error(transparent)]
    Stream(#[from] StreamWriteError),
}

/// Why no frame could be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The peer's bytes are not the protocol; the stream has been stopped with the code that says so.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] WireError),
    /// The stream was broken off.
    #[error(transparent)]
    Stream(#[from] StreamReadError),
}

/// Sends frames on a stream.
#[derive(Debug)]
pub struct FrameSender {
    stream: SendStream,
    /// Encoded and not yet written.
    queued: BytesMut,
    raw: bool,
}

impl FrameSender {
    /// Pieces of a body up to this length are copied beside what is queued; longer ones travel as they are.
    const COPY_LIMIT: usize = 2048;

    /// What may be queued, in bytes, before the next piece of a body makes it go out.
    const QUEUE_LIMIT: usize = 16 * 1024;

    /// Sends frames on an accepted stream.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, queued: BytesMut::new(), raw: false }
    }

    /// Sends frames on a stream opened here, whose kind comes first.
    pub fn open(stream: SendStream, kind: StreamKind) -> Self {
        let mut sender = Self::new(stream);
        kind.encode(&mut sender.queued);
        sender
    }

    /// Encodes `frame`; it is written together with what comes next.
    pub fn queue(&mut self, frame: &Frame) -> Result<(), WireError> {
        frame.encode(&mut self.queued)
    }

    /// Encodes the head of a request; it is written together with what comes next.
    pub fn queue_request_head(&mut self, head: &RequestHead) -> Result<(), WireError> {
        head.encode(&mut self.queued)
    }

    /// Encodes a piece of a body if it is short and little is queued, and tells whether it did.
    pub fn queue_short_data(&mut self, data: &Bytes) -> bool {
        let short = data.len() <= Self::COPY_LIMIT && self.queued.len() <= Self::QUEUE_LIMIT;
        if short {
            self.queue_data_header(data.len());
            self.queued.extend_from_slice(data);
        }
        short
    }

    /// Sends `frame` and whatever is queued.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.queue(frame)?;
        Ok(self.flush().await?)
    }

    /// Sends a piece of a body, or raw bytes, and whatever is queued.
    pub async fn send_data(&mut self, mut data: Bytes) -> Result<(), StreamWriteError> {
        if self.queue_short_data(&data) {
            return self.flush().await;
        }
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_DATA_LENGTH));
            self.queue_data_header(piece.len());
            self.stream.write(&mut [self.queued.split().freeze(), piece]).await?;
        }
        Ok(())
    }

    /// Writes whatever is queued.
    pub async fn flush(&mut self) -> Result<(), StreamWriteError> {
        if self.queued.is_empty() {
            return Ok(());
        }
        self.stream.write(&mut [self.queued.split().freeze()]).await
    }

    /// From here on data goes out without frames: the stream has become an upgraded connection.
    pub fn make_raw(&mut self) {
        self.raw = true;
    }

    /// Writes whatever is queued and ends the stream cleanly.
    pub async fn finish(&mut self) -> Result<(), StreamWriteError> {
        self.flush().await?;
        self.stream.finish();
        Ok(())
    }

    /// Breaks the stream off.
    pub fn reset(&mut self, code: ErrorCode) {
        self.stream.reset(code);
    }

    /// See [`SendStream::stopped`].
    pub fn stopped(&self) -> impl Future<Output = Option<ErrorCode>> + Send + Sync + 'static {
        self.stream.stopped()
    }

    fn queue_data_header(&mut self, length: usize) {
        if !self.raw {
            self.queued.reserve(MAX_DATA_HEADER_LENGTH);
            encode_data_header(length, &mut self.queued);
        }
    }
}

/// Receives frames from a stream.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: RecvStream,
    reader: FrameReader,
}

impl FrameReceiver {
    /// Reads `stream` with a `reader` made for its kind and this side.
    pub fn new(stream: RecvStream, reader: FrameReader) -> Self {
        Self { stream, reader }
    }

    /// The next frame; `None` at an end that is allowed where it came.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, ReceiveError>> {
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) => return Poll::Ready(Ok(Some(frame))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.refuse(error))),
            }
            match ready!(self.stream.poll_read(context))? {
                Some(piece) => self.reader.push(piece),
                None => return Poll::Ready(self.reader.finish().map(|()| None).map_err(ReceiveError::Frame)),
            }
        }
    }

    /// See [`FrameReceiver::poll_frame`].
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, ReceiveError> {
        std::future::poll_fn(|context| self.poll_frame(context)).await
    }

    /// Tells the peer that the rest is not wanted.
    pub fn stop(&mut self, code: ErrorCode) {
        self.stream.stop(code);
    }

    fn refuse(&mut self, error: WireError) -> ReceiveError {
        self.stream.stop(error.code());
        ReceiveError::Frame(error)
    }
}
