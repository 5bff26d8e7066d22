//! Spans of requests, for those who follow one through several programs: W3C Trace Context in headers, OpenTelemetry's
//! OTLP over HTTP towards a collector.
//!
//! A span is told when it ends. What the collector does not take in time is lost and counted: no request waits for it.

mod context;
mod export;
mod otlp;

use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::HeaderMap;
use tokio::sync::mpsc;

pub use context::TraceContext;
pub use export::{Exporter, InvalidEndpoint, OtlpEndpoint};

/// Spans that may wait for the collector.
const QUEUE_LENGTH: usize = 4096;

/// Makes spans, or none where nobody collects them. Clones make spans for the same collector.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Queue>>);

#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<Span>,
    dropped: AtomicU64,
}

/// What a program does for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// It answers it.
    Server,
    /// It makes it.
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// What is told of a span.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    context: TraceContext,
    parent: Option<TraceContext>,
    kind: SpanKind,
    name: String,
    began: SystemTime,
    ended: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

/// A span that goes on. It ends when it is dropped, so no way out can forget it.
#[derive(Debug)]
pub struct ActiveSpan {
    span: Span,
    queue: Arc<Queue>,
}

impl Tracer {
    /// Makes spans of the program `service` for the collector at `endpoint`; the exporter has to be run.
    pub fn new(service: &'static str, endpoint: OtlpEndpoint) -> (Self, Exporter) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let queue = Arc::new(Queue { spans: sender, dropped: AtomicU64::new(0) });
        (Self(Some(queue.clone())), Exporter::new(service, endpoint, receiver, queue))
    }

    /// Begins the span of a request with these headers: in the trace that they name, or in a new one. `None` where nobody
    /// collects spans; then the headers may travel on as they are.
    pub fn begin(&self, kind: SpanKind, headers: &HeaderMap) -> Option<ActiveSpan> {
        let queue = self.0.clone()?;
        let parent = TraceContext::read(headers);
        let now = SystemTime::now();
        let span = Span {
            context: parent.map_or_else(TraceContext::root, TraceContext::child),
            parent,
            kind,
            name: "request".to_owned(),
            began: now,
            ended: now,
            attributes: Vec::new(),
            failed: false,
        };
        Some(ActiveSpan { span, queue })
    }

    /// Spans that were lost.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
    }
}

impl ActiveSpan {
    /// Its place in the trace, for the headers of requests that are made for it.
    pub fn context(&self) -> TraceContext {
        self.span.context
    }

    /// Names it: one of few names, not one of each request.
    pub fn set_name(&mut self, name: String) {
        self.span.name = name;
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.attributes.push((key, value.into()));
    }

    /// Notes that what it stands for failed.
    pub fn fail(&mut self) {
        self.span.failed = true;
    }
}

impl Drop for ActiveSpan {
    fn drop(&mut self) {
        if !self.span.context.is_sampled() {
            return;
        }
        let (name, attributes) = (take(&mut self.span.name), take(&mut self.span.attributes));
        let span = Span { ended: SystemTime::now(), name, attributes, ..self.span };
        if self.queue.spans.try_send(span).is_err() {
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<http::StatusCode> for Value {
    fn from(code: http::StatusCode) -> Self {
        Self::Number(code.as_u16().into())
    }
}
