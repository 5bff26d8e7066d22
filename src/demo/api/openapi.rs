//! OpenAPI documents: version 3, one per group version behind an index with hashes
//! (`k8s.io/kube-openapi/pkg/handler3`), and version 2 as JSON and protobuf (`…/pkg/handler`).

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{
    body::Body,
    gnostic,
    request::Query,
    resources::{RESOURCES, Resource, group_versions},
    response::{self, Response},
    schemas,
};

const INDEX_PATH: &str = "/openapi/v3";
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// As the real server writes it: the `@` is not valid in a media type, and kubectl accepts either.
const V2_PROTOBUF_SENT: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents, made once.
pub(super) struct OpenApi {
    index: Bytes,
    groups: Vec<Document>,
    v2: Document,
    v2_protobuf: Document,
}

struct Document {
    /// Path below `/openapi/v3/`, for example `apis/apps/v1`.
    path: String,
    bytes: Bytes,
    hash: String,
}

impl OpenApi {
    /// The documents of this API.
    pub fn new() -> Self {
        let groups: Vec<Document> = group_versions()
            .into_iter()
            .map(|(group, version)| {
                let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
                Document::new(path, version_3(group, version).to_string())
            })
            .collect();
        let paths = groups.iter().map(|document| {
            let url = format!("{INDEX_PATH}/{}?hash={}", document.path, document.hash);
            (document.path.clone(), json!({"serverRelativeURL": url}))
        });
        let index = json!({"paths": paths.collect::<Map<_, _>>()});
        let v2 = version_2();
        Self {
            index: index.to_string().into(),
            groups,
            v2_protobuf: Document::new(String::new(), gnostic::encode(&v2)),
            v2: Document::new(String::new(), v2.to_string()),
        }
    }

    /// The answer for that path, if it is one of these documents.
    pub fn answer(&self, path: &str, query: &Query, headers: &HeaderMap) -> Option<Response> {
        if path == INDEX_PATH || path == "/openapi/v3/" {
            return Some(sized(StatusCode::OK, "text/plain; charset=utf-8", &self.index));
        }
        if path == "/openapi/v2" {
            return Some(self.version_2(headers));
        }
        let path = path.strip_prefix("/openapi/v3/")?;
        let document = self.groups.iter().find(|document| document.path == path)?;
        Some(match query.get("hash").filter(|hash| !hash.is_empty()) {
            Some(hash) if hash != document.hash => moved(document),
            given => document.answer(headers, "application/json", given.is_some()),
        })
    }

    fn version_2(&self, headers: &HeaderMap) -> Response {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.contains(V2_PROTOBUF) || accept.contains(V2_PROTOBUF_SENT) {
            return self.v2_protobuf.answer(headers, V2_PROTOBUF_SENT, false);
        }
        self.v2.answer(headers, "application/json", false)
    }
}

impl Document {
    fn new(path: String, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { path, hash: hash(&bytes), bytes }
    }

    /// The document, or 304 when the client has it. With its hash in the URL it never changes.
    fn answer(&self, headers: &HeaderMap, content_type: &'static str, by_hash: bool) -> Response {
        let tag = format!("\"{}\"", self.hash);
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
        let mut response = if known {
            sized(StatusCode::NOT_MODIFIED, content_type, &Bytes::new())
        } else {
            sized(StatusCode::OK, content_type, &self.bytes)
        };
        let answer = response.headers_mut();
        // Hexadecimal digits in quotes are a valid header value.
        answer.insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits"));
        answer.insert(header::VARY, HeaderValue::from_static("Accept"));
        if by_hash {
            answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        response
    }
}

/// A digest as OpenAPI hashes and entity tags show it: SHA-512 in capital hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA512, bytes).as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A wrong hash leads to the right one.
fn moved(document: &Document) -> Response {
    let location = format!("{INDEX_PATH}/{}?hash={}", document.path, document.hash);
    let text = format!("<a href=\"{location}\">Moved Permanently</a>.\n\n");
    let mut response = response::of(StatusCode::MOVED_PERMANENTLY, "text/html; charset=utf-8", text.into_bytes());
    // A path of the resource table and hexadecimal digits are a valid header value.
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&location).expect("a plain path"));
    response
}

