//! Response bodies: whole, streamed by a task, or generated.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{sync::mpsc, time::Sleep};

/// Chunks a streaming task may be ahead of the client.
const CHUNKS_AHEAD: usize = 16;
/// What was written before a body is cut short gets this long to leave the process.
const PAUSE_BEFORE_CUT: Duration = Duration::from_millis(50);

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What a response carries, and something that lives as long as it does.
pub(super) struct Body {
    content: Content,
    held: Option<Box<dyn Send>>,
}

enum Content {
    Whole(Bytes),
    Chunked(Bytes),
    Streamed(mpsc::Receiver<io::Result<Bytes>>),
    Zeros { left: u64 },
    CutShort { announced: u64, left: u64, pause: Pin<Box<Sleep>> },
    Echoed(Incoming),
}

/// Where a task writes a streamed body. Dropping it ends the body cleanly.
#[derive(Clone)]
pub(super) struct BodySender(mpsc::Sender<io::Result<Bytes>>);

/// The client went away.
#[derive(Debug)]
pub(super) struct Gone;

impl Body {
    /// A body known as a whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::of(Content::Whole(bytes.into()))
    }

    /// A body known as a whole, sent without saying its length.
    pub fn chunked(bytes: impl Into<Bytes>) -> Self {
        Self::of(Content::Chunked(bytes.into()))
    }

    /// A body of chunks, each sent at once.
    pub fn streamed() -> (BodySender, Self) {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        (BodySender(sender), Self::of(Content::Streamed(receiver)))
    }

    /// `count` zero bytes.
    pub fn zeros(count: u64) -> Self {
        Self::of(Content::Zeros { left: count })
    }

    /// Announces `announced` bytes and fails after `count` of them.
    pub fn cut_short(announced: u64, count: u64) -> Self {
        let pause = Box::pin(tokio::time::sleep(PAUSE_BEFORE_CUT));
        Self::of(Content::CutShort { announced, left: count, pause })
    }

    /// The request's body, as it comes.
    pub fn echo(incoming: Incoming) -> Self {
        Self::of(Content::Echoed(incoming))
    }

    /// Keeps `guard` alive until the body has been sent or given up.
    pub fn holding(mut self, guard: impl Send + 'static) -> Self {
        self.held = Some(Box::new(guard));
        self
    }

    /// The bytes, when they are known as a whole.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn of(content: Content) -> Self {
        Self { content, held: None }
    }
}

impl BodySender {
    /// Sends one chunk, waiting while the client is slow.
    pub async fn send(&self, chunk: impl Into<Bytes>) -> Result<(), Gone> {
        self.0.send(Ok(chunk.into())).await.map_err(|_| Gone)
    }

    /// Resolves when the client is gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = match &mut self.get_mut().content {
            Content::Whole(bytes) | Content::Chunked(bytes) if bytes.is_empty() => None,
            Content::Whole(bytes) | Content::Chunked(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::Streamed(receiver) => ready!(receiver.poll_recv(cx)),
            Content::Zeros { left: 0 } => None,
            Content::Zeros { left } => Some(Ok(next_zeros(left))),
            Content::CutShort { announced, left, .. } if *left > 0 => {
                let zeros = next_zeros(left);
                *announced -= zeros.len() as u64;
                Some(Ok(zeros))
            }
            Content::CutShort { pause, .. } => {
                ready!(pause.as_mut().poll(cx));
                Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "this body is cut short on purpose")))
            }
            Content::Echoed(incoming) => {
                return Pin::new(incoming).poll_frame(cx).map_err(io::Error::other);
            }
        };
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) | Content::Chunked(bytes) => bytes.is_empty(),
            Content::Zeros { left } => *left == 0,
            Content::CutShort { .. } | Content::Streamed(_) => false,
            Content::Echoed(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Zeros { left } => SizeHint::with_exact(*left),
            Content::CutShort { announced, .. } => SizeHint::with_exact(*announced),
            Content::Chunked(_) | Content::Streamed(_) => SizeHint::default(),
            Content::Echoed(incoming) => incoming.size_hint(),
        }
    }
}

fn next_zeros(left: &mut u64) -> Bytes {
    let size = (ZEROS.len() as u64).min(*left);
    *left -= size;
    // `size` is at most the length of ZEROS.
    Bytes::from_static(&ZEROS[..size as usize])
}
