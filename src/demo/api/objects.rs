//! What a real API server's defaulting, validation and controllers do to objects, as far as clients notice.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};

use super::{
    resources::Resource,
    status::{ApiError, Cause},
};

/// The present moment as Kubernetes writes times: RFC 3339, whole seconds.
pub(super) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random (version 4) UUID.
pub(super) fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    // Thirty-two ASCII characters: these cuts are in range.
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Makes a new object complete: names, system metadata, defaults, and the status its controller would set.
///
/// Errors: 400 and 422 as the API server words them.
pub(super) fn prepare_create(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
    settle_identity(resource, namespace, object)?;
    let metadata = metadata_mut(object);
    if let (None, Some(prefix)) = (text(metadata, "name"), text(metadata, "generateName")) {
        metadata.insert("name".to_owned(), format!("{prefix}{}", random_suffix()).into());
    }
    for system in ["resourceVersion", "selfLink", "deletionTimestamp", "managedFields"] {
        metadata.remove(system);
    }
    metadata.insert("uid".to_owned(), new_uid().into());
    metadata.insert("creationTimestamp".to_owned(), now().into());
    if object.get("spec").is_some_and(|spec| resource.plural != "leases" && spec.is_object()) {
        object["metadata"]["generation"] = 1.into();
    }
    apply_defaults(resource, object);
    validate(resource, object)?;
    run_controllers(resource, object);
    Ok(())
}

/// Carries over what a client cannot change, and counts the generation.
///
/// Errors: 400 and 422 as the API server words them.
pub(super) fn prepare_update(resource: &Resource, before: &Value, after: &mut Value) -> Result<(), ApiError> {
    let old = &before["metadata"];
    settle_identity(resource, old["namespace"].as_str().unwrap_or_default(), after)?;
    let name = old["name"].as_str().unwrap_or_default();
    let metadata = metadata_mut(after);
    if metadata.get("name").is_some_and(|n| n != name) {
        let why = "field is immutable";
        let new_name = text(metadata, "name").unwrap_or_default();
        return Err(ApiError::invalid(resource, name, vec![Cause::invalid_value("metadata.name", new_name, why)]));
    }
    for system in ["name", "uid", "creationTimestamp", "generation"] {
        match old.get(system) {
            Some(value) => metadata.insert(system.to_owned(), value.clone()),
            None => metadata.remove(system),
        };
    }
    apply_defaults(resource, after);
    validate(resource, after)?;
    if after.get("spec") != before.get("spec")
        && let Some(generation) = old["generation"].as_u64()
    {
        after["metadata"]["generation"] = (generation + 1).into();
    }
    if has_status(resource) {
        after["status"] = before["status"].clone();
    }
    run_controllers(resource, after);
    Ok(())
}

/// Refuses what is not shaped like an object of Kubernetes, so that everything after may rely on the shape.
///
/// Errors: 400, naming the field.
pub(super) fn check_shape(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let wrong = |field: &str| {
        let (kind, version) = (resource.kind, resource.group_version());
        let what = format!("json: cannot unmarshal into field {field:?}");
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {what}"))
    };
    if !object.is_object() {
        return Err(wrong(""));
    }
    for field in ["/metadata", "/spec", "/status", "/data", "/stringData", "/metadata/labels", "/metadata/annotations"]
    {
        if object.pointer(field).is_some_and(|value| !value.is_object() && !value.is_null()) {
            return Err(wrong(&field[1..].replace('/', ".")));
        }
    }
    Ok(())
}

/// Whether status is written through the `status` subresource alone.
pub(super) fn has_status(resource: &Resource) -> bool {
    resource.subresources.iter().any(|s| s.name == "status")
}

/// The object's metadata, created when there is none.
pub(super) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    // The line above made it an object.
    object["metadata"].as_object_mut().expect("metadata is an object")
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str).filter(|t| !t.is_empty())
}

/// Kind, apiVersion and namespace follow the path; where the object says otherwise, it is refused.
fn settle_identity(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
    check_shape(resource, object)?;
    let group_version = resource.group_version();
    for (field, expected) in [("kind", resource.kind), ("apiVersion", group_version.as_str())] {
        match object[field].as_str() {
            None | Some("") => object[field] = expected.into(),
            Some(given) if given == expected => {}
            Some(given) => {
                let (kind, version) = (resource.kind, resource.version);
                return Err(ApiError::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: {field} is {given:?}, expected {expected:?}"
                )));
            }
        }
    }
    let metadata = metadata_mut(object);
    if !resource.namespaced {
        metadata.remove("namespace");
        return Ok(());
    }
    if text(metadata, "namespace").is_some_and(|given| given != namespace) {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".to_owned(), namespace.into());
    Ok(())
}

fn random_suffix() -> String {
    // The alphabet of `k8s.io/apimachinery/pkg/util/rand`: no vowels, no words by accident.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

fn apply_defaults(resource: &Resource, object: &mut Value) {
    match resource.plural {
        "secrets" => encode_string_data(object),
        "namespaces" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            set_default(object, "/spec", "finalizers", json!(["kubernetes"]));
        }
        "services" => {
            set_default(object, "/spec", "type", "ClusterIP".into());
            set_default(object, "/spec", "sessionAffinity", "None".into());
            let address = format!("10.96.{}.{}", rand::rng().random::<u8>(), rand::rng().random_range(2..=254_u8));
            set_default(object, "/spec", "clusterIP", address.into());
        }
        "pods" => {
            set_default(object, "/spec", "restartPolicy", "Always".into());
            set_default(object, "/spec", "terminationGracePeriodSeconds", 30.into());
            set_default(object, "/spec", "dnsPolicy", "ClusterFirst".into());
            set_default(object, "/spec", "nodeName", "sample-node".into());
        }
        "deployments" => set_default(object, "/spec", "replicas", 1.into()),
        _ => {}
    }
}

