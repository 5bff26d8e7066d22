//! Audit events in batches to a webhook, as kube-apiserver sends them with `--audit-webhook-config-file`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::{AuditEvent, AuditSink, SinkError, Writing};
use crate::stub::outbound::OutboundError;
use crate::stub::reload::{Followed, Reload};
use crate::stub::webhook_file::{WebhookFile, WebhookFileError};

/// How long to wait before each further attempt with the same events.
const BACKOFF: [Duration; 3] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];

/// POSTs an `EventList` of `audit.k8s.io/v1` for each batch. While one is on its way further events gather, so that a slow
/// webhook gets larger batches. A batch may come twice, where the answer to it was lost; the ids of its events tell.
#[derive(Debug)]
pub struct WebhookSink {
    file: Arc<Followed<WebhookFile>>,
}

impl WebhookSink {
    /// Reads the kubeconfig for the first time. A request may take as long as `timeout`. The webhook need not answer yet.
    ///
    /// # Errors
    /// It cannot be read, or does not lead anywhere.
    pub fn load(kubeconfig: &Path, timeout: Duration) -> Result<Self, WebhookFileError> {
        let file = WebhookFile::new("audit webhook", kubeconfig, timeout);
        Ok(Self { file: Arc::new(Followed::load(file)?) })
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.file.clone()
    }

    async fn post(&self, list: Bytes) -> Result<(), OutboundError> {
        let webhook = self.file.current().clone();
        webhook.post(list).await
    }
}

impl AuditSink for WebhookSink {
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a> {
        Box::pin(async move {
            let list = EventList::of(events);
            let list = serde_json::to_vec(&list).map_err(|error| SinkError(format!("an event: {error}")))?;
            let list = Bytes::from(list);
            for pause in BACKOFF {
                if self.post(list.clone()).await.is_ok() {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
            }
            self.post(list).await.map_err(|error| SinkError(format!("the audit webhook {error}")))
        })
    }
}

/// `apiserver/pkg/apis/audit/v1/types.go`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Metadata,
    items: &'a [AuditEvent],
}

#[derive(Serialize)]
struct Metadata {}

impl<'a> EventList<'a> {
    fn of(items: &'a [AuditEvent]) -> Self {
        Self { kind: "EventList", api_version: "audit.k8s.io/v1", metadata: Metadata {}, items }
    }
}
