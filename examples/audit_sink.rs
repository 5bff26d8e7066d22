//! An audit log that goes where an organisation wants it: here over a channel to a thread of its own.
//!
//! `cargo run --example audit_sink`

mod support;

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use qtunnel::stub::Stub;
use qtunnel::stub::audit::{AuditEvent, AuditSink, OnFailure, SinkError, Writing};
use serde_json::Value;

/// Hands every event over. A channel that is full is a failure: the stub tries again, and under `OnFailure::Block` lets no request
/// pass meanwhile.
#[derive(Debug)]
struct Channel(SyncSender<Value>);

impl AuditSink for Channel {
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a> {
        Box::pin(async move {
            for event in events {
                let event = serde_json::to_value(event).map_err(|error| SinkError(error.to_string()))?;
                self.0.try_send(event).map_err(|error| match error {
                    TrySendError::Full(_) => SinkError("the reader is too slow".to_owned()),
                    TrySendError::Disconnected(_) => SinkError("the reader is gone".to_owned()),
                })?;
            }
            Ok(())
        })
    }
}

/// Reads until the stub has stopped.
fn read(events: &Receiver<Value>) {
    for event in events {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
        println!("audit: {} {} {} {}", text("/stage"), text("/user/username"), text("/verb"), text("/requestURI"));
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (sender, events) = sync_channel(1024);
    let reading = std::thread::spawn(move || read(&events));

    let site = support::Site::new()?;
    let stub = Stub::builder(site.config()?).audit_sink(Channel(sender), OnFailure::Block).bind().await?;
    let tunnel = site.run(stub).await?;
    tunnel.client_of("alice").await?.get(support::PODS).await?;
    tunnel.stop().await?;

    reading.join().map_err(|_panic| anyhow::anyhow!("the reader panicked"))
}
