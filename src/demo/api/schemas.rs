//! The types of the served kinds, as OpenAPI schemas, and strict field validation by them.

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Map, Value};

use super::{resources::Resource, status::ApiError};

/// Where schemas refer to each other.
const PREFIX: &str = "#/components/schemas/";
/// Marks types of which only the best known fields are described.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

static SCHEMAS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    // The file is part of the program; a test reads it.
    serde_json::from_str(include_str!("schemas.json")).expect("schemas.json is a JSON object")
});

/// The full name of the kind's schema, for example `io.k8s.api.core.v1.Pod`.
pub(super) fn name_of(resource: &Resource) -> String {
    let package = match resource.group.split('.').next() {
        None | Some("") => "core",
        Some(group) => group,
    };
    format!("io.k8s.api.{package}.{}.{}", resource.version, resource.kind)
}

/// These schemas and all they refer to.
pub(super) fn reachable_from(names: impl Iterator<Item = String>) -> Map<String, Value> {
    let mut waiting: Vec<String> = names.collect();
    let mut found = Map::new();
    while let Some(name) = waiting.pop() {
        if let (false, Some(schema)) = (found.contains_key(&name), SCHEMAS.get(&name)) {
            collect_references(schema, &mut waiting);
            found.insert(name, schema.clone());
        }
    }
    found
}

/// All schemas as definitions of OpenAPI version 2: a type described in part allows everything there, because
/// kubectl validates by it.
pub(super) fn as_definitions() -> Map<String, Value> {
    SCHEMAS.iter().map(|(name, schema)| (name.clone(), as_definition(schema))).collect()
}

/// Errors: 400 when the object has fields its type does not have (`fieldValidation=Strict`).
pub(super) fn check_fields(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let mut unknown = BTreeSet::new();
    if let Some(schema) = SCHEMAS.get(&name_of(resource)) {
        find_unknown(schema, object, "", &mut unknown);
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let fields: Vec<String> = unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
    let (kind, version) = (resource.kind, resource.group_version());
    Err(ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
        fields.join(", ")
    )))
}

fn find_unknown(schema: &Value, value: &Value, path: &str, unknown: &mut BTreeSet<String>) {
    let schema = resolve(schema);
    match value {
        Value::Object(map) => {
            let Some(properties) = schema["properties"].as_object().filter(|_| schema.get(OPEN).is_none()) else {
                return;
            };
            // Keys with a dollar sign are directives of a strategic merge patch.
            for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('$')) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match properties.get(key) {
                    Some(schema) => find_unknown(schema, value, &path, unknown),
                    None => drop(unknown.insert(path)),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_unknown(&schema["items"], item, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn resolve(schema: &Value) -> &Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    reference.and_then(|r| SCHEMAS.get(r.strip_prefix(PREFIX)?)).unwrap_or(schema)
}

fn collect_references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(PREFIX)) {
                found.push(name.to_owned());
            }
            map.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, found)),
        _ => {}
    }
}

fn as_definition(schema: &Value) -> Value {
    match schema {
        Value::Object(map) if map.contains_key("allOf") => {
            let reference = map["allOf"][0]["$ref"].as_str().unwrap_or_default().replace(PREFIX, "#/definitions/");
            serde_json::json!({"$ref": reference, "description": map.get("description")})
        }
        Value::Object(map) => {
            let open = map.get(OPEN).is_some() && !map.contains_key("x-kubernetes-group-version-kind");
            let kept = map.iter().filter(|(key, _)| !open || !matches!(key.as_str(), "properties" | "required" | OPEN));
            kept.map(|(key, value)| (key.clone(), as_definition(value))).collect()
        }
        Value::Array(items) => items.iter().map(as_definition).collect(),
        Value::String(text) => text.replace(PREFIX, "#/definitions/").into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::api::resources::RESOURCES;

    #[test]
    fn every_kind_has_a_schema() {
        for resource in RESOURCES {
            assert!(SCHEMAS.contains_key(&name_of(resource)), "{}", name_of(resource));
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let resource = Resource::find("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "a", "lables": {}}, "data": {"any": "thing"}, "dta": {}});
        let error = check_fields(resource, &object).unwrap_err();
        assert!(error.status.message.ends_with(r#"unknown field "dta", unknown field "metadata.lables""#));
    }

    #[test]
    fn a_type_described_in_part_allows_everything() {
        let resource = Resource::find("", "v1", "pods").unwrap();
        assert!(check_fields(resource, &json!({"metadata": {}, "spec": {"volumes": []}})).is_ok());
    }
}
