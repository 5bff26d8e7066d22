//! Audit events on standard output, a line of JSON for each.

use tokio::io::{AsyncWriteExt, Stdout};

use super::file::lines;
use super::{AuditEvent, AuditSink, SinkError, Writing};

/// Writes to standard output. The stub's own log goes to standard error, so the two do not mix.
#[derive(Debug)]
pub struct StdoutSink(Stdout);

impl Default for StdoutSink {
    fn default() -> Self {
        Self(tokio::io::stdout())
    }
}

impl AuditSink for StdoutSink {
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a> {
        Box::pin(async move {
            let failed = |error: std::io::Error| SinkError(format!("standard output: {error}"));
            self.0.write_all(lines(events).as_bytes()).await.map_err(failed)?;
            self.0.flush().await.map_err(failed)
        })
    }
}
