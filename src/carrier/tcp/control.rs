//! The connection stream: signs of life, and the last word.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::io::AsyncWrite;

use crate::wire::{ErrorCode, Record, RecordReader, WireError};

/// The number of the connection stream in yamux: the first one that the dialling end opens.
pub const CONNECTION_STREAM: u32 = 1;

/// Answers wait here while the peer does not take them; then nothing more is read.
const QUEUE_LIMIT: usize = 1024;

/// The connection stream.
#[derive(Debug)]
pub struct ControlStream {
    stream: yamux::Stream,
    reader: RecordReader,
    queued: BytesMut,
    asked: Option<(u64, Instant)>,
    next_number: u64,
}

/// What the peer had to say.
#[derive(Debug)]
pub enum Heard {
    /// The answer to a question, so much later.
    RoundTrip(Duration),
    /// The connection is over.
    Close(ErrorCode, String),
    /// Nothing more, for ever: the peer has ended the stream.
    End,
}

impl ControlStream {
    /// Works on `stream`.
    pub fn new(stream: yamux::Stream) -> Self {
        let reader = RecordReader::for_connection();
        Self { stream, reader, queued: BytesMut::new(), asked: None, next_number: 0 }
    }

    /// Asks for a sign of life, unless an answer is owed already.
    pub fn ask(&mut self) {
        if self.asked.is_none() {
            Record::Ping(self.next_number).encode(&mut self.queued);
            self.asked = Some((self.next_number, Instant::now()));
            self.next_number += 1;
        }
    }

    /// Says that the connection is over.
    pub fn close(&mut self, code: ErrorCode, reason: &str) {
        Record::Close { code, reason: reason.to_owned() }.encode(&mut self.queued);
    }

    /// Hands what is queued to yamux. An error means that the stream takes nothing more.
    pub fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.queued.is_empty() {
            let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(context, &self.queued))?;
            self.queued.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// The next thing the peer has to say; its questions are answered on the way.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Heard, WireError>> {
        loop {
            if self.poll_write(context).is_pending() && self.queued.len() > QUEUE_LIMIT {
                return Poll::Pending;
            }
            if let Some(record) = self.reader.next_record()? {
                match record {
                    Record::Ping(number) => Record::Pong(number).encode(&mut self.queued),
                    Record::Pong(number) => {
                        if let Some((_, since)) = self.asked.take_if(|(asked, _)| *asked == number) {
                            return Poll::Ready(Ok(Heard::RoundTrip(since.elapsed())));
                        }
                    }
                    Record::Close { code, reason } => return Poll::Ready(Ok(Heard::Close(code, reason))),
                    // The reader lets nothing else through on this stream.
                    _ => {}
                }
                continue;
            }
            match std::task::ready!(Pin::new(&mut self.stream).poll_next(context)) {
                Some(Ok(packet)) => self.reader.push(Bytes::from_owner(packet)),
                Some(Err(_)) | None => return Poll::Ready(Ok(Heard::End)),
            }
        }
    }
}