fn set_default(object: &mut Value, parent: &str, key: &str, value: Value) {
    if object.pointer(parent).is_none() {
        object[parent.trim_start_matches('/')] = json!({});
    }
    if let Some(Value::Object(map)) = object.pointer_mut(parent)
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value);
    }
}

/// `stringData` is write-only: its values move to `data`.
fn encode_string_data(secret: &mut Value) {
    set_default(secret, "", "type", "Opaque".into());
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|s| s.remove("stringData")) else {
        return;
    };
    for (key, value) in plain {
        if let Value::String(value) = value {
            secret["data"][key] = STANDARD.encode(value).into();
        }
    }
}

fn validate(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if matches!(resource.plural, "namespaces" | "services") {
        if !is_dns_label(name) || name.len() > 63 {
            causes.push(Cause::invalid_value("metadata.name", name, DNS_LABEL));
        }
    } else if name.len() > 253 || !name.split('.').all(is_dns_label) {
        causes.push(Cause::invalid_value("metadata.name", name, DNS_SUBDOMAIN));
    }
    if matches!(resource.plural, "configmaps" | "secrets") {
        causes.extend(bad_data_keys(object));
    }
    if resource.plural == "pods" && object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.containers", ""));
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, name, causes)) }
}

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn is_dns_label(label: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|&b| plain(b) || b == b'-')
}

fn bad_data_keys(object: &Value) -> Vec<Cause> {
    let keys = object["data"].as_object().into_iter().flat_map(Map::keys);
    let bad = keys.filter(|key| {
        key.is_empty() || key.len() > 253 || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    });
    bad.map(|key| Cause::invalid_value(format!("data[{key}]"), key, CONFIG_KEY)).collect()
}

/// Brings the status to where a cluster's controllers and kubelets would bring it within moments.
fn run_controllers(resource: &Resource, object: &mut Value) {
    match resource.plural {
        "namespaces" => object["status"] = json!({"phase": "Active"}),
        "pods" if !object["status"]["phase"].is_string() => object["status"] = running_pod(object),
        "services" => set_default(object, "/status", "loadBalancer", json!({})),
        "deployments" => object["status"] = rolled_out(object),
        _ => {}
    }
}

fn running_pod(pod: &Value) -> Value {
    let started = &pod["metadata"]["creationTimestamp"];
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "imageID": container["image"],
                "containerID": format!("sample://{}", new_uid().replace('-', "")),
                "ready": true, "started": true, "restartCount": 0, "lastState": {},
                "state": {"running": {"startedAt": started}},
            })
        })
        .collect();
    let conditions: Vec<Value> =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": started}))
            .collect();
    let address = format!("10.244.0.{}", rand::rng().random_range(2..=254_u8));
    json!({
        "phase": "Running", "conditions": conditions, "containerStatuses": statuses, "hostIP": "192.0.2.10",
        "podIP": address, "podIPs": [{"ip": address}], "startTime": started, "qosClass": "BestEffort",
    })
}

fn rolled_out(deployment: &Value) -> Value {
    let replicas = &deployment["spec"]["replicas"];
    let since = &deployment["metadata"]["creationTimestamp"];
    json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
        "conditions": [{
            "type": "Available", "status": "True", "reason": "MinimumReplicasAvailable",
            "message": "Deployment has minimum availability.", "lastUpdateTime": since, "lastTransitionTime": since,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map() -> &'static Resource {
        Resource::find("", "v1", "configmaps").unwrap()
    }

    #[test]
    fn a_bad_config_key_is_invalid_in_the_words_of_a_real_server() {
        let mut object = json!({"metadata": {"name": "cap-bad"}, "data": {"bad key!": "x"}});
        let error = prepare_create(config_map(), "demo", &mut object).unwrap_err();
        assert_eq!(error.code.as_u16(), 422);
        let start = r#"ConfigMap "cap-bad" is invalid: data[bad key!]: Invalid value: "bad key!": a valid config key"#;
        assert!(error.status.message.starts_with(start), "{}", error.status.message);
    }

    #[test]
    fn a_generated_name_ends_in_five_characters() {
        let mut object = json!({"metadata": {"generateName": "job-"}});
        prepare_create(config_map(), "demo", &mut object).unwrap();
        assert_eq!(object["metadata"]["name"].as_str().unwrap().len(), "job-".len() + 5);
    }

    #[test]
    fn an_object_of_another_namespace_is_refused() {
        let mut object = json!({"metadata": {"name": "a", "namespace": "other"}});
        assert_eq!(prepare_create(config_map(), "demo", &mut object).unwrap_err().code.as_u16(), 400);
    }

    #[test]
    fn what_is_not_shaped_like_an_object_is_refused() {
        let odd = [
            json!([]),
            json!("text"),
            json!({"metadata": 1}),
            json!({"metadata": {"name": "a", "labels": "x"}}),
            json!({"metadata": {"name": "a"}, "data": "x", "stringData": {"k": "v"}}),
            json!({"metadata": {"name": "a"}, "spec": []}),
        ];
        for resource in super::super::resources::RESOURCES.iter().filter(|resource| resource.is_stored()) {
            for object in &odd {
                let error = prepare_create(resource, "demo", &mut object.clone()).unwrap_err();
                assert_eq!(error.code.as_u16(), 400, "{object}");
            }
        }
    }

    #[test]
    fn plain_secret_values_are_encoded() {
        let mut object = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}});
        prepare_create(Resource::find("", "v1", "secrets").unwrap(), "demo", &mut object).unwrap();
        assert_eq!(object["data"]["k"], "dg==");
        assert!(object.get("stringData").is_none());
    }
}
