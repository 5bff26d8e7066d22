//! The TLS socket below yamux.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A TLS socket that gathers what is written until [`Socket::poll_send`].
///
/// Yamux writes and flushes each header and each body by itself; sent so, each would be a TLS record and a packet of its
/// own. Clones are handles to the same socket.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    tls: TlsStream<TcpStream>,
    /// Written and not yet sent.
    queued: BytesMut,
    received_at: Instant,
    traffic: Arc<SocketTraffic>,
}

/// Bytes that TLS carried, without its own.
#[derive(Debug, Default)]
pub struct SocketTraffic {
    /// To the peer.
    pub sent: AtomicU64,
    /// From the peer.
    pub received: AtomicU64,
}

/// What is gathered before it is sent, in bytes: a few TLS records.
const QUEUE_LIMIT: usize = 64 * 1024;

impl Socket {
    /// Works on `tls` and counts in `traffic`.
    pub fn new(tls: TlsStream<TcpStream>, traffic: Arc<SocketTraffic>) -> Self {
        Self(Arc::new(Mutex::new(Inner { tls, queued: BytesMut::new(), received_at: Instant::now(), traffic })))
    }

    /// When the peer was last heard of.
    pub fn received_at(&self) -> Instant {
        self.inner().received_at
    }

    /// Sends what has been gathered.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner();
        ready!(inner.poll_send_queued(context))?;
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut inner.tls), context)
    }

    /// Reads and forgets everything up to the end.
    pub fn poll_drain(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; 4096];
        while let Ok(1..) = ready!(Pin::new(&mut self.clone()).poll_read(context, &mut buffer)) {}
        Poll::Ready(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn poll_send_queued(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queued.is_empty() {
            let sent = ready!(tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.tls), context, &self.queued))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.traffic.sent.fetch_add(sent as u64, Ordering::Relaxed);
            self.queued.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner();
        let mut buffer = ReadBuf::new(buffer);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut inner.tls), context, &mut buffer))?;
        let length = buffer.filled().len();
        inner.received_at = Instant::now();
        inner.traffic.received.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner();
        if inner.queued.len() >= QUEUE_LIMIT {
            ready!(inner.poll_send_queued(context))?;
        }
        inner.queued.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    /// Nothing: whoever drives yamux sends once yamux has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner();
        ready!(inner.poll_send_queued(context))?;
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut inner.tls), context)
    }
}
