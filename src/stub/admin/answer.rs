//! What an admin address answers to each path.

use std::fmt::Display;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::caller::Caller;
use super::requests::{self, DEFAULT_LIMIT};
use super::status::{Readiness, status_of};
use super::{Admin, INCIDENTS_PATH, REQUESTS_PATH, SERIES_PATH, STATUS_PATH, dashboard};
use crate::stub::metrics::Counted;
use crate::stub::shared::Shared;
use crate::wire::ClusterId;

/// What may be done with an answer: a page runs the scripts that come from here and talks to nobody else.
const POLICIES: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (REFERRER_POLICY, "no-referrer"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
];

/// What a request is answered with.
type Answer = Response<Full<Bytes>>;

/// Why a request is not answered, with the code that says so.
struct Refusal(StatusCode, &'static str);

impl Refusal {
    fn answer(self) -> Answer {
        let mut answer = text(self.0, self.1);
        if self.0 == StatusCode::METHOD_NOT_ALLOWED {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        answer
    }
}

impl Admin {
    /// Answers one request.
    pub(super) async fn answer(&self, caller: Caller, request: &Parts) -> Answer {
        let mut answer = self.answer_to(caller, request).await.unwrap_or_else(Refusal::answer);
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(POLICIES.map(|(name, value)| (name, HeaderValue::from_static(value))));
        answer
    }

    async fn answer_to(&self, caller: Caller, request: &Parts) -> Result<Answer, Refusal> {
        if ![Method::GET, Method::HEAD].contains(&request.method) {
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible here"));
        }
        // Health tells nothing that a web page could use, and is asked by whatever name an orchestrator knows.
        match request.uri.path() {
            "/healthz" => return Ok(text(StatusCode::OK, "ok")),
            "/readyz" => {
                return Ok(match Readiness::of(&self.shared) {
                    Readiness::Ready => text(StatusCode::OK, "ok"),
                    Readiness::StandingBy => {
                        text(StatusCode::SERVICE_UNAVAILABLE, "standing by: this stub does not lead")
                    }
                    Readiness::ShuttingDown => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
                });
            }
            _ => {}
        }
        let settings = &self.shared.config.admin;
        if !caller.means_us(&request.headers, &settings.hosts) {
            const WHY: &str = "ask by IP address, as localhost, or by a name that stands in `hosts` under [admin]";
            return Err(Refusal(StatusCode::MISDIRECTED_REQUEST, WHY));
        }
        if request.uri.path() == "/metrics" {
            return Ok(self.metrics().await);
        }
        if caller == Caller::Elsewhere && !settings.remote_dashboard {
            const WHY: &str = "this tells of users and their requests, and only callers on the stub's own host may see it; \
                               `remote_dashboard = true` under [admin] opens it to everybody who reaches this address";
            return Err(Refusal(StatusCode::FORBIDDEN, WHY));
        }
        self.details(&request.uri).await
    }

    /// What tells of users and requests.
    async fn details(&self, uri: &http::Uri) -> Result<Answer, Refusal> {
        let Shared { watchers, open_requests, .. } = &*self.shared;
        let query = Query(uri.query().unwrap_or_default());
        Ok(match uri.path() {
            STATUS_PATH => json(&status_of(&self.shared, query.cluster()?.as_ref()).await),
            REQUESTS_PATH => {
                json(&requests::list(open_requests, query.cluster()?.as_ref(), query.limit()?.unwrap_or(DEFAULT_LIMIT)))
            }
            INCIDENTS_PATH => {
                let cluster = query.cluster()?;
                let mut incidents = watchers.activity.incidents();
                incidents.retain(|incident| cluster.as_ref().is_none_or(|id| id.as_str() == incident.cluster));
                json(&incidents)
            }
            SERIES_PATH => json(&watchers.activity.series(query.cluster()?.as_ref())),
            path => match dashboard::file(path) {
                Some(file) => content(file.kind, file.bytes),
                None => text(StatusCode::NOT_FOUND, "there are /, /metrics, /healthz, /readyz and /api/v1/status"),
            },
        })
    }

    async fn metrics(&self) -> Answer {
        const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let status = status_of(&self.shared, None).await;
        match self.shared.watchers.metrics.text(&status, self.counted()) {
            Ok(metrics) => content(KIND, metrics),
            Err(error) => cannot_be_written(&error),
        }
    }

    fn counted(&self) -> Counted {
        let Shared { audit, policy_file, followed_files, watchers, .. } = &*self.shared;
        Counted {
            audit_events_dropped: audit.dropped(),
            audit_failures: audit.failures(),
            spans_dropped: watchers.tracer.dropped(),
            policy: policy_file.as_ref().map(|file| (file.rule_count(), file.failures())),
            files: followed_files.iter().map(|file| file.status()).collect(),
        }
    }
}

/// The query of a request. No value here needs percent-encoding.
struct Query<'a>(&'a str);

impl Query<'_> {
    fn cluster(&self) -> Result<Option<ClusterId>, Refusal> {
        self.value("cluster", "`cluster` is not the id of a cluster")
    }

    fn limit(&self) -> Result<Option<usize>, Refusal> {
        self.value("limit", "`limit` is not a number")
    }

    fn value<T: std::str::FromStr>(&self, name: &str, otherwise: &'static str) -> Result<Option<T>, Refusal> {
        let value = self.0.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name));
        value.map(|(_, value)| value.parse().map_err(|_| Refusal(StatusCode::BAD_REQUEST, otherwise))).transpose()
    }
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = content("text/plain; charset=utf-8", text);
    *answer.status_mut() = status;
    answer
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => content("application/json", bytes),
        Err(error) => cannot_be_written(&error),
    }
}

fn content(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn cannot_be_written(error: &dyn Display) -> Answer {
    tracing::warn!("cannot write an answer of the admin address: {error}");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written; the log says why")
}
