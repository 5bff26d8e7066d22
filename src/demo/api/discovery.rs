//! Discovery: what the API serves, plain and aggregated (`apidiscovery.k8s.io`).

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{
    openapi::hash,
    resources::{RESOURCES, Resource, group_versions},
    response::{self, Response},
};

/// The Kubernetes version this API answers like.
pub(super) const GIT_VERSION: &str = "v1.36.2";

/// The documents, made once.
pub(super) struct Discovery {
    version: Value,
    api: Value,
    apis: Value,
}

/// How the client wants `/api` and `/apis`.
enum Form {
    Plain,
    Aggregated(&'static str),
}

impl Discovery {
    /// The documents of this API.
    pub fn new() -> Self {
        let (major_minor, build_date) = (("1", "36"), "2026-08-21T00:00:00Z");
        let version = json!({
            "major": major_minor.0, "minor": major_minor.1, "gitVersion": GIT_VERSION, "gitCommit": "",
            "gitTreeState": "clean", "buildDate": build_date, "goVersion": "none", "compiler": "rustc",
            "platform": "linux/amd64",
        });
        let api = json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []});
        let groups = group_versions().into_iter().filter(|(group, _)| !group.is_empty()).map(|(group, version)| {
            let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        });
        let groups: Vec<Value> = groups.collect();
        let apis = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
        Self { version, api, apis }
    }

    /// The answer for that path, if discovery has one.
    pub fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let plain = |value: &Value| Some(response::json(StatusCode::OK, value));
        match segments.as_slice() {
            ["version"] => plain(&self.version),
            ["api"] => Some(in_form(headers, &self.api, true)),
            ["apis"] => Some(in_form(headers, &self.apis, false)),
            ["api", "v1"] => plain(&resource_list("", "v1")?),
            ["apis", group] => plain(&self.group(group)?),
            ["apis", group, version] => plain(&resource_list(group, version)?),
            _ => None,
        }
    }

    fn group(&self, name: &str) -> Option<Value> {
        let mut group = self.apis["groups"].as_array()?.iter().find(|group| group["name"] == name)?.clone();
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
        Some(group)
    }
}

fn in_form(headers: &HeaderMap, plain: &Value, core: bool) -> Response {
    match Form::negotiate(headers) {
        Form::Plain => response::json(StatusCode::OK, plain),
        Form::Aggregated(version) => {
            let list = aggregated(version, core);
            let mut response = response::json(StatusCode::OK, &list);
            let answer = response.headers_mut();
            answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(version)));
            answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
            answer.insert(header::VARY, HeaderValue::from_static("Accept"));
            // Hexadecimal digits in quotes are a valid header value.
            let tag = format!("\"{}\"", hash(list.to_string().as_bytes()));
            answer.insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits"));
            response
        }
    }
}

fn content_type(version: &str) -> &'static str {
    match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    }
}

impl Form {
    fn negotiate(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
        let mut types = accept.flat_map(|v| v.split(',')).map(|t| t.replace(' ', ""));
        let form = types.find_map(|media_type| {
            let has = |parameter: &str| media_type.split(';').any(|p| p == parameter);
            let aggregated = has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList");
            match media_type.split(';').next() {
                Some("application/json") if aggregated && has("v=v2") => Some(Self::Aggregated("v2")),
                Some("application/json") if aggregated && has("v=v2beta1") => Some(Self::Aggregated("v2beta1")),
                Some("application/json" | "*/*" | "application/*") if !aggregated => Some(Self::Plain),
                _ => None,
            }
        });
        form.unwrap_or(Self::Plain)
    }
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut entries = Vec::new();
    for resource in RESOURCES.iter().filter(|r| r.group == group && r.version == version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        entries.push(entry);
        for sub in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
                "namespaced": resource.namespaced, "kind": sub.kind, "verbs": sub.verbs,
            });
            if let Some((group, version)) = sub.group_version {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            entries.push(entry);
        }
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": entries});
    (!entries.is_empty()).then_some(list)
}

fn aggregated(discovery_version: &str, core: bool) -> Value {
    let groups = group_versions().into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, version)| {
            let resources = RESOURCES.iter().filter(|r| r.group == group && r.version == version);
            let resources: Vec<Value> = resources.map(aggregated_resource).collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            let version = json!({"version": version, "resources": resources, "freshness": "Current"});
            json!({"metadata": metadata, "versions": [version]})
        })
        .collect();
    let api_version = format!("apidiscovery.k8s.io/{discovery_version}");
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural, "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": "", "version": "", "kind": resource.kind},
        "singularResource": resource.singular, "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let subresources = resource.subresources.iter().map(|sub| {
        let (group, version) = sub.group_version.unwrap_or_default();
        let kind = json!({"group": group, "version": version, "kind": sub.kind});
        json!({"subresource": sub.name, "responseKind": kind, "verbs": sub.verbs})
    });
    let subresources: Vec<Value> = subresources.collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_gets_aggregated_discovery_and_old_ones_the_plain_list() {
        let discovery = Discovery::new();
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
        let aggregated = discovery.answer("/api", &headers).unwrap();
        assert_eq!(aggregated.headers()[header::CONTENT_TYPE], content_type("v2"));
        let plain = discovery.answer("/api", &HeaderMap::new()).unwrap();
        assert_eq!(plain.headers()[header::CONTENT_TYPE], "application/json");
        assert!(discovery.answer("/apis/none/v1", &HeaderMap::new()).is_none());
    }
}
