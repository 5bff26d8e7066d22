//! What a request is about, by the API server's own rules (`apiserver/pkg/endpoints/request/requestinfo.go`).

use http::Method;

use super::request_path::RequestPath;

mod field_selector;

/// What `RequestInfo` is in the API server: the attributes that authorization and audit speak of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the request is about an API resource; otherwise only `path` and `verb` are filled in.
    pub is_resource_request: bool,
    /// The decoded path.
    pub path: String,
    /// The Kubernetes verb (`get`, `list`, `watch`, `deletecollection`, ...); the HTTP method in lower case for a request that is
    /// not about a resource. Empty for an HTTP method without a verb. Authorization must ask [`Self::effective_verb`].
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// The API group; empty for the core group.
    pub api_group: String,
    /// The API version.
    pub api_version: String,
    /// The namespace; empty at the cluster scope and across all namespaces.
    pub namespace: String,
    /// The resource, in the plural.
    pub resource: String,
    /// What follows the name, such as `status` or `exec`. Empty without one.
    pub subresource: String,
    /// The object's name; empty where the request names none.
    pub name: String,
    /// The path from the resource on.
    pub parts: Vec<String>,
    /// Whether a log is asked to go on as the container writes (`follow=true`).
    pub follow: bool,
}

impl RequestInfo {
    /// Reads a request as the API server does.
    ///
    /// One difference: a label selector that does not parse makes the API server forget the name a field selector gave. Here the
    /// name stays; the API server refuses such a request anyway (400).
    ///
    /// # Errors
    /// A path such as `/api/v1/watch` that says nothing to watch; the API server answers it with a 500.
    pub fn new(method: &Method, path: &RequestPath) -> Result<Self, UnknownRequest> {
        let other = || Self { path: path.path().to_owned(), verb: method.as_str().to_lowercase(), ..Self::default() };
        let segments: Vec<&str> = path.segments().collect();
        let (api_prefix, api_group, version_and_rest) = match segments.as_slice() {
            ["api", rest @ ..] => ("api", "", rest),
            ["apis", group, rest @ ..] => ("apis", *group, rest),
            _ => return Ok(other()),
        };
        let [api_version, rest @ ..] = version_and_rest else { return Ok(other()) };
        let (verb, parts) = match rest {
            [] => return Ok(other()),
            ["proxy" | "watch"] => return Err(UnknownRequest { path: path.path().to_owned() }),
            [verb @ ("proxy" | "watch"), parts @ ..] => (*verb, parts),
            parts => (verb_of(method), parts),
        };
        let (namespace, parts) = split_namespace(parts);
        let mut info = Self {
            is_resource_request: true,
            path: path.path().to_owned(),
            verb: verb.to_owned(),
            api_prefix: api_prefix.to_owned(),
            api_group: api_group.to_owned(),
            api_version: (*api_version).to_owned(),
            namespace: namespace.to_owned(),
            parts: parts.iter().map(|part| (*part).to_owned()).collect(),
            follow: path.query_value("follow").is_some_and(|value| is_true(&value)),
            ..Self::default()
        };
        info.name_the_object();
        info.infer_from_missing_name(path);
        Ok(info)
    }

    /// The verb that authorization must ask for.
    ///
    /// `create` for what runs commands or opens connections, whatever the HTTP method: a WebSocket upgrade is a GET, whose plain verb
    /// would be `get`, and a right to read must not be a right to run. `nodes/proxy` reaches the kubelet, which runs commands in
    /// every pod of the node.
    pub fn effective_verb(&self) -> &str {
        if self.is_connection_to_a_pod() || self.is_core("nodes", "proxy") { "create" } else { &self.verb }
    }

    /// Whether the API server sets no deadline for this request (`BasicLongRunningRequestCheck` in
    /// `apiserver/pkg/server/filters/longrunning.go`, with the verbs and subresources kube-apiserver gives it).
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || (self.is_resource_request
                && matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
            || (!self.is_resource_request && self.path.starts_with("/debug/pprof/"))
    }

    /// Whether the answer may go on without an end: every long-running request but a log that is not followed and a profile.
    pub fn is_streaming(&self) -> bool {
        self.is_resource_request && self.is_long_running() && (self.subresource != "log" || self.follow)
    }

    /// `resource` or `resource/subresource`, as RBAC rules write it.
    pub fn resource_and_subresource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    fn is_connection_to_a_pod(&self) -> bool {
        ["exec", "attach", "portforward"].iter().any(|subresource| self.is_core("pods", subresource))
    }

    fn is_core(&self, resource: &str, subresource: &str) -> bool {
        self.is_resource_request
            && self.api_group.is_empty()
            && self.resource == resource
            && self.subresource == subresource
    }

    /// Parts are resource, name, subresource, and what the API server does not interpret. The verb `proxy` has no subresource.
    fn name_the_object(&mut self) {
        let mut parts = self.parts.iter().cloned();
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().unwrap_or_default();
        if self.verb != "proxy" {
            self.subresource = parts.next().unwrap_or_default();
        }
    }

    /// A request without a name is about the collection: `get` becomes `list` or `watch`, `delete` becomes `deletecollection`.
    fn infer_from_missing_name(&mut self, path: &RequestPath) {
        if !self.name.is_empty() {
            return;
        }
        if self.verb == "get" {
            let watch = path.query_value("watch").is_some_and(|value| is_true(&value));
            self.verb = if watch { "watch" } else { "list" }.to_owned();
            self.name = name_selected(path).unwrap_or_default();
        } else if self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
    }
}

/// A path under the API prefix that names no resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to determine kind and namespace from the path {path:?}")]
pub struct UnknownRequest {
    path: String,
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Splits `namespaces/{namespace}/{resource}/...`. A namespace itself, and its own subresources, keep their parts.
fn split_namespace<'a, 'b>(parts: &'b [&'a str]) -> (&'a str, &'b [&'a str]) {
    match parts {
        ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize", ..]) => (namespace, rest),
        ["namespaces", namespace, ..] => (namespace, parts),
        _ => ("", parts),
    }
}

/// `Convert_Slice_string_To_bool` in `apimachinery/pkg/runtime/conversion.go`: all is true but `0` and `false`, even nothing.
fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// The name that `fieldSelector=metadata.name=x` stands for, where the API server could read the list options at all.
fn name_selected(path: &RequestPath) -> Option<String> {
    let is_integer = |key| path.query_value(key).is_none_or(|value| value.parse::<i64>().is_ok());
    if !is_integer("limit") || !is_integer("timeoutSeconds") {
        return None;
    }
    let name = field_selector::exact_match(&path.query_value("fieldSelector")?, "metadata.name")?;
    // `IsValidPathSegmentName` in `apimachinery/pkg/api/validation/path/name.go`.
    let is_segment = name != "." && name != ".." && !name.contains(['/', '%']);
    is_segment.then_some(name)
}

#[cfg(test)]
mod tests;
