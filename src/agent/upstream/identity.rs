//! Which API server it is: the UID of the namespace kube-system, which every cluster has and no two share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::uri::PathAndQuery;
use serde::Deserialize;

use super::Upstream;
use super::health::ask;
use crate::wire::limits::MAX_API_SERVER_LENGTH;

/// What is known of an API server's identity.
#[derive(Debug, Default)]
pub struct Identity {
    uid: Option<Arc<str>>,
    asked_at: Option<Instant>,
    was_refused: bool,
}

/// How often it is asked again: another one may have taken its place behind the same address.
const INTERVAL: Duration = Duration::from_secs(60);

/// Where the agent asks, with its own credential.
const PATH: &str = "/api/v1/namespaces/kube-system";

/// As much of a namespace as counts.
#[derive(Debug, Deserialize)]
struct Namespace {
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    uid: String,
}

impl Identity {
    /// The UID, if the API server tells it. It is asked now and then; call it while it answers.
    pub async fn uid(&mut self, upstream: &Upstream, now: Instant) -> Option<Arc<str>> {
        let is_known = self.uid.is_some() || self.was_refused;
        if is_known && self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return self.uid.clone();
        }
        self.asked_at = Some(now);
        let (status, body) = match ask(upstream, &PathAndQuery::from_static(PATH)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!("cannot ask for the UID of the namespace kube-system: {error}");
                return self.uid.clone();
            }
        };
        if status == StatusCode::OK {
            self.uid =
                serde_json::from_slice::<Namespace>(&body).ok().and_then(|namespace| uid(&namespace.metadata.uid));
        } else if !std::mem::replace(&mut self.was_refused, true) {
            tracing::info!(
                "the API server answers {status} to the question for the UID of the namespace kube-system, so the stub cannot \
                 tell it from others; `get` on that namespace is all that the agent needs"
            );
        }
        self.uid.clone()
    }
}

/// A UID as it may be reported.
fn uid(text: &str) -> Option<Arc<str>> {
    let usual = (1..=MAX_API_SERVER_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    usual.then(|| text.into())
}
