//! HTTP bodies on streams, in both directions.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, SizeHint};
use http_body_util::BodyExt;

use super::framed::{FrameReceiver, FrameSender, ReceiveError, SendError};
use super::stream::StreamWriteError;
use crate::wire::{ErrorCode, Frame, Trailers, WireError};

/// The body that follows a head on a stream.
///
/// It ends cleanly only where the stream did; anything else is an error, and whoever writes it on must break off too.
/// Dropped before its end it tells the peer to stop.
#[derive(Debug)]
pub struct ReceivedBody {
    frames: FrameReceiver,
    length: Option<u64>,
    /// Kept until the end behind them has come: only that makes the body whole.
    trailers: Option<Box<HeaderMap>>,
    ended: bool,
}

impl ReceivedBody {
    /// Reads the rest of a stream whose head has been taken. `length` is what the head's Content-Length said, if it
    /// said something.
    pub fn new(frames: FrameReceiver, length: Option<u64>) -> Self {
        Self { frames, length, trailers: None, ended: false }
    }

    /// Counts a piece. Behind the last one of a known length the end of the stream is taken along, because nobody asks
    /// for more then.
    fn count(&mut self, length: usize, context: &mut Context<'_>) -> Result<(), ReceiveError> {
        let Some(left) = self.length else { return Ok(()) };
        let left = left.checked_sub(length as u64).ok_or_else(|| self.wrong_length())?;
        self.length = Some(left);
        if left == 0 && matches!(self.frames.poll_frame(context), Poll::Ready(Ok(None))) {
            self.ended = true;
        }
        Ok(())
    }

    fn wrong_length(&mut self) -> ReceiveError {
        let error = WireError::WrongLength;
        self.frames.stop(error.code());
        error.into()
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, ReceiveError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let result = match ready!(self.frames.poll_frame(context)) {
                Ok(Some(Frame::Data(data))) => self.count(data.len(), context).map(|()| http_body::Frame::data(data)),
                Ok(Some(Frame::Trailers(Trailers(fields)))) => {
                    self.trailers = Some(Box::new(fields));
                    continue;
                }
                // The reader lets only DATA and TRAILERS follow a head, so this is the end of the stream.
                Ok(_) if self.length.is_some_and(|left| left > 0) => Err(self.wrong_length()),
                Ok(_) => {
                    self.ended = true;
                    return Poll::Ready(self.trailers.take().map(|fields| Ok(http_body::Frame::trailers(*fields))));
                }
                Err(error) => Err(error),
            };
            self.ended |= result.is_err();
            return Poll::Ready(Some(result));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.length == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Why a body could not be sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum SendBodyError<E> {
    /// The body itself broke off; the stream has been reset.
    #[error("the body broke off: {0}")]
    Body(E),
    /// The stream takes nothing more.
    #[error(transparent)]
    Stream(#[from] SendError),
}

/// Sends `body` behind whatever is queued on `frames`, as its pieces come, and ends the stream. A body that breaks off
/// resets the stream with `broken`.
///
/// Every piece goes out at once (watches and logs are only useful that way), except that the pieces that are there
/// already travel together with the head.
pub async fn send_body<B>(body: B, frames: &mut FrameSender, broken: ErrorCode) -> Result<(), SendBodyError<B::Error>>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut stopped = pin!(frames.stopped());
    while !body.is_end_stream() {
        let piece = match next_if_there(body.as_mut()).await {
            Some(piece) => piece,
            None => {
                frames.flush().await.map_err(SendError::from)?;
                tokio::select! {
                    piece = body.frame() => piece,
                    // A peer that wants nothing more is noticed also while the body is silent.
                    code = &mut stopped => return Err(SendBodyError::Stream(stopped_by_peer(code))),
                }
            }
        };
        match piece {
            Some(Ok(piece)) => send_piece(piece, frames).await?,
            Some(Err(error)) => {
                frames.reset(broken);
                return Err(SendBodyError::Body(error));
            }
            None => break,
        }
    }
    Ok(frames.finish().await.map_err(SendError::from)?)
}

fn stopped_by_peer(code: Option<ErrorCode>) -> SendError {
    SendError::Stream(StreamWriteError::Stopped(code.unwrap_or(ErrorCode::Cancelled)))
}

async fn send_piece(piece: http_body::Frame<Bytes>, frames: &mut FrameSender) -> Result<(), SendError> {
    match piece.into_data() {
        Ok(data) if frames.queue_short_data(&data) => Ok(()),
        Ok(data) => Ok(frames.send_data(data).await?),
        Err(piece) => match piece.into_trailers() {
            Ok(fields) => Ok(frames.queue(&Frame::Trailers(Trailers(fields)))?),
            Err(_unknown) => Ok(()),
        },
    }
}

/// The body's next piece (or its end) if it need not be waited for.
async fn next_if_there<B: Body>(mut body: Pin<&mut B>) -> Option<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
    std::future::poll_fn(|context| {
        Poll::Ready(match body.as_mut().poll_frame(context) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        })
    })
    .await
}
