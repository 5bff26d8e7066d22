//! The errors the tunnel answers with, as the `Status` objects that kubectl prints well.

use std::fmt;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::request_info::RequestInfo;
use crate::wire::{ClusterId, Identity};

/// A failure in the form of `metav1.Status` (`apimachinery/pkg/apis/meta/v1/types.go`).
///
/// There is a constructor for each situation, so that the code, the reason and the permission to retry always agree. Serialized it
/// is the JSON body, which is also what an audit event records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    code: StatusCode,
    /// A `StatusReason`; kubectl prints it in brackets. `None` where Kubernetes has no word for the code.
    reason: Option<&'static str>,
    message: String,
    // Boxed, because a status is the error of many functions, and errors are best small.
    details: Box<Details>,
    closes_connection: bool,
}

impl Status {
    /// 401: nobody known is asking.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("Unauthorized"), "Unauthorized".to_owned())
    }

    /// 401: what was sent to authenticate with is not what is needed; `message` says what is.
    pub fn unauthorized_because(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("Unauthorized"), message.into())
    }

    /// 403: `identity` may not do this; `why` says whose decision that was, or is empty.
    ///
    /// The message has the words of the API server (`apiserver/pkg/endpoints/handlers/responsewriters/errors.go`), and names the verb
    /// that authorization asked for.
    pub fn forbidden(identity: &Identity, request: &RequestInfo, why: &str) -> Self {
        let cannot = format!("User {:?} cannot {} {}", identity.user, request.effective_verb(), object_of(request));
        let cannot = if why.is_empty() { cannot } else { format!("{cannot}: {why}") };
        Self {
            details: Box::new(Details::of(request)),
            ..Self::new(StatusCode::FORBIDDEN, Some("Forbidden"), format!("{}{cannot}", subject_of(request)))
        }
    }

    /// 404: there is no such cluster. Only for an authenticated user: nobody else may learn which clusters exist.
    pub fn unknown_cluster(cluster: &ClusterId) -> Self {
        let message = format!("cluster \"{cluster}\" not found: check the server address in your kubeconfig");
        Self {
            details: Box::new(Details { kind: "clusters".to_owned(), name: cluster.to_string(), ..Details::default() }),
            ..Self::new(StatusCode::NOT_FOUND, Some("NotFound"), message)
        }
    }

    /// 404: there is nothing at this path.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("NotFound"), message.into())
    }

    /// 503 with `Retry-After`: the cluster is known, but none of its agents is connected.
    pub fn no_agent(cluster: &ClusterId) -> Self {
        Self::unavailable(format!("cluster \"{cluster}\": no agent connected"))
    }

    /// 503 with `Retry-After`: the request provably never reached the API server, so sending it again is safe.
    pub fn never_dispatched(cluster: &ClusterId, why: &str) -> Self {
        Self::unavailable(format!("cluster \"{cluster}\": the request did not reach the API server: {why}"))
    }

    /// 503 with `Retry-After`: whoever knows the user cannot be asked at the moment.
    pub fn not_authenticated_now() -> Self {
        let message = "the access node cannot find out who is asking at the moment; try again";
        Self::unavailable(message.to_owned())
    }

    /// 503 with `Retry-After`: nothing passes without a place in the audit log, and that cannot be written at the moment.
    pub fn not_audited() -> Self {
        Self::unavailable(
            "the access node cannot write its audit log at the moment; the request was not made".to_owned(),
        )
    }

    /// 504 without `Retry-After`: the request may have reached the API server. client-go would send even a POST again after a
    /// `Retry-After`, so there is none.
    pub fn lost_after_dispatch(cluster: &ClusterId, why: &str) -> Self {
        let message = format!(
            "Timeout: cluster \"{cluster}\": the answer was lost: {why}; the request may still complete, look before you repeat it"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, Some("Timeout"), message)
    }

    /// 429 with `Retry-After` and `Connection: close`: this stub is about to stop, and a new connection leads to another one.
    pub fn draining() -> Self {
        let message = "this access node is shutting down; connect again to reach another".to_owned();
        Self { closes_connection: true, ..Self::retry_later(message, 1) }
    }

    /// 400: the request cannot be understood, or could be understood in two ways.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("BadRequest"), message.into())
    }

    /// 421 (RFC 9110, section 15.5.20): the `Host` of the request is not the name that TLS was set up for.
    pub fn misdirected(host: &str, server_name: &str) -> Self {
        let message = format!("the request is for host {host:?}, but this connection was opened for {server_name:?}");
        Self::new(StatusCode::MISDIRECTED_REQUEST, None, message)
    }

    /// 502: the API server answered with something that must not be passed on.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, None, message.into())
    }

    /// 413: the request body is longer than `limit` bytes.
    pub fn payload_too_large(limit: u64) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("RequestEntityTooLarge"), message)
    }

    /// 431: the request's header fields are longer than the tunnel carries.
    pub fn headers_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None, message.into())
    }

    /// 429: too much is asked at once; try again after so many seconds. Only before the request is dispatched.
    pub fn too_many_requests(retry_after_seconds: u32) -> Self {
        Self::retry_later("too many requests, please try again later".to_owned(), retry_after_seconds)
    }

    /// 500: a fault of the tunnel itself.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = format!("Internal error occurred: {}", message.into());
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("InternalError"), message)
    }

    /// The HTTP status code.
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The complete answer, with the headers that the API server gives such an answer.
    ///
    /// Over HTTP/2 and HTTP/3 `Connection: close` has no place: the front must remove it, and say GOAWAY instead.
    pub fn into_response(self) -> Response<Bytes> {
        // A structure of strings and numbers always serializes.
        let body = Bytes::from(serde_json::to_vec(&self).unwrap_or_default());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if let Some(seconds) = self.details.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.closes_connection {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(body);
        *response.status_mut() = self.code;
        *response.headers_mut() = headers;
        response
    }

    fn new(code: StatusCode, reason: Option<&'static str>, message: String) -> Self {
        Self { code, reason, message, details: Box::default(), closes_connection: false }
    }

    fn unavailable(message: String) -> Self {
        Self {
            details: Box::new(Details::retry_after(1)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("ServiceUnavailable"), message)
        }
    }

    fn retry_later(message: String, seconds: u32) -> Self {
        Self {
            details: Box::new(Details::retry_after(seconds)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, Some("TooManyRequests"), message)
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let has_details = *self.details != Details::default();
        let fields = 6 + usize::from(self.reason.is_some()) + usize::from(has_details);
        let mut status = serializer.serialize_struct("Status", fields)?;
        status.serialize_field("kind", "Status")?;
        status.serialize_field("apiVersion", "v1")?;
        status.serialize_field("metadata", &serde_json::Map::new())?;
        status.serialize_field("status", "Failure")?;
        status.serialize_field("message", &self.message)?;
        if let Some(reason) = self.reason {
            status.serialize_field("reason", reason)?;
        }
        if has_details {
            status.serialize_field("details", &self.details)?;
        }
        status.serialize_field("code", &self.code.as_u16())?;
        status.end()
    }
}

/// `StatusDetails`, as far as it is used here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u32>,
}

