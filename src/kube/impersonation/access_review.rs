//! Asking the cluster whether a user may act as another.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::kube::RequestInfo;
use crate::kube::digest::sha256;
use crate::wire::Identity;

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

/// One question to the API server: may this user impersonate this user, group, uid or extra?
#[derive(Debug, Clone, PartialEq)]
pub struct AccessReview {
    attributes: RequestInfo,
    body: Value,
}

impl AccessReview {
    /// What is asked for, in the terms of [`crate::kube::Status::forbidden`].
    pub fn attributes(&self) -> &RequestInfo {
        &self.attributes
    }

    /// The `SubjectAccessReview` to POST to `/apis/authorization.k8s.io/v1/subjectaccessreviews`.
    pub fn body(&self) -> &Value {
        &self.body
    }

    /// What an answer may be kept under: equal for equal questions of equal users in one cluster.
    pub fn cache_key(&self) -> AccessReviewKey {
        AccessReviewKey(sha256(self.body.to_string().as_bytes()))
    }

    fn new(original: &Identity, attributes: RequestInfo) -> Self {
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": original.user,
                "uid": original.uid.as_deref().unwrap_or_default(),
                "groups": original.groups,
                "extra": extra_of(original),
                "resourceAttributes": {
                    "verb": attributes.verb,
                    "group": attributes.api_group,
                    "version": attributes.api_version,
                    "resource": attributes.resource,
                    "subresource": attributes.subresource,
                    "namespace": attributes.namespace,
                    "name": attributes.name,
                },
            },
        });
        Self { attributes, body }
    }
}

/// The key of an [`AccessReview`] in a cache of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccessReviewKey([u8; 32]);

/// What must all be allowed before `original` may act as `requested`, as the API server would ask it
/// (`buildImpersonationRequests`): one review for the user or service account, and for each group, uid and extra value.
pub fn access_reviews(original: &Identity, requested: &Identity) -> Vec<AccessReview> {
    let user = match service_account(&requested.user) {
        Some((namespace, name)) => {
            RequestInfo { namespace: namespace.to_owned(), ..impersonate("", "serviceaccounts", name) }
        }
        None => impersonate("", "users", &requested.user),
    };
    let groups = requested.groups.iter().map(|group| impersonate("", "groups", group));
    let uid = requested.uid.iter().map(|uid| impersonate(AUTHENTICATION_GROUP, "uids", uid));
    let extra = requested.extra.iter().map(|(key, value)| RequestInfo {
        subresource: key.clone(),
        ..impersonate(AUTHENTICATION_GROUP, "userextras", value)
    });
    let all = std::iter::once(user).chain(groups).chain(uid).chain(extra);
    all.map(|attributes| AccessReview::new(original, attributes)).collect()
}

/// The answer to an [`AccessReview`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessDecision {
    /// The user may.
    Allowed,
    /// The user may not.
    Denied {
        /// What the cluster's authorizer says; may be empty.
        reason: String,
    },
}

/// Reads the body that answers an [`AccessReview`].
///
/// # Errors
/// Anything but a `SubjectAccessReview` with a status. It is no permission.
pub fn allowed(body: &[u8]) -> Result<AccessDecision, UnreadableReview> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| UnreadableReview(error.to_string()))?;
    if answer.kind != "SubjectAccessReview" {
        return Err(UnreadableReview(format!("it is a {:?}", answer.kind)));
    }
    match answer.status {
        AnswerStatus { allowed: true, denied: false, .. } => Ok(AccessDecision::Allowed),
        AnswerStatus { reason, evaluation_error, .. } if reason.is_empty() => {
            Ok(AccessDecision::Denied { reason: evaluation_error })
        }
        AnswerStatus { reason, .. } => Ok(AccessDecision::Denied { reason }),
    }
}

/// The answer to an access review is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the API server's answer is not a SubjectAccessReview: {0}")]
pub struct UnreadableReview(String);

#[derive(Deserialize)]
struct Answer {
    kind: String,
    status: AnswerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerStatus {
    allowed: bool,
    #[serde(default)]
    denied: bool,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    evaluation_error: String,
}

fn impersonate(group: &str, resource: &str, name: &str) -> RequestInfo {
    RequestInfo {
        is_resource_request: true,
        verb: "impersonate".to_owned(),
        api_group: group.to_owned(),
        api_version: if group.is_empty() { "" } else { "v1" }.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    }
}

fn extra_of(identity: &Identity) -> Value {
    let mut extra = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for (key, value) in &identity.extra {
        extra.entry(key).or_default().push(value);
    }
    json!(extra)
}

/// Namespace and name of a service account's user name (`SplitUsername` in `apiserver/pkg/authentication/serviceaccount/util.go`).
/// A name that no service account can have is a plain user's.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_namespace = namespace.len() <= 63 && is_dns_label(namespace);
    let is_name = name.len() <= 253 && name.split('.').all(is_dns_label);
    (is_namespace && is_name).then_some((namespace, name))
}

