//! Watches: events as they happen, over chunked HTTP or WebSocket (`k8s.io/apiserver/pkg/endpoints/handlers/watch.go`).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    Shared,
    body::{Body, Gone},
    crud,
    request::{Query, ResourceTarget},
    resources::Resource,
    response::{self, ListMeta, Response, View},
    selector::Selector,
    sink::Sink,
    status::ApiError,
    store::{Event, TooOld},
    table,
};

/// How often a bookmark is sent to who asked for them.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);
/// How long a watch lasts when the client does not say: at random between half an hour and an hour
/// (`minRequestTimeout`).
const DEFAULT_SECONDS: std::ops::Range<u64> = 1800..3600;

/// One watch, ready to run.
pub(super) struct Watch {
    api: Arc<Shared>,
    resource: &'static Resource,
    namespace: Option<String>,
    selector: Selector,
    view: View,
    query: Query,
    start: Start,
    deadline: Instant,
    bookmarks: bool,
}

enum Start {
    /// The present objects first, then changes; whether the end of the present is marked.
    Present { marked: bool },
    /// Changes after this revision.
    After(u64),
}

impl Watch {
    /// Reads what is to be watched. Errors: 400 for a selector or version that cannot be parsed.
    pub fn new(
        api: &Arc<Shared>,
        resource: &'static Resource,
        target: &ResourceTarget,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let mut selector = crud::selector(query)?;
        if let Some(name) = &target.name {
            selector = Selector::parse(query.get("labelSelector"), Some(&format!("metadata.name={name}")))?;
        }
        let bookmarks = query.flag("allowWatchBookmarks");
        let start = match query.get("resourceVersion").unwrap_or_default() {
            _ if query.flag("sendInitialEvents") => Start::Present { marked: bookmarks },
            "" | "0" => Start::Present { marked: false },
            version => Start::After(version.parse().map_err(|_| {
                ApiError::bad_request(format!(
                    "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing"
                ))
            })?),
        };
        let seconds = query.number("timeoutSeconds").filter(|seconds| *seconds > 0);
        let seconds = seconds.unwrap_or_else(|| rand::rng().random_range(DEFAULT_SECONDS)).min(DEFAULT_SECONDS.end);
        Ok(Self {
            api: api.clone(),
            resource,
            namespace: target.namespace.clone(),
            selector,
            view: View::negotiate(headers)?,
            query: query.clone(),
            start,
            deadline: Instant::now() + Duration::from_secs(seconds),
            bookmarks,
        })
    }

    /// Answers with a body that carries the events.
    pub fn over_http(self) -> Response {
        let (sender, body) = Body::streamed();
        tokio::spawn(async move {
            // The client went away or the time is over: both end the body.
            let _ = self.run(Sink::Body(sender)).await;
        });
        response::with_body(StatusCode::OK, "application/json", body)
    }

    /// Sends events until the time is over or the client gone.
    pub async fn run(self, sink: Sink) -> Result<(), Gone> {
        let mut newest = self.api.store.follow();
        let mut next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        let mut seen = match self.start {
            Start::Present { marked } => self.send_present(&sink, marked).await?,
            Start::After(revision) => revision,
        };
        loop {
            newest.mark_unchanged();
            match self.api.store.events_since(seen, self.resource, self.namespace.as_deref()) {
                Ok((revision, events)) => {
                    seen = seen.max(revision);
                    for event in &events {
                        self.send_event(&sink, event).await?;
                    }
                }
                Err(TooOld { oldest }) => return self.send_too_old(&sink, seen, oldest).await,
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(self.deadline) => return Ok(()),
                () = sleep_until(next_bookmark), if self.bookmarks => {
                    next_bookmark += BOOKMARK_INTERVAL;
                    self.send_bookmark(&sink, seen, json!({})).await?;
                }
                () = sink.gone() => return Err(Gone),
            }
        }
    }

    async fn send_present(&self, sink: &Sink, marked: bool) -> Result<u64, Gone> {
        let (revision, objects) = self.api.store.list(self.resource, self.namespace.as_deref(), None);
        for object in objects.iter().filter(|object| self.selector.matches(object)) {
            self.send(sink, "ADDED", object).await?;
        }
        if marked {
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            self.send_bookmark(sink, revision, annotations).await?;
        }
        Ok(revision)
    }

    /// A change into or out of the selection reads as a creation or a deletion.
    async fn send_event(&self, sink: &Sink, event: &Event) -> Result<(), Gone> {
        let was = event.before.as_ref().is_some_and(|object| self.selector.matches(object));
        let is = !event.deleted && self.selector.matches(&event.after);
        match (was, is) {
            (false, true) => self.send(sink, "ADDED", &event.after).await,
            (true, true) => self.send(sink, "MODIFIED", &event.after).await,
            (true, false) => self.send(sink, "DELETED", &event.after).await,
            (false, false) => Ok(()),
        }
    }

    async fn send(&self, sink: &Sink, kind: &str, object: &Value) -> Result<(), Gone> {
        let line = match self.view {
            View::Object => json!({"type": kind, "object": object}),
            View::Metadata => {
                json!({"type": kind, "object": table::partial_metadata("v1", object)})
            }
            View::Table(version) => {
                let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                let metadata = ListMeta { resource_version: revision, ..ListMeta::default() };
                let objects = std::iter::once(object);
                let table = table::of_objects(self.resource, version, &metadata, objects, &self.query);
                json!({"type": kind, "object": table})
            }
        };
        sink.send(printed(&line)).await
    }

    async fn send_bookmark(&self, sink: &Sink, revision: u64, annotations: Value) -> Result<(), Gone> {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if annotations != json!({}) {
            metadata["annotations"] = annotations;
        }
        let kind = self.resource.kind;
        let object = json!({"kind": kind, "apiVersion": self.resource.group_version(), "metadata": metadata});
        sink.send(printed(&json!({"type": "BOOKMARK", "object": object}))).await
    }

    async fn send_too_old(&self, sink: &Sink, asked: u64, oldest: u64) -> Result<(), Gone> {
        let error = ApiError::expired(format!("too old resource version: {asked} ({oldest})"));
        sink.send(printed(&json!({"type": "ERROR", "object": error.status}))).await
    }
}

fn printed(event: &Value) -> Bytes {
    let mut line = event.to_string();
    line.push('\n');
    line.into()
}
