//! The audit log: who did what where, as `audit.k8s.io/v1` events.
//!
//! Events go through one bounded queue to one [`AuditSink`], the first at once, and those that follow it closely together a
//! few milliseconds later. What happens when the sink fails or falls behind is [`OnFailure`].

mod config;
mod event;
mod file;
mod stdout;
mod webhook;
mod writer;

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub use config::{AuditConfig, DEFAULT_QUEUE_LENGTH, InvalidAuditConfig, SinkConfig};
pub use event::{AuditEvent, Stage};
pub use file::FileSink;
pub use stdout::StdoutSink;
pub use webhook::WebhookSink;
pub use writer::AuditWriter;

use super::record::{End, RequestFacts};
use crate::kube::Status;

/// How long a request waits for room in the queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where audit events go.
///
/// It may assume that it is called by one task, one call at a time, with at least one event, in the order in which the
/// events came to be. It may take as long as it needs; meanwhile events gather in the queue.
///
/// An error means that none of the events, or only some, were written. Under [`OnFailure::Block`] it is called again with
/// the same events until it succeeds, under [`OnFailure::Drop`] they are lost and counted.
pub trait AuditSink: Debug + Send {
    /// Writes events.
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a>;
}

/// Events on their way into a sink.
pub type Writing<'a> = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + 'a>>;

/// A sink that could not write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// What happens to requests while the audit log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// No request passes without its place in the audit log: it waits for one, and after 10 s it is refused with a 503. Events
    /// of requests that are open have theirs already, so none is lost; each open request holds one place of the queue.
    Block,
    /// Requests pass. Events that cannot be written are lost; the log says so and they are counted.
    Drop,
}

/// The end of the queue where events come in.
#[derive(Debug, Clone, Default)]
pub struct AuditLog {
    queue: Option<Arc<Queue>>,
}

#[derive(Debug)]
struct Queue {
    events: mpsc::Sender<AuditEvent>,
    on_failure: OnFailure,
    counts: Arc<Counts>,
}

/// What went wrong so far.
#[derive(Debug, Default)]
struct Counts {
    dropped: AtomicU64,
    failures: AtomicU64,
}

impl AuditLog {
    /// An audit log with a queue of `length` events into `sink`; the writer has to be run.
    pub fn new(sink: Box<dyn AuditSink>, on_failure: OnFailure, length: usize) -> (Self, AuditWriter) {
        let (sender, receiver) = mpsc::channel(length);
        let counts = Arc::<Counts>::default();
        let writer = AuditWriter::new(sink, receiver, on_failure, counts.clone());
        let queue = Queue { events: sender, on_failure, counts };
        (Self { queue: Some(Arc::new(queue)) }, writer)
    }

    /// Starts the trail of a request, with a place in the queue for the event of its end.
    ///
    /// # Errors
    /// See [`OnFailure::Block`].
    pub async fn begin(&self) -> Result<Trail, Status> {
        match &self.queue {
            Some(queue) => Ok(Trail(Some(Places { last: queue.place().await?, started: None, queue: queue.clone() }))),
            None => Ok(Trail::default()),
        }
    }

    /// Events that were lost.
    pub fn dropped(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.counts.dropped.load(Ordering::Relaxed))
    }

    /// How often the sink failed.
    pub fn failures(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.counts.failures.load(Ordering::Relaxed))
    }
}

/// What one request leaves in the audit log; nothing where there is no audit log.
#[derive(Debug, Default)]
pub struct Trail(Option<Places>);

#[derive(Debug)]
struct Places {
    last: Place,
    /// For a long-running request whose answer has not begun.
    started: Option<Place>,
    queue: Arc<Queue>,
}

/// A place in the queue.
#[derive(Debug)]
enum Place {
    /// It is there.
    Reserved(mpsc::OwnedPermit<AuditEvent>),
    /// If there is room when it is needed.
    IfFree,
}

impl Trail {
    /// The request has been understood and is about to be authorized.
    ///
    /// # Errors
    /// See [`OnFailure::Block`].
    pub async fn received(&mut self, facts: &RequestFacts) -> Result<(), Status> {
        let Some(places) = &mut self.0 else { return Ok(()) };
        let place = places.queue.place().await?;
        places.queue.put(place, facts, Stage::RequestReceived);
        if facts.attributes.as_ref().is_some_and(|attributes| attributes.request.is_long_running()) {
            places.started = Some(places.queue.place().await?);
        }
        Ok(())
    }

    /// The head of the answer goes to the client; the log has an event of it only for long-running requests.
    pub fn response_started(&mut self, facts: &RequestFacts) {
        if let Some(places) = &mut self.0
            && let Some(place) = places.started.take()
        {
            places.queue.put(place, facts, Stage::ResponseStarted);
        }
    }

    /// The request has ended.
    pub fn complete(&mut self, facts: &RequestFacts) {
        if let Some(places) = self.0.take() {
            let stage = if facts.end == End::Panicked { Stage::Panic } else { Stage::ResponseComplete };
            places.queue.put(places.last, facts, stage);
        }
    }
}

impl Queue {
    async fn place(&self) -> Result<Place, Status> {
        if self.on_failure == OnFailure::Drop {
            return Ok(Place::IfFree);
        }
        // Mostly there is room, and nothing to wait for.
        if let Ok(permit) = self.events.clone().try_reserve_owned() {
            return Ok(Place::Reserved(permit));
        }
        match timeout(PATIENCE, self.events.clone().reserve_owned()).await {
            Ok(Ok(permit)) => Ok(Place::Reserved(permit)),
            Ok(Err(_)) | Err(_) => Err(Status::not_audited()),
        }
    }

    /// Puts an event in its place. The writer says in the log how many were lost.
    fn put(&self, place: Place, facts: &RequestFacts, stage: Stage) {
        let put = match place {
            Place::Reserved(permit) => AuditEvent::new(facts, stage).map(|event| drop(permit.send(event))).is_ok(),
            Place::IfFree => match self.events.try_reserve() {
                Ok(permit) => AuditEvent::new(facts, stage).map(|event| permit.send(event)).is_ok(),
                Err(_full) => false,
            },
        };
        if !put {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
