//! A raw stream as the socket that it stands for.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framed::{FrameReceiver, FrameSender, ReceiveError};
use super::stream::{StreamReadError, StreamWriteError};
use crate::wire::{ErrorCode, Frame};

/// The two halves of a stream that carries raw bytes, as one socket: for programs that know sockets and no streams.
///
/// `shutdown` ends its own direction cleanly and leaves the other one open (half-close). Dropped before that, it breaks the
/// stream off, so that the other end never takes a part for the whole. A stream that the peer broke off reads as
/// [`io::ErrorKind::ConnectionReset`], never as a clean end.
pub struct StreamSocket {
    sender: Sender,
    receiver: FrameReceiver,
    /// Received and not yet read.
    read_ahead: Bytes,
}

enum Sender {
    Idle(FrameSender),
    /// A write goes on when the next one is tried, as that of a buffered writer does.
    Writing(Write),
    /// Shut down, or failed.
    Ended,
}

/// A write, which gives the sender back.
type Write = Pin<Box<dyn Future<Output = (FrameSender, Result<(), StreamWriteError>)> + Send>>;

/// What one write takes at once, in bytes: it is copied, because the stream sends it later.
const PIECE: usize = 64 * 1024;

impl StreamSocket {
    /// A socket out of a stream whose both directions have become raw bytes.
    pub fn new(sender: FrameSender, receiver: FrameReceiver) -> Self {
        Self { sender: Sender::Idle(sender), receiver, read_ahead: Bytes::new() }
    }

    /// The sender, once what was written is on its way; `None` once it has ended.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<FrameSender>>> {
        match std::mem::replace(&mut self.sender, Sender::Ended) {
            Sender::Idle(sender) => Poll::Ready(Ok(Some(sender))),
            Sender::Ended => Poll::Ready(Ok(None)),
            Sender::Writing(mut writing) => match writing.as_mut().poll(context) {
                Poll::Ready((sender, Ok(()))) => Poll::Ready(Ok(Some(sender))),
                Poll::Ready((_, Err(error))) => Poll::Ready(Err(write_error(error))),
                Poll::Pending => {
                    self.sender = Sender::Writing(writing);
                    Poll::Pending
                }
            },
        }
    }
}

impl AsyncRead for StreamSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read_ahead.is_empty() {
            match ready!(self.receiver.poll_frame(context)).map_err(read_error)? {
                Some(Frame::Data(data)) => self.read_ahead = data,
                Some(_) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.read_ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.read_ahead[..length]);
        self.read_ahead.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(mut sender) = ready!(self.poll_idle(context))? else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let length = data.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&data[..length]);
        self.sender = Sender::Writing(Box::pin(async move {
            let result = sender.send_data(piece).await;
            (sender, result)
        }));
        // Begins the write; whether it is done is asked before the next one.
        if let Poll::Ready(Some(sender)) = self.poll_idle(context)? {
            self.sender = Sender::Idle(sender);
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sender) = ready!(self.poll_idle(context))? {
            self.sender = Sender::Idle(sender);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(mut sender) = ready!(self.poll_idle(context))? {
            self.sender = Sender::Writing(Box::pin(async move {
                let result = sender.finish().await;
                (sender, result)
            }));
            // Takes the sender out: nothing can be written any more. To finish twice changes nothing.
            ready!(self.poll_idle(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for StreamSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSocket").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

fn read_error(error: ReceiveError) -> io::Error {
    match error {
        ReceiveError::Stream(StreamReadError::Reset(_)) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        ReceiveError::Stream(StreamReadError::ConnectionLost(_)) => {
            io::Error::new(io::ErrorKind::ConnectionAborted, error)
        }
        ReceiveError::Frame(_) => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

fn write_error(error: StreamWriteError) -> io::Error {
    match error {
        // The peer took everything it wanted and said so.
        StreamWriteError::Stopped(ErrorCode::NoError) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        StreamWriteError::Stopped(_) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        StreamWriteError::ConnectionLost(_) => io::Error::new(io::ErrorKind::ConnectionAborted, error),
    }
}
