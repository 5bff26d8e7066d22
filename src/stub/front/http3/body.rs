//! Bodies of requests that come by HTTP/3.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::server::RequestStream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::quic::RecvStream;

/// The body of a request.
pub struct RequestBody {
    stream: RequestStream<RecvStream, Bytes>,
    /// What was read to see whether there is a body at all.
    first: Option<Frame<Bytes>>,
    /// What is left of the length that the head announced, if it announced one.
    left: Option<u64>,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Data,
    Trailers,
    Ended,
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BrokenBody {
    /// The client or its connection broke off.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// RFC 9114, section 4.1.2.
    #[error("the body is not as long as its Content-Length says")]
    WrongLength,
}

impl RequestBody {
    /// The body on `stream`, of which the head has been read. Whether there is one is only known once something of it, or
    /// the end of the stream, has come: bound this with a deadline.
    pub async fn begin(stream: RequestStream<RecvStream, Bytes>, length: Option<u64>) -> Result<Self, BrokenBody> {
        let mut body = Self { stream, first: None, left: length, progress: Progress::Data };
        if length.is_none_or(|length| length == 0) {
            body.first = body.frame().await.transpose()?;
        }
        Ok(body)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.progress == Progress::Data {
            match ready!(self.stream.poll_recv_data(context))? {
                Some(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(self.count(data)));
                }
                None => self.progress = Progress::Trailers,
            }
        }
        if self.progress == Progress::Trailers {
            let trailers = ready!(self.stream.poll_recv_trailers(context))?;
            self.progress = Progress::Ended;
            if self.left.is_some_and(|left| left > 0) {
                return Poll::Ready(Some(Err(BrokenBody::WrongLength)));
            }
            if let Some(trailers) = trailers {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(None)
    }

    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, BrokenBody> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len() as u64).ok_or(BrokenBody::WrongLength)?;
        }
        Ok(Frame::data(data))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let frame = ready!(self.poll(context));
        if matches!(frame, Some(Err(_))) {
            self.progress = Progress::Ended;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.progress == Progress::Ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