/// A label of a DNS-1123 name, whatever its length (`apimachinery/pkg/util/validation/validation.go`).
fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::Status;

    fn alice() -> Identity {
        Identity {
            uid: Some("7".to_owned()),
            groups: vec!["devs".to_owned()],
            extra: vec![("scopes".to_owned(), "a".to_owned()), ("scopes".to_owned(), "b".to_owned())],
            ..Identity::named("alice")
        }
    }

    #[test]
    fn every_part_of_the_requested_identity_is_asked_for() {
        let requested = Identity {
            user: "bob".to_owned(),
            uid: Some("9".to_owned()),
            groups: vec!["ops".to_owned(), "admins".to_owned()],
            extra: vec![("acme.com/p".to_owned(), "x".to_owned()), ("acme.com/p".to_owned(), "y".to_owned())],
        };
        let reviews = access_reviews(&alice(), &requested);
        let asked: Vec<_> = reviews
            .iter()
            .map(|review| {
                let attributes = &review.body()["spec"]["resourceAttributes"];
                assert_eq!(attributes["verb"], "impersonate");
                let text = |key: &str| attributes[key].as_str().unwrap().to_owned();
                format!("{}|{}|{}|{}", text("group"), text("resource"), text("subresource"), text("name"))
            })
            .collect();
        assert_eq!(
            asked,
            [
                "|users||bob",
                "|groups||ops",
                "|groups||admins",
                "authentication.k8s.io|uids||9",
                "authentication.k8s.io|userextras|acme.com/p|x",
                "authentication.k8s.io|userextras|acme.com/p|y",
            ]
        );
        let spec = &reviews[0].body()["spec"];
        assert_eq!((&spec["user"], &spec["uid"], &spec["groups"]), (&json!("alice"), &json!("7"), &json!(["devs"])));
        assert_eq!(spec["extra"], json!({"scopes": ["a", "b"]}));
    }

    #[test]
    fn a_service_account_is_asked_for_in_its_namespace() {
        for (user, expected) in [
            ("system:serviceaccount:ci:build.er", ("serviceaccounts", "ci", "build.er")),
            ("system:serviceaccount:ci", ("users", "", "system:serviceaccount:ci")),
            ("system:serviceaccount::x", ("users", "", "system:serviceaccount::x")),
            ("system:serviceaccount:CI:x", ("users", "", "system:serviceaccount:CI:x")),
            ("system:serviceaccount:a:b:c", ("users", "", "system:serviceaccount:a:b:c")),
        ] {
            let reviews = access_reviews(&alice(), &Identity::named(user));
            let asked = reviews[0].attributes();
            assert_eq!((asked.resource.as_str(), asked.namespace.as_str(), asked.name.as_str()), expected);
        }
    }

    #[test]
    fn a_refusal_reads_like_the_api_servers_own() {
        let reviews = access_reviews(&alice(), &Identity::named("bob"));
        assert_eq!(
            Status::forbidden(&alice(), reviews[0].attributes(), "").message(),
            r#"users "bob" is forbidden: User "alice" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        let read = |status: &str| allowed(format!(r#"{{"kind":"SubjectAccessReview","status":{status}}}"#).as_bytes());
        let denied = |reason: &str| Ok(AccessDecision::Denied { reason: reason.to_owned() });
        assert_eq!(read(r#"{"allowed":true,"reason":"RBAC"}"#), Ok(AccessDecision::Allowed));
        assert_eq!(read(r#"{"allowed":false,"reason":"no"}"#), denied("no"));
        assert_eq!(read(r#"{"allowed":false,"evaluationError":"role not found"}"#), denied("role not found"));
        assert_eq!(read(r#"{"allowed":true,"denied":true}"#), denied(""));
        for body in
            ["", "{}", "null", r#"{"kind":"Status","status":{"allowed":true}}"#, r#"{"kind":"SubjectAccessReview"}"#]
        {
            assert!(allowed(body.as_bytes()).is_err(), "{body}");
        }
        assert!(read("{}").is_err());
    }

    #[test]
    fn answers_are_kept_apart_by_user_and_question() {
        let key = |original: &Identity, user: &str| access_reviews(original, &Identity::named(user))[0].cache_key();
        assert_eq!(key(&alice(), "bob"), key(&alice(), "bob"));
        assert_ne!(key(&alice(), "bob"), key(&alice(), "eve"));
        assert_ne!(key(&alice(), "bob"), key(&Identity::named("alice"), "bob"));
    }
}
