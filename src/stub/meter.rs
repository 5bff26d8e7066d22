//! Bytes, counted as they pass: for the request, for its cluster, and for the agent that carries it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::registry::Traffic;
use crate::carrier::Disconnect;

/// Counts the bytes of one request and of its cluster. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    request: Arc<RequestBytes>,
    cluster: ClusterBytes,
}

#[derive(Debug, Default)]
struct RequestBytes {
    sent: AtomicU64,
    received: AtomicU64,
}

/// The counters of one cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterBytes {
    /// Bytes that went to clients.
    pub sent: Counter,
    /// Bytes that came from clients.
    pub received: Counter,
}

impl Meter {
    /// Counts for a cluster.
    pub fn for_cluster(cluster: ClusterBytes) -> Self {
        Self { request: Arc::default(), cluster }
    }

    /// Counts the bytes of an answer in the stub's own words.
    pub fn count_own(&self, bytes: usize) {
        self.request.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.cluster.sent.inc_by(bytes as u64);
    }

    /// Bytes of bodies and upgraded connections that went to the client.
    pub fn sent(&self) -> u64 {
        self.request.sent.load(Ordering::Relaxed)
    }

    /// Bytes of bodies and upgraded connections that came from the client.
    pub fn received(&self) -> u64 {
        self.request.received.load(Ordering::Relaxed)
    }
}

/// Counts the bytes of one request for its agent as well.
#[derive(Debug, Clone)]
pub struct StreamMeter {
    request: Meter,
    agent: Arc<Traffic>,
}

impl StreamMeter {
    /// Counts for a request and for the agent that carries it.
    pub fn new(request: Meter, agent: Arc<Traffic>) -> Self {
        Self { request, agent }
    }

    /// Counts bytes that go to the client.
    pub fn count_sent(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.request.request.sent.fetch_add(bytes, Ordering::Relaxed);
        self.request.cluster.sent.inc_by(bytes);
        self.agent.count_to_client(bytes);
    }

    /// Counts bytes that come from the client.
    pub fn count_received(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.request.request.received.fetch_add(bytes, Ordering::Relaxed);
        self.request.cluster.received.inc_by(bytes);
        self.agent.count_from_client(bytes);
    }
}

/// A client's body, counted as it is read.
#[derive(Debug)]
pub struct MeteredBody<B> {
    body: B,
    meter: StreamMeter,
}

impl<B> MeteredBody<B> {
    /// Counts `body`.
    pub fn new(body: B, meter: StreamMeter) -> Self {
        Self { body, meter }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for MeteredBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.meter.count_received(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's socket, counted in both directions.
#[derive(Debug)]
pub struct MeteredSocket<S> {
    socket: S,
    meter: StreamMeter,
}

impl<S> MeteredSocket<S> {
    /// Counts `socket`.
    pub fn new(socket: S, meter: StreamMeter) -> Self {
        Self { socket, meter }
    }
}

impl<S: Disconnect> Disconnect for MeteredSocket<S> {
    fn disconnect(&mut self) {
        self.socket.disconnect();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.socket).poll_read(context, buffer));
        self.meter.count_received(buffer.filled().len().saturating_sub(before));
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.socket).poll_write(context, data));
        if let Ok(written) = result {
            self.meter.count_sent(written);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
