//! Answers: JSON, text, errors, and which form of an object the client asked for.

use std::{io::Write, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{body::Body, request::Query, status::ApiError};

/// An answer.
pub(super) type Response = http::Response<Body>;

/// Answers longer than this are compressed when the client accepts gzip
/// (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/writers.go`).
const GZIP_FROM: usize = 128 * 1024;
/// Go's `net/http` gives answers up to this size a Content-Length; longer ones are chunked.
const SIZED_UP_TO: usize = 2048;

/// How objects are to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// As they are.
    Object,
    /// As a `Table` of that version of `meta.k8s.io`.
    Table(&'static str),
    /// Metadata alone (`PartialObjectMetadata`).
    Metadata,
}

impl View {
    /// The first media type of `Accept` this API can produce. Errors: 406.
    pub fn negotiate(headers: &HeaderMap) -> Result<Self, ApiError> {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
        let mut types = accept.flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty()).peekable();
        if types.peek().is_none() {
            return Ok(Self::Object);
        }
        types.find_map(Self::of_media_type).ok_or_else(ApiError::not_acceptable)
    }

    fn of_media_type(media_type: &str) -> Option<Self> {
        let mut parts = media_type.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
            return None;
        }
        let parameters: Vec<&str> = parts.collect();
        let parameter = |key: &str| parameters.iter().find_map(|p| p.strip_prefix(key)?.strip_prefix('='));
        match (parameter("as"), parameter("v")) {
            (None, _) => Some(Self::Object),
            (Some("Table"), Some("v1")) => Some(Self::Table("v1")),
            (Some("Table"), Some("v1beta1")) => Some(Self::Table("v1beta1")),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), _) => Some(Self::Metadata),
            _ => None,
        }
    }
}

/// A list as a real API server writes it: items without kind and apiVersion.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List {
    pub kind: String,
    pub api_version: String,
    pub metadata: ListMeta,
    pub items: Vec<Item>,
}

/// `ListMeta`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub resource_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#continue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_item_count: Option<usize>,
}

/// One object of a list.
pub(super) struct Item(pub Arc<Value>);

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.as_object().into_iter().flatten() {
            if key != "kind" && key != "apiVersion" {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

/// A JSON answer.
pub(super) fn json(code: StatusCode, value: &impl Serialize) -> Response {
    // Every value given here has string keys and no failing serializer.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    of(code, "application/json", bytes)
}

/// An answer of text.
pub(super) fn text(code: StatusCode, text: impl Into<String>) -> Response {
    let mut response = of(code, "text/plain; charset=utf-8", text.into().into_bytes());
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An answer of that type.
pub(super) fn of(code: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Response {
    with_body(code, content_type, Body::whole(bytes))
}

/// An answer with any body.
pub(super) fn with_body(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The answer to a failed request.
pub(super) fn error(error: &ApiError) -> Response {
    json(error.code, &error.status)
}

/// Whether a person reads the answer: `?pretty`, curl, Wget, or a browser (`responsewriters.isPrettyPrint`).
pub(super) fn is_pretty_wanted(request: &HeaderMap, query: &str) -> bool {
    let query = Query::parse(query);
    if query.get("pretty").is_some() {
        return query.flag("pretty");
    }
    let agent = request.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    [b"curl".as_slice(), b"Wget", b"Mozilla/5.0"].iter().any(|reader| agent.starts_with(reader))
}

/// A JSON answer with line breaks; others as they are.
pub(super) fn pretty(mut response: Response) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    let sized = response.headers().contains_key(header::CONTENT_LENGTH);
    let parsed = response.body().as_whole().filter(|_| is_json && !sized).map(|b| serde_json::from_slice::<Value>(b));
    if let Some(Ok(value)) = parsed {
        // What was parsed as JSON can be written as JSON.
        *response.body_mut() = Body::whole(format!("{value:#}\n"));
    }
    response
}

/// Compresses long JSON answers where the client accepts it, and sends what is not short in chunks.
pub(super) fn as_a_real_server_sends_it(request: &HeaderMap, mut response: Response) -> Response {
    let Some(bytes) = response.body().as_whole().filter(|bytes| bytes.len() > SIZED_UP_TO) else {
        return response;
    };
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if bytes.len() > GZIP_FROM && is_json && accepts_gzip(request) {
        let compressed = gzip(bytes);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        *response.body_mut() = Body::chunked(compressed);
    } else if !response.headers().contains_key(header::CONTENT_LENGTH) {
        *response.body_mut() = Body::chunked(bytes.clone());
    }
    response
}

/// Whether `Accept-Encoding` names gzip.
pub(super) fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|coding| coding.split(';').next().is_some_and(|c| c.trim() == "gzip"))
}

/// The bytes, compressed.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::new(4));
    // Writing to a vector cannot fail.
    encoder.write_all(bytes).expect("a vector takes every byte");
    encoder.finish().expect("a vector takes every byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(accept: &'static str) -> Option<View> {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
        View::negotiate(&headers).ok()
    }

    #[test]
    fn kubectl_get_is_shown_a_table() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(view(accept), Some(View::Table("v1")));
    }

    #[test]
    fn protobuf_with_json_as_second_choice_is_answered_in_json() {
        assert_eq!(view("application/vnd.kubernetes.protobuf,application/json"), Some(View::Object));
        assert_eq!(view("application/vnd.kubernetes.protobuf"), None);
    }
}
