//! `Event` of `audit.k8s.io/v1` (`apiserver/pkg/apis/audit/v1/types.go`), at level `Metadata`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::kube::{RequestInfo, Status};
use crate::stub::record::{GivenAnswer, RequestFacts};
use crate::wire::{AgentName, ClusterId, Identity};

/// One event. It serializes to the JSON that Kubernetes' own audit log has.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<UserInfo>,
    #[serde(rename = "sourceIPs")]
    source_ips: [IpAddr; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<ResponseStatus>,
    #[serde(serialize_with = "micro_time")]
    request_received_timestamp: Timestamp,
    #[serde(serialize_with = "micro_time")]
    stage_timestamp: Timestamp,
    annotations: BTreeMap<&'static str, String>,
}

/// Where in its life a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// It has been understood.
    RequestReceived,
    /// The head of the answer goes to the client, and nothing is known of when the rest will end.
    ResponseStarted,
    /// All of it is over.
    ResponseComplete,
    /// A fault of the stub itself has ended it.
    Panic,
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct UserInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectReference {
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

/// `metav1.Status`: all of it where the answer is the stub's own, of a passed one only the code.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum ResponseStatus {
    Own(Status),
    Passed { metadata: BTreeMap<String, String>, code: u16 },
}

impl AuditEvent {
    /// What is known of a request at this stage.
    pub fn new(facts: &RequestFacts, stage: Stage) -> Self {
        let request = facts.attributes.as_ref().map(|attributes| &attributes.request);
        let requested = facts.attributes.as_ref().and_then(|attributes| attributes.requested.as_ref());
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: "Metadata",
            audit_id: facts.audit_id.clone(),
            stage,
            request_uri: facts.uri.clone(),
            verb: request.map_or_else(|| facts.method.as_str().to_lowercase(), |request| request.verb.clone()),
            user: facts.user.as_ref().map(UserInfo::of).unwrap_or_default(),
            impersonated_user: requested.map(UserInfo::of),
            source_ips: [facts.source],
            user_agent: facts.user_agent.clone(),
            object_ref: request.filter(|request| request.is_resource_request).map(ObjectReference::of),
            response_status: facts.answer.as_ref().map(ResponseStatus::of),
            request_received_timestamp: facts.received_at,
            stage_timestamp: Timestamp::now(),
            annotations: annotations(facts, stage),
        }
    }
}

/// Keys under `authorization.k8s.io` are Kubernetes' own (`apiserver/pkg/endpoints/filters/authorization.go`).
fn annotations(facts: &RequestFacts, stage: Stage) -> BTreeMap<&'static str, String> {
    let mut annotations = BTreeMap::new();
    if let Some(decision) = &facts.decision {
        let word = if decision.is_allowed() { "allow" } else { "forbid" };
        annotations.insert("authorization.k8s.io/decision", word.to_owned());
        annotations.insert("authorization.k8s.io/reason", decision.reason().to_owned());
    }
    annotations.extend(facts.cluster.as_ref().map(ClusterId::to_string).map(|id| ("qtunnel.dev/cluster", id)));
    annotations.extend(facts.agent.as_ref().map(AgentName::to_string).map(|name| ("qtunnel.dev/agent", name)));
    if matches!(stage, Stage::ResponseComplete | Stage::Panic) {
        annotations.insert("qtunnel.dev/bytes-sent", facts.meter.sent().to_string());
        annotations.insert("qtunnel.dev/bytes-received", facts.meter.received().to_string());
        annotations.insert("qtunnel.dev/duration-ms", facts.started.elapsed().as_millis().to_string());
        annotations.insert("qtunnel.dev/end", facts.end.as_str().to_owned());
    }
    annotations
}

impl UserInfo {
    fn of(identity: &Identity) -> Self {
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in &identity.extra {
            extra.entry(key.clone()).or_default().push(value.clone());
        }
        Self { username: identity.user.clone(), uid: identity.uid.clone(), groups: identity.groups.clone(), extra }
    }
}

impl ObjectReference {
    fn of(request: &RequestInfo) -> Self {
        Self {
            resource: request.resource.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            api_group: request.api_group.clone(),
            api_version: request.api_version.clone(),
            subresource: request.subresource.clone(),
        }
    }
}

impl ResponseStatus {
    fn of(answer: &GivenAnswer) -> Self {
        match answer {
            GivenAnswer::Own(status) => Self::Own(status.clone()),
            GivenAnswer::Passed(code) => Self::Passed { metadata: BTreeMap::new(), code: code.as_u16() },
        }
    }
}

/// `metav1.MicroTime`: RFC 3339 with six digits behind the second.
fn micro_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}
