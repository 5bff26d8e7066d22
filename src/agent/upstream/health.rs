//! Whether the API server answers: a round trip, again and again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::sync::watch;

use super::identity::Identity;
use super::{Lane, RequestBody, Upstream, UpstreamError};

/// What the last round trip to the API server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How long it took.
    pub latency: Duration,
    /// What was wrong; nothing if it answered that it is ready.
    pub error: Option<String>,
    /// The UID of its namespace kube-system, if it has told that.
    pub uid: Option<Arc<str>>,
}

/// How often the API server is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks the API server for as long as somebody looks at `health`.
pub async fn watch_health(upstream: Arc<Upstream>, health: watch::Sender<Health>) {
    let mut was_healthy = None;
    let mut identity = Identity::default();
    while !health.is_closed() {
        let began = Instant::now();
        let error = round_trip(&upstream).await.err();
        if was_healthy != Some(error.is_none()) {
            was_healthy = Some(error.is_none());
            match &error {
                None => tracing::info!(api_server = %upstream.authority(), "the API server answers"),
                Some(error) => {
                    tracing::warn!(api_server = %upstream.authority(), "the API server is not ready: {error}")
                }
            }
        }
        let latency = began.elapsed();
        let uid = match &error {
            None => identity.uid(&upstream, began).await,
            Some(_) => health.borrow().uid.clone(),
        };
        health.send_replace(Health { latency, error, uid });
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn round_trip(upstream: &Upstream) -> Result<(), String> {
    let (status, _) = ask(upstream, &PathAndQuery::from_static("/readyz")).await?;
    // An API server that does not let the agent ask is still one that answers.
    if status.is_server_error() { Err(format!("/readyz says {status}")) } else { Ok(()) }
}

/// Makes a short GET with the agent's own credential, and reads the whole answer.
pub(super) async fn ask(upstream: &Upstream, path: &PathAndQuery) -> Result<(StatusCode, Bytes), String> {
    let answer = send(upstream, path).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    let body = tokio::time::timeout(PATIENCE, body)
        .await
        .map_err(|_elapsed| format!("the answer to {path} did not end"))?
        .map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

async fn send(upstream: &Upstream, path: &PathAndQuery) -> Result<http::Response<super::AnswerBody>, UpstreamError> {
    let mut request = Request::new(RequestBody::empty());
    *request.uri_mut() = upstream.uri(path)?;
    if let Some(authorization) = upstream.authorization().await? {
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    upstream.send(request, Lane::Short, Some(PATIENCE)).await
}
