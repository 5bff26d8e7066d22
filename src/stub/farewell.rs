//! What the stub itself says on an upgraded connection, which WebSocket has words for and SPDY has not: that it waits with the
//! client, and goodbye.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, sink};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::carrier::{Disconnect, PathState};
use crate::wire::UpgradeProtocol;

/// A client's upgraded connection of which is known where its frames end.
#[derive(Debug)]
pub struct UpgradedSocket<S> {
    /// Locked for a moment at a time, by the futures of one task.
    inner: Arc<Mutex<Inner<S>>>,
    boundary: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Inner<S> {
    socket: S,
    frames: Option<WebSocketFrames>,
    /// What is still to be written of a pong that has begun.
    pong: &'static [u8],
}

/// A pong without content. It may be sent unsolicited, as a heartbeat (RFC 6455, section 5.5.3).
const PONG: &[u8] = &[0x8a, 0];

/// How often the client hears while the agent does not answer. kubectl gives a session up when it has had no pong for 61 s
/// (`client-go/tools/remotecommand/websocket.go`, `pingReadDeadline`).
const PONG_EVERY: Duration = Duration::from_secs(5);

/// The status code of an endpoint that is going away (RFC 6455, section 7.4.1).
const GOING_AWAY: u16 = 1001;

/// How long the client has to take the close frame, and then to end its direction.
const PATIENCE: Duration = Duration::from_secs(1);

impl<S: AsyncRead + AsyncWrite + Disconnect + Unpin> UpgradedSocket<S> {
    /// A connection that speaks `protocol`, of which nothing has been written yet.
    pub fn new(socket: S, protocol: UpgradeProtocol) -> Self {
        let frames = match protocol {
            UpgradeProtocol::WebSocket => Some(WebSocketFrames::default()),
            // A clean end would mean that all is well, and SPDY's GOAWAY has no reason that kubectl would show.
            UpgradeProtocol::Spdy => None,
        };
        let boundary = Arc::new(AtomicBool::new(frames.is_some()));
        Self { inner: Arc::new(Mutex::new(Inner { socket, frames, pong: &[] })), boundary }
    }

    /// Tells the client that the connection lives for as long as the agent at `path` does not answer: its pings wait with
    /// everything else. For the task that also relays; it never ends.
    pub fn keep_client(&self, mut path: watch::Receiver<PathState>) -> impl Future<Output = Infallible> + use<S> {
        let (inner, boundary) = (self.inner.clone(), self.boundary.clone());
        async move {
            while path.wait_for(|path| path.suspect_since.is_some()).await.is_ok() {
                if boundary.load(Ordering::Relaxed) {
                    locked(&inner).pong = PONG;
                    let writing = std::future::poll_fn(|context| locked(&inner).poll_pong(context));
                    if writing.await.is_err() {
                        break;
                    }
                }
                sleep(PONG_EVERY).await;
            }
            // What has ended or broken the relay sees as well.
            std::future::pending().await
        }
    }

    /// Becomes ready when goodbye can be said, for a task that also writes to the socket; and after a moment without such
    /// a place.
    pub fn boundary(&self) -> impl Future<Output = ()> + use<S> {
        let boundary = self.boundary.clone();
        async move {
            // Woken by the writing, which goes on in the same task.
            let reached = std::future::poll_fn(|_| match boundary.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            let _ = timeout(PATIENCE, reached).await;
        }
    }

    /// Closes the connection with `reason` where its protocol allows that, and disconnects it otherwise.
    pub async fn close(mut self, reason: &str) {
        let said = match self.boundary.load(Ordering::Relaxed) {
            true => timeout(PATIENCE, self.say_goodbye(reason)).await,
            false => Ok(Err(io::ErrorKind::Unsupported.into())),
        };
        match said {
            // Closing a socket with unread bytes in it would discard what was sent (RFC 1122, section 4.2.2.13).
            Ok(Ok(())) => drop(timeout(PATIENCE, tokio::io::copy(&mut self, &mut sink())).await),
            _ => self.disconnect(),
        }
    }

    async fn say_goodbye(&mut self, reason: &str) -> io::Result<()> {
        self.write_all(&close_frame(GOING_AWAY, reason)).await?;
        self.shutdown().await
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Writes what is left of a pong, and nothing else before that is done.
    fn poll_pong(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pong.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, self.pong))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pong = self.pong.get(written..).unwrap_or_default();
        }
        Pin::new(&mut self.socket).poll_flush(context)
    }
}

fn locked<S>(inner: &Mutex<Inner<S>>) -> MutexGuard<'_, Inner<S>> {
    // A panic of one that held it ends the whole task.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server's close frame (RFC 6455, section 5.5.1). The reason is cut to what fits into a control frame.
fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    const MAX_REASON: usize = 123;
    let ends = reason.char_indices().map(|(start, character)| start + character.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_REASON).last().unwrap_or_default();
    let reason = reason.as_bytes().get(..end).unwrap_or_default();
    let length = 2 + reason.len() as u8;
    [&[0x88, length], code.to_be_bytes().as_slice(), reason].concat()
}

