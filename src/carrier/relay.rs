//! Upgraded connections: raw bytes between a socket and a stream, each direction by itself.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::framed::{FrameReceiver, FrameSender};
use crate::wire::{ErrorCode, Frame};

/// A socket that can be cut so that its peer notices: no clean end, whatever the protocol's clean end is.
pub trait Disconnect {
    /// Makes dropping the socket an abort (for TCP: RST; for TLS: no close_notify).
    fn disconnect(&mut self);
}

impl<S: Disconnect + ?Sized> Disconnect for &mut S {
    fn disconnect(&mut self) {
        (**self).disconnect();
    }
}

impl Disconnect for TcpStream {
    /// RST: a FIN could make what was broken off pass for a whole.
    fn disconnect(&mut self) {
        // Fails only where the socket is gone already.
        let _ = socket2::SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }
}

/// How a relay ended, and how much it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// Whether both directions ended cleanly.
    pub clean: bool,
    /// Bytes from the socket to the stream.
    pub sent: u64,
    /// Bytes from the stream to the socket.
    pub received: u64,
}

/// What reading a socket takes at once, in bytes.
const PIECE: usize = 32 * 1024;

/// Carries bytes both ways until both directions have ended, or one has broken.
///
/// A clean end of one side (half-close) is passed on as that and the other direction goes on. Anything else breaks both:
/// the stream is reset with `broken`, the socket is disconnected, so that nobody takes a part for the whole. Kubernetes
/// clients depend on it: kubectl over SPDY exits 0 at a clean end.
///
/// Once the stream's direction has ended cleanly, `linger` is how long the socket may still send.
pub async fn relay<S>(
    socket: S,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    broken: ErrorCode,
    linger: Option<Duration>,
) -> RelayEnd
where
    S: AsyncRead + AsyncWrite + Disconnect + Unpin,
{
    let (mut read_half, mut write_half) = tokio::io::split(socket);
    let mut end = RelayEnd { clean: false, sent: 0, received: 0 };
    let result = {
        let outward = socket_to_stream(&mut read_half, &mut sender, &mut end.sent);
        let inward = stream_to_socket(&mut receiver, &mut write_half, &mut end.received);
        both_directions(outward, inward, linger).await
    };
    let mut socket = read_half.unsplit(write_half);
    match result {
        Ok(()) => end.clean = true,
        Err(Broken) => {
            sender.reset(broken);
            receiver.stop(broken);
            socket.disconnect();
        }
    }
    end
}

/// One direction ended otherwise than cleanly.
struct Broken;

async fn both_directions(
    outward: impl Future<Output = Result<(), Broken>>,
    inward: impl Future<Output = Result<(), Broken>>,
    linger: Option<Duration>,
) -> Result<(), Broken> {
    tokio::pin!(outward, inward);
    tokio::select! {
        result = &mut outward => {
            result?;
            inward.await
        }
        result = &mut inward => {
            result?;
            match linger {
                Some(linger) => tokio::time::timeout(linger, outward).await.unwrap_or(Err(Broken)),
                None => outward.await,
            }
        }
    }
}

async fn socket_to_stream(
    socket: &mut (impl AsyncRead + Unpin),
    sender: &mut FrameSender,
    carried: &mut u64,
) -> Result<(), Broken> {
    let stopped = sender.stopped();
    tokio::pin!(stopped);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let length = tokio::select! {
            // A peer that wants nothing more is noticed also while the socket is silent.
            _ = &mut stopped => return Err(Broken),
            length = socket.read_buf(&mut buffer) => length.map_err(|_: io::Error| Broken)?,
        };
        if length == 0 {
            return sender.finish().await.map_err(|_| Broken);
        }
        *carried += length as u64;
        sender.send_data(buffer.split().freeze()).await.map_err(|_| Broken)?;
    }
}

async fn stream_to_socket(
    receiver: &mut FrameReceiver,
    socket: &mut (impl AsyncWrite + Unpin),
    carried: &mut u64,
) -> Result<(), Broken> {
    while let Some(frame) = receiver.next_frame().await.map_err(|_| Broken)? {
        let Frame::Data(data) = frame else { return Err(Broken) };
        socket.write_all(&data).await.map_err(|_| Broken)?;
        socket.flush().await.map_err(|_| Broken)?;
        *carried += data.len() as u64;
    }
    socket.shutdown().await.map_err(|_| Broken)
}