impl Details {
    fn retry_after(seconds: u32) -> Self {
        Self { retry_after_seconds: Some(seconds), ..Self::default() }
    }

    fn of(request: &RequestInfo) -> Self {
        Self {
            name: request.name.clone(),
            group: request.api_group.clone(),
            kind: request.resource.clone(),
            retry_after_seconds: None,
        }
    }
}

/// `pods "x" is forbidden: `, as `NewForbidden` in `apimachinery/pkg/api/errors/errors.go` begins.
fn subject_of(request: &RequestInfo) -> String {
    if !request.is_resource_request {
        return "forbidden: ".to_owned();
    }
    let group = if request.api_group.is_empty() { String::new() } else { format!(".{}", request.api_group) };
    let name = if request.name.is_empty() { String::new() } else { format!(" {:?}", request.name) };
    format!("{}{group}{name} is forbidden: ", request.resource)
}

fn object_of(request: &RequestInfo) -> String {
    if !request.is_resource_request {
        return format!("path {:?}", request.path);
    }
    let scope = match request.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!("resource {:?} in API group {:?} {scope}", request.resource_and_subresource(), request.api_group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::RequestPath;
    use http::Method;

    fn cluster() -> ClusterId {
        "c1".parse().unwrap()
    }

    fn forbidden(method: Method, target: &str, why: &str) -> Status {
        let request = RequestInfo::new(&method, &RequestPath::parse(target).unwrap()).unwrap();
        Status::forbidden(&Identity::named("alice"), &request, why)
    }

    #[test]
    fn an_answer_has_the_bytes_that_kubectl_prints_well() {
        let response = Status::no_agent(&cluster()).into_response();
        assert_eq!(
            response.body(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"cluster \"c1\": no agent connected","reason":"ServiceUnavailable","details":{"retryAfterSeconds":1},"code":503}"#
        );
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[CONTENT_LENGTH], response.body().len().to_string());
    }

    #[test]
    fn a_refusal_is_byte_for_byte_what_the_api_server_says() {
        let response = forbidden(Method::GET, "/api/v1/namespaces/kube-system/secrets?limit=500", "").into_response();
        assert_eq!(
            response.body(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \"\" in the namespace \"kube-system\"","reason":"Forbidden","details":{"kind":"secrets"},"code":403}"#
        );
    }

    #[test]
    fn a_refusal_names_user_verb_and_object() {
        for (method, target, message) in [
            (
                Method::GET,
                "/api/v1/namespaces/demo/pods/x",
                r#"pods "x" is forbidden: User "alice" cannot get resource "pods" in API group "" in the namespace "demo": no"#,
            ),
            (
                Method::GET,
                "/api/v1/namespaces/demo/pods/x/exec?command=sh",
                r#"pods "x" is forbidden: User "alice" cannot create resource "pods/exec" in API group "" in the namespace "demo": no"#,
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/deployments",
                r#"deployments.apps is forbidden: User "alice" cannot deletecollection resource "deployments" in API group "apps" at the cluster scope: no"#,
            ),
            (Method::GET, "/x", r#"forbidden: User "alice" cannot get path "/x": no"#),
        ] {
            assert_eq!(forbidden(method, target, "no").message(), message);
        }
    }

    #[test]
    fn only_what_was_never_dispatched_invites_a_retry() {
        let request = forbidden(Method::GET, "/x", "");
        let id = cluster();
        for (status, code, retry_after) in [
            (Status::unauthorized(), 401, None),
            (request, 403, None),
            (Status::unknown_cluster(&id), 404, None),
            (Status::no_agent(&id), 503, Some("1")),
            (Status::never_dispatched(&id, "the agent is gone"), 503, Some("1")),
            (Status::lost_after_dispatch(&id, "the agent is gone"), 504, None),
            (Status::draining(), 429, Some("1")),
            (Status::bad_request("x"), 400, None),
            (Status::misdirected("a", "b"), 421, None),
            (Status::bad_gateway("x"), 502, None),
            (Status::payload_too_large(3 << 20), 413, None),
            (Status::too_many_requests(7), 429, Some("7")),
            (Status::internal("x"), 500, None),
        ] {
            let response = status.into_response();
            assert_eq!(response.status(), code);
            let header = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(header, retry_after, "{code}");
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["code"], code);
            let in_details = body["details"]["retryAfterSeconds"].as_u64().map(|seconds| seconds.to_string());
            assert_eq!(in_details.as_deref(), retry_after, "{code}");
        }
    }

    #[test]
    fn a_draining_stub_closes_the_connection() {
        assert_eq!(Status::draining().into_response().headers()[CONNECTION], "close");
        assert!(!Status::too_many_requests(1).into_response().headers().contains_key(CONNECTION));
    }
}