impl<S: Disconnect> Disconnect for UpgradedSocket<S> {
    fn disconnect(&mut self) {
        locked(&self.inner).socket.disconnect();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UpgradedSocket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut locked(&self.inner).socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UpgradedSocket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = locked(&self.inner);
        if !inner.pong.is_empty() {
            ready!(inner.poll_pong(context))?;
        }
        let written = ready!(Pin::new(&mut inner.socket).poll_write(context, data))?;
        if let Some(frames) = &mut inner.frames {
            frames.pass(&data[..written]);
            self.boundary.store(frames.is_between_frames(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut locked(&self.inner).socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut locked(&self.inner).socket).poll_shutdown(context)
    }
}

/// Follows the frames of one direction of a WebSocket connection (RFC 6455, section 5.2), whatever is in them.
#[derive(Debug, Default)]
struct WebSocketFrames {
    /// What has come of a frame's header: at most 14 bytes.
    header: Vec<u8>,
    /// How many bytes of the payload are still to come.
    left: u64,
}

impl WebSocketFrames {
    fn pass(&mut self, mut bytes: &[u8]) {
        while bytes.has_remaining() {
            if self.left > 0 {
                let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                bytes.advance(skipped);
                self.left -= skipped as u64;
                continue;
            }
            self.header.push(bytes.get_u8());
            if let Some(length) = payload_length(&self.header) {
                self.left = length;
                self.header.clear();
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }
}

/// How long the payload behind a header is; `None` while the header is not whole.
fn payload_length(header: &[u8]) -> Option<u64> {
    let [_, second, rest @ ..] = header else { return None };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (extended, short) = match second & 0x7f {
        126 => (2, None),
        127 => (8, None),
        length => (0, Some(u64::from(length))),
    };
    let number = rest.get(..extended).filter(|_| rest.len() >= extended + mask)?;
    Some(short.unwrap_or_else(|| number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(bytes: &[u8]) -> Vec<usize> {
        let mut frames = WebSocketFrames::default();
        let mut ends = Vec::new();
        for (index, byte) in bytes.iter().enumerate() {
            frames.pass(&[*byte]);
            ends.extend(frames.is_between_frames().then_some(index + 1));
        }
        ends
    }

    #[test]
    fn frames_of_every_length_are_followed() {
        assert_eq!(ends(b"\x82\x03abc\x89\x00\x82\x81mask!"), [5, 7, 14]);
        let medium = [b"\x82\x7e\x01\x00".as_slice(), &[b'x'; 256], b"\x8a\x00"].concat();
        assert_eq!(ends(&medium), [260, 262]);
        let long = [b"\x82\x7f\0\0\0\0\0\x01\0\0".as_slice(), &[b'x'; 65536]].concat();
        assert_eq!(ends(&long), [65546]);
        let mut at_once = WebSocketFrames::default();
        at_once.pass(&long);
        assert!(at_once.is_between_frames());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_hears_pongs_between_frames_while_the_agent_is_silent() {
        use tokio::io::AsyncReadExt;

        struct Held(tokio::io::DuplexStream);
        impl AsyncRead for Held {
            fn poll_read(mut self: Pin<&mut Self>, c: &mut Context<'_>, b: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_read(c, b)
            }
        }
        impl AsyncWrite for Held {
            fn poll_write(mut self: Pin<&mut Self>, c: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(c, data)
            }
            fn poll_flush(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(c)
            }
            fn poll_shutdown(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(c)
            }
        }
        impl Disconnect for Held {
            fn disconnect(&mut self) {}
        }

        let (socket, mut client) = tokio::io::duplex(64);
        let mut socket = UpgradedSocket::new(Held(socket), UpgradeProtocol::WebSocket);
        let remote = "127.0.0.1:1".parse().unwrap();
        let (tell, path) = watch::channel(PathState { remote, suspect_since: None });
        let keeping = tokio::spawn(socket.keep_client(path));
        let minute = PONG_EVERY * 12;

        sleep(minute).await;
        socket.write_all(b"\x82\x03a").await.unwrap();
        tell.send_modify(|path| path.suspect_since = Some(std::time::Instant::now()));
        sleep(minute).await;
        socket.write_all(b"bc").await.unwrap();
        let mut frame = [0; 5];
        client.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\x82\x03abc", "nothing comes while all is well, nor within a frame");

        let mut pongs = [0; 4];
        client.read_exact(&mut pongs).await.unwrap();
        assert_eq!(pongs, *b"\x8a\0\x8a\0");
        keeping.abort();
    }

    #[test]
    fn a_close_frame_fits_into_a_control_frame() {
        assert_eq!(close_frame(1001, "bye"), b"\x88\x05\x03\xe9bye");
        let longest = close_frame(1001, &"ä".repeat(100));
        assert_eq!((longest.len(), longest[1]), (2 + 124, 124));
        assert_eq!(ends(&longest), [126]);
    }
}