fn sized(code: StatusCode, content_type: &'static str, bytes: &Bytes) -> Response {
    let mut response = response::with_body(code, content_type, Body::whole(bytes.clone()));
    response.headers_mut().insert(header::CONTENT_LENGTH, bytes.len().into());
    response
}

fn version_3(group: &str, version: &str) -> Value {
    let resources = || RESOURCES.iter().filter(|r| r.group == group && r.version == version);
    let paths = resources().flat_map(|resource| {
        let content = |kind: &str| json!({kind: {"schema": {"$ref": format!("#/components/schemas/{}", schemas::name_of(resource))}}});
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
        operations(resource, &|action| {
            let mut operation = operation(resource, action);
            operation["responses"] = json!({"200": {"description": "OK", "content": content("application/json")}});
            operation["parameters"] = WRITE_PARAMETERS.iter().map(|name| parameter(name)).collect();
            if action == "patch" {
                operation["requestBody"] = json!({"content": content("application/apply-patch+yaml")});
            }
            operation
        })
    });
    let paths: Map<String, Value> = paths.collect();
    let schemas = schemas::reachable_from(resources().map(schemas::name_of));
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": paths, "components": {"schemas": schemas},
    })
}

fn version_2() -> Value {
    let paths = RESOURCES.iter().flat_map(|resource| {
        let parameter = |name: &&str| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true});
        operations(resource, &|action| {
            let mut operation = operation(resource, action);
            operation["responses"] = json!({"200": {"description": "OK"}});
            operation["parameters"] = WRITE_PARAMETERS.iter().map(&parameter).collect();
            operation
        })
    });
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": paths.collect::<Map<_, _>>(), "definitions": schemas::as_definitions(),
    })
}

/// kubectl looks for these to know whether the server validates fields and tries without writing.
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];

/// The paths of a resource with the operations kubectl looks at: the writing ones.
fn operations(resource: &Resource, operation: &dyn Fn(&str) -> Value) -> Vec<(String, Value)> {
    let base = match (resource.group, resource.namespaced) {
        ("", true) => format!("/api/{}/namespaces/{{namespace}}/{}", resource.version, resource.plural),
        ("", false) => format!("/api/{}/{}", resource.version, resource.plural),
        (group, true) => format!("/apis/{group}/{}/namespaces/{{namespace}}/{}", resource.version, resource.plural),
        (group, false) => format!("/apis/{group}/{}/{}", resource.version, resource.plural),
    };
    let mut paths = vec![(base.clone(), json!({"post": operation("post")}))];
    if resource.is_stored() {
        let item = json!({"patch": operation("patch"), "put": operation("put"), "delete": operation("delete")});
        paths.push((format!("{base}/{{name}}"), item));
    }
    paths
}

fn operation(resource: &Resource, action: &str) -> Value {
    json!({
        "operationId": format!("{action}{}{}", resource.kind, resource.group.replace('.', "_")),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind":
            {"group": resource.group, "kind": resource.kind, "version": resource.version},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_hash_is_moved_to_the_right_one() {
        let documents = OpenApi::new();
        let stale = Query::parse("hash=ABC");
        let response = documents.answer("/openapi/v3/api/v1", &stale, &HeaderMap::new()).unwrap();
        assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
        let location = response.headers()[header::LOCATION].to_str().unwrap().to_owned();
        let (path, query) = location.split_once('?').unwrap();
        let response = documents.answer(path, &Query::parse(query), &HeaderMap::new()).unwrap();
        assert_eq!(response.headers()[header::CACHE_CONTROL], "public, immutable");
    }

    #[test]
    fn a_known_document_is_not_sent_again() {
        let documents = OpenApi::new();
        let first = documents.answer("/openapi/v2", &Query::default(), &HeaderMap::new()).unwrap();
        let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone())]);
        let second = documents.answer("/openapi/v2", &Query::default(), &headers).unwrap();
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
    }
}
