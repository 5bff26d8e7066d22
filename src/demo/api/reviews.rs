//! Reviews: who am I, and what may somebody do (`authentication.k8s.io/v1`, `authorization.k8s.io/v1`).

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    identity::User,
    rbac::{Attributes, Authorizer},
    resources::Resource,
    response::{self, Response},
    status::ApiError,
};

/// Answers the review in `object`, asked by `user`. Errors: 400 for a review that asks nothing.
pub(super) fn answer(
    resource: &Resource,
    mut object: Value,
    user: &User,
    rules: &Authorizer,
) -> Result<Response, ApiError> {
    object["kind"] = resource.kind.into();
    object["apiVersion"] = resource.group_version().into();
    object["metadata"] = json!({"creationTimestamp": super::objects::now()});
    object["status"] = match resource.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(user)}),
        "SelfSubjectRulesReview" => rules_of(user, object["spec"]["namespace"].as_str().unwrap_or_default(), rules),
        "SelfSubjectAccessReview" => decide(&object["spec"], user, rules)?,
        _ => decide(&object["spec"], &subject(&object["spec"]), rules)?,
    };
    Ok(response::json(StatusCode::CREATED, &object))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// What the user may do in a namespace (`kubectl auth can-i --list`).
fn rules_of(user: &User, namespace: &str, rules: &Authorizer) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules.rules_for(user, namespace) {
        if !rule.resources.is_empty() {
            let any = vec!["*".to_owned()];
            let groups = if rule.api_groups.is_empty() { &any } else { &rule.api_groups };
            resources.push(json!({
                "verbs": rule.verbs, "apiGroups": groups, "resources": rule.resources,
                "resourceNames": rule.resource_names,
            }));
        }
        if !rule.paths.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
        }
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

/// The user a `SubjectAccessReview` asks about.
fn subject(spec: &Value) -> User {
    let texts = |value: &Value| {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<String>>()
    };
    let extra = spec["extra"].as_object().into_iter().flatten().map(|(key, value)| (key.clone(), texts(value)));
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: texts(&spec["groups"]),
        extra: extra.collect::<BTreeMap<_, _>>(),
    }
}

fn decide(spec: &Value, user: &User, rules: &Authorizer) -> Result<Value, ApiError> {
    let (asked, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'static str| asked[value].as_str().unwrap_or_default();
    let allowed = if asked.is_object() {
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        let attributes = Attributes::Resource {
            verb: text("verb"),
            group: text("group"),
            resource: &resource,
            name: text("name"),
            namespace: Some(text("namespace")).filter(|namespace| !namespace.is_empty()),
        };
        rules.allows(user, &attributes)
    } else if path.is_object() {
        let text = |key: &str| path[key].as_str().unwrap_or_default();
        rules.allows(user, &Attributes::Path { verb: text("verb"), path: text("path") })
    } else {
        return Err(ApiError::bad_request("spec needs resourceAttributes or nonResourceAttributes"));
    };
    Ok(if allowed {
        json!({"allowed": true, "reason": "allowed by a rule of the sample API"})
    } else {
        json!({"allowed": false})
    })
}
