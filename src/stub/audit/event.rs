//! `Event` of `audit.k8s.io/v1` (`apiserver/pkg/apis/audit/v1/types.go`), at level `Metadata`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::kube::{RequestInfo, Status};
use crate::stub::record::{GivenAnswer, RequestFacts};
use crate::wire::Identity;

/// One event: the JSON that Kubernetes' own audit log has, on one line. It serializes to that with `serde_json`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct AuditEvent(Box<RawValue>);

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

impl AuditEvent {
    /// What is known of a request at this stage. It is written down at once: to copy every fact for later costs more.
    ///
    /// # Errors
    /// None that is known of: everything in it has a form in JSON.
    pub(super) fn new(facts: &RequestFacts, stage: Stage) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(&Event::new(facts, stage)).map(Self)
    }

    /// Its JSON, without an end of line.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: Cow<'a, str>,
    user: UserInfo<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<UserInfo<'a>>,
    #[serde(rename = "sourceIPs")]
    source_ips: [IpAddr; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectReference<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<ResponseStatus<'a>>,
    #[serde(serialize_with = "micro_time")]
    request_received_timestamp: Timestamp,
    #[serde(serialize_with = "micro_time")]
    stage_timestamp: Timestamp,
    annotations: Annotations<'a>,
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[derive(Default, Serialize)]
struct UserInfo<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<&'a str, Vec<&'a str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectReference<'a> {
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

/// `metav1.Status`: all of it where the answer is the stub's own, of a passed one only the code.
#[derive(Serialize)]
#[serde(untagged)]
enum ResponseStatus<'a> {
    Own(&'a Status),
    Passed { metadata: Empty, code: u16 },
}

#[derive(Serialize)]
struct Empty {}

impl<'a> Event<'a> {
    fn new(facts: &'a RequestFacts, stage: Stage) -> Self {
        let request = facts.attributes.as_ref().map(|attributes| &attributes.request);
        let requested = facts.attributes.as_ref().and_then(|attributes| attributes.requested.as_ref());
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: "Metadata",
            audit_id: &facts.audit_id,
            stage,
            request_uri: &facts.uri,
            verb: request
                .map_or_else(|| facts.method.as_str().to_lowercase().into(), |request| (&*request.verb).into()),
            user: facts.user.as_ref().map(UserInfo::of).unwrap_or_default(),
            impersonated_user: requested.map(UserInfo::of),
            source_ips: [facts.source],
            user_agent: facts.user_agent.as_deref(),
            object_ref: request.filter(|request| request.is_resource_request).map(ObjectReference::of),
            response_status: facts.answer.as_ref().map(ResponseStatus::of),
            request_received_timestamp: facts.received_at,
            stage_timestamp: Timestamp::now(),
            annotations: Annotations { facts, stage },
        }
    }
}

impl<'a> UserInfo<'a> {
    fn of(identity: &'a Identity) -> Self {
        let mut extra = BTreeMap::<_, Vec<_>>::new();
        for (key, value) in &identity.extra {
            extra.entry(&**key).or_default().push(&**value);
        }
        Self { username: &identity.user, uid: identity.uid.as_deref(), groups: &identity.groups, extra }
    }
}

impl<'a> ObjectReference<'a> {
    fn of(request: &'a RequestInfo) -> Self {
        Self {
            resource: &request.resource,
            namespace: &request.namespace,
            name: &request.name,
            api_group: &request.api_group,
            api_version: &request.api_version,
            subresource: &request.subresource,
        }
    }
}

impl<'a> ResponseStatus<'a> {
    fn of(answer: &'a GivenAnswer) -> Self {
        match answer {
            GivenAnswer::Own(status) => Self::Own(status),
            GivenAnswer::Passed(code) => Self::Passed { metadata: Empty {}, code: code.as_u16() },
        }
    }
}

/// What the format has no field for: strings under keys.
///
/// Keys under `authorization.k8s.io` are Kubernetes' own (`apiserver/pkg/endpoints/filters/authorization.go`).
struct Annotations<'a> {
    facts: &'a RequestFacts,
    stage: Stage,
}

impl Serialize for Annotations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { facts, stage } = self;
        let mut annotations = serializer.serialize_map(None)?;
        if let Some(decision) = &facts.decision {
            let word = if decision.is_allowed() { "allow" } else { "forbid" };
            annotations.serialize_entry("authorization.k8s.io/decision", word)?;
            annotations.serialize_entry("authorization.k8s.io/reason", decision.reason())?;
        }
        if let Some(cluster) = &facts.cluster {
            annotations.serialize_entry("qtunnel.dev/cluster", cluster.as_str())?;
        }
        if let Some(agent) = &facts.agent {
            annotations.serialize_entry("qtunnel.dev/agent", agent.as_str())?;
        }
        if matches!(stage, Stage::ResponseComplete | Stage::Panic) {
            let (sent, received) = (facts.meter.sent(), facts.meter.received());
            let milliseconds = facts.started.elapsed().as_millis();
            annotations.serialize_entry("qtunnel.dev/bytes-sent", &format_args!("{sent}"))?;
            annotations.serialize_entry("qtunnel.dev/bytes-received", &format_args!("{received}"))?;
            annotations.serialize_entry("qtunnel.dev/duration-ms", &format_args!("{milliseconds}"))?;
            annotations.serialize_entry("qtunnel.dev/end", facts.end.as_str())?;
        }
        annotations.end()
    }
}

/// `metav1.MicroTime`: RFC 3339 with six digits behind the second.
fn micro_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}
