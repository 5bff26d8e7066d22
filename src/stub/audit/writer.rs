//! The end of the queue where events come out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AuditEvent, AuditSink, Counts, OnFailure};

/// The most events that are given to the sink at once.
const BATCH: usize = 512;

/// How long events gather after a write before the next one: under load a write then takes many of them at once.
const GATHER: Duration = Duration::from_millis(5);

/// How long to wait after a failure before the next attempt, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often lost events are logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Takes events out of the queue and gives them to the sink.
#[derive(Debug)]
pub struct AuditWriter {
    sink: Box<dyn AuditSink>,
    events: mpsc::Receiver<AuditEvent>,
    on_failure: OnFailure,
    counts: Arc<Counts>,
    /// How many lost events have been logged.
    reported: u64,
    is_failing: bool,
}

impl AuditWriter {
    pub(super) fn new(
        sink: Box<dyn AuditSink>,
        events: mpsc::Receiver<AuditEvent>,
        on_failure: OnFailure,
        counts: Arc<Counts>,
    ) -> Self {
        Self { sink, events, on_failure, counts, reported: 0, is_failing: false }
    }

    /// Writes until `stop`, and then whatever is queued. It ends once no request is left whose end could be an event, so
    /// the caller bounds how long it waits.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        let mut batch = Vec::with_capacity(BATCH);
        let mut stopping = false;
        loop {
            tokio::select! {
                count = self.events.recv_many(&mut batch, BATCH) => match count {
                    0 => break,
                    _ => {
                        self.write(&mut batch).await;
                        self.gather(&stop).await;
                    }
                },
                _ = report.tick() => self.report_lost(),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.events.close();
                }
            }
        }
        self.report_lost();
    }

    async fn write(&mut self, batch: &mut Vec<AuditEvent>) {
        let mut pause = RETRY.0;
        while let Err(error) = self.sink.write(batch).await {
            self.counts.failures.fetch_add(1, Ordering::Relaxed);
            if !std::mem::replace(&mut self.is_failing, true) {
                let consequence = match self.on_failure {
                    OnFailure::Block => "requests wait until it can, and are then refused",
                    OnFailure::Drop => "its events are lost until it can",
                };
                tracing::error!("the audit log cannot be written: {error}; {consequence}");
            }
            if self.on_failure == OnFailure::Drop {
                self.counts.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
                batch.clear();
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
        batch.clear();
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!("the audit log is written again");
        }
    }

    /// Lets further events come together, as long as the queue has room for more of them than one write takes.
    async fn gather(&mut self, stop: &CancellationToken) {
        if self.events.capacity() > BATCH {
            // Either way it is time to go on.
            let _ = timeout(GATHER, stop.cancelled()).await;
        }
    }

    fn report_lost(&mut self) {
        let dropped = self.counts.dropped.load(Ordering::Relaxed);
        let lost = dropped.saturating_sub(std::mem::replace(&mut self.reported, dropped));
        if lost > 0 {
            tracing::error!(lost, "audit events were lost: the sink failed, or the queue was full");
        }
    }
}
