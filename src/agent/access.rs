//! Whether a user may act as another (`kubectl --as`): the cluster decides, asked with SubjectAccessReviews.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};

use super::upstream::{Lane, RequestBody, Upstream, UpstreamError};
use crate::kube::impersonation::{AccessDecision, AccessReview, AccessReviewKey, access_reviews, allowed};
use crate::wire::Identity;

/// Remembers for a short while what was allowed. A refusal is never remembered: whoever is given a right uses it at once.
#[derive(Debug, Default)]
pub struct AccessCache {
    allowed: Mutex<HashMap<AccessReviewKey, Instant>>,
}

/// How long a permission holds. client-go's authorizers keep one for minutes; a withdrawn right should not last.
const REMEMBER: Duration = Duration::from_secs(10);

/// Permissions remembered at most.
const MAX_REMEMBERED: usize = 4096;

/// How long one review may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer to a review, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a user may not act as another.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The cluster says no.
    #[error("the cluster does not allow it: cannot impersonate {what}{why}")]
    Denied {
        /// The user, group, uid or extra.
        what: String,
        /// The cluster's reason, behind a colon.
        why: String,
    },
    /// The cluster could not be asked.
    #[error("the cluster could not be asked whether this impersonation is allowed: {0}")]
    Upstream(#[from] UpstreamError),
    /// What the cluster said is no answer.
    #[error("the cluster's answer whether this impersonation is allowed cannot be read: {0}")]
    Unreadable(String),
}

impl AccessCache {
    /// Whether `original` may act as `requested`.
    pub async fn check(
        &self,
        upstream: &Upstream,
        original: &Identity,
        requested: &Identity,
    ) -> Result<(), AccessError> {
        for review in access_reviews(original, requested) {
            let key = review.cache_key();
            if self.remembers(&key) {
                continue;
            }
            match ask(upstream, &review).await? {
                AccessDecision::Allowed => self.remember(key),
                AccessDecision::Denied { reason } => {
                    let attributes = review.attributes();
                    let what = format!("{} {:?}", attributes.resource_and_subresource(), attributes.name);
                    let why = if reason.is_empty() { reason } else { format!(": {reason}") };
                    return Err(AccessError::Denied { what, why });
                }
            }
        }
        Ok(())
    }

    fn remembers(&self, key: &AccessReviewKey) -> bool {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.get(key).is_some_and(|since| since.elapsed() < REMEMBER)
    }

    fn remember(&self, key: AccessReviewKey) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.len() >= MAX_REMEMBERED {
            allowed.retain(|_, since| since.elapsed() < REMEMBER);
        }
        if allowed.len() < MAX_REMEMBERED {
            allowed.insert(key, Instant::now());
        }
    }
}

async fn ask(upstream: &Upstream, review: &AccessReview) -> Result<AccessDecision, AccessError> {
    let unreadable = |error: &dyn std::fmt::Display| AccessError::Unreadable(error.to_string());
    let body = Bytes::from(review.body().to_string());
    let mut request = Request::new(RequestBody::Own(Full::new(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() =
        upstream.uri(&PathAndQuery::from_static("/apis/authorization.k8s.io/v1/subjectaccessreviews"))?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(authorization) = upstream.authorization().await? {
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    let answer = upstream.send(request, Lane::Short, Some(PATIENCE)).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    let body = tokio::time::timeout(PATIENCE, body)
        .await
        .map_err(|_elapsed| unreadable(&"it did not end"))?
        .map_err(|error| unreadable(&error))?;
    if !status.is_success() {
        return Err(unreadable(&format!(
            "{status}; the agent's ServiceAccount needs the right to create subjectaccessreviews"
        )));
    }
    allowed(&body.to_bytes()).map_err(|error| unreadable(&error))
}
