//! Which manager owns which field (`metadata.managedFields`), and server-side apply.
//!
//! A small model of `sigs.k8s.io/structured-merge-diff`: maps are merged field by field, lists whose items have a
//! `name` are merged by it, every other list is one value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    objects::{metadata_mut, now},
    status::{ApiError, Cause},
};

/// Who writes, as `fieldManager` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager<'a> {
    pub name: &'a str,
    /// `""` for the object itself, else the subresource written through.
    pub subresource: &'a str,
}

/// One step from the object towards a field: `f:name` or `k:{"name":"web"}`.
type Path = Vec<String>;
type Fields = BTreeSet<Path>;

struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    rest: Map<String, Value>,
    fields: Fields,
}

/// After a create, update or patch: what changed belongs to this manager now.
pub(super) fn record_update(before: Option<&Value>, after: &mut Value, manager: Manager<'_>) {
    let old_values = before.map(leaves).unwrap_or_default();
    let new_values = leaves(after);
    let changed: Fields = new_values
        .iter()
        .filter(|(path, value)| old_values.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    let present: Fields = new_values.into_keys().collect();
    let mut entries = entries_of(before.unwrap_or(after));
    for entry in &mut entries {
        entry.fields.retain(|path| present.contains(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        let entry = entry_of(&mut entries, manager, "Update", after);
        entry.fields.extend(changed);
    }
    write_entries(after, entries);
}

/// Server-side apply: merges `applied` into `live` (or makes a new object), and gives the fields to the manager.
/// Fields the manager applied before and no longer does are removed, unless somebody else owns them.
///
/// Errors: 409 where another manager owns a field that would change, unless `force`.
pub(super) fn apply(
    live: Option<&Value>,
    applied: &Value,
    manager: Manager<'_>,
    force: bool,
) -> Result<Value, ApiError> {
    let mut wanted = applied.clone();
    metadata_mut(&mut wanted).remove("managedFields");
    let empty = json!({});
    let base = live.unwrap_or(&empty);
    let wanted_values = leaves(&wanted);
    let fields: Fields = wanted_values.keys().cloned().collect();
    let mut entries = entries_of(base);
    let live_values = leaves(base);
    let differs = |path: &Path| wanted_values.get(path) != live_values.get(path);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is(manager, "Apply")) {
        let contested: Vec<Path> = entry.fields.intersection(&fields).filter(|path| differs(path)).cloned().collect();
        for path in contested {
            conflicts.push(conflict(&entry.manager, &path, applied));
            entry.fields.remove(&path);
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(ApiError::apply_conflict(conflicts));
    }
    let mut result = base.clone();
    merge(&mut result, &wanted);
    let entry = entry_of(&mut entries, manager, "Apply", applied);
    let abandoned: Vec<Path> = entry.fields.difference(&fields).cloned().collect();
    entry.fields = fields;
    for path in abandoned {
        if entries.iter().all(|entry| !entry.fields.contains(&path)) {
            remove(&mut result, &path);
        }
    }
    write_entries(&mut result, entries);
    Ok(result)
}

impl Entry {
    fn is(&self, manager: Manager<'_>, operation: &str) -> bool {
        self.manager == manager.name && self.operation == operation && self.subresource == manager.subresource
    }
}

fn conflict(manager: &str, path: &Path, applied: &Value) -> Cause {
    let version = applied["apiVersion"].as_str().unwrap_or("v1");
    let field = path.iter().map(|step| match step.strip_prefix("f:") {
        Some(field) => format!(".{field}"),
        None => format!("[{}]", step.trim_start_matches("k:{").trim_end_matches('}').replace(':', "=")),
    });
    Cause {
        reason: "FieldManagerConflict",
        message: format!("conflict with \"{manager}\" using {version}"),
        field: field.collect(),
    }
}

/// The fields with a value of their own. Identity and system metadata belong to nobody.
fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    const SYSTEM: &[&str] =
        &["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"];
    let mut found = BTreeMap::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    if !SYSTEM.contains(&key.as_str()) {
                        collect(vec!["f:metadata".to_owned(), format!("f:{key}")], value, &mut found);
                    }
                }
            }
            _ => collect(vec![format!("f:{key}")], value, &mut found),
        }
    }
    found
}

fn collect(path: Path, value: &Value, found: &mut BTreeMap<Path, Value>) {
    let below = |step: String| path.iter().cloned().chain([step]).collect::<Path>();
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                collect(below(format!("f:{key}")), value, found);
            }
        }
        Value::Array(items) if is_named(items) => {
            for item in items {
                collect(below(name_step(item)), item, found);
            }
        }
        _ => drop(found.insert(path, value.clone())),
    }
}

fn is_named(items: &[Value]) -> bool {
    !items.is_empty() && items.iter().all(|item| item["name"].is_string())
}

fn name_step(item: &Value) -> String {
    format!("k:{}", json!({"name": item["name"]}))
}

fn merge(target: &mut Value, wanted: &Value) {
    match (target, wanted) {
        (Value::Object(target), Value::Object(wanted)) => {
            for (key, value) in wanted {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(target), Value::Array(wanted)) if is_named(target) && is_named(wanted) => {
            for item in wanted {
                match target.iter_mut().find(|existing| existing["name"] == item["name"]) {
                    Some(existing) => merge(existing, item),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, wanted) => *target = wanted.clone(),
    }
}

/// Removes a field, and containers that became empty by it.
fn remove(value: &mut Value, path: &[String]) {
    let [step, rest @ ..] = path else { return };
    match value {
        Value::Object(map) => {
            let key = step.trim_start_matches("f:");
            if !rest.is_empty()
                && let Some(inner) = map.get_mut(key)
            {
                remove(inner, rest);
            }
            let empty = map.get(key).is_some_and(|v| v.as_object().is_some_and(Map::is_empty) || *v == json!([]));
            if rest.is_empty() || empty {
                map.remove(key);
            }
        }
        Value::Array(items) => {
            let Some(position) = items.iter().position(|item| name_step(item) == *step) else {
                return;
            };
            // `position` was found in this very list.
            remove(&mut items[position], rest);
            if rest.is_empty() || items[position].as_object().is_some_and(Map::is_empty) {
                items.remove(position);
            }
        }
        _ => {}
    }
}

fn entries_of(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let mut fields = Fields::new();
            read_fields(&mut Vec::new(), &entry["fieldsV1"], &mut fields);
            Entry {
                manager: text("manager"),
                operation: text("operation"),
                subresource: text("subresource"),
                rest: entry.as_object().cloned().unwrap_or_default(),
                fields,
            }
        })
        .collect()
}

fn read_fields(path: &mut Path, value: &Value, fields: &mut Fields) {
    for (step, inner) in value.as_object().into_iter().flatten() {
        path.push(step.clone());
        if inner.as_object().is_none_or(Map::is_empty) {
            fields.insert(path.clone());
        } else {
            read_fields(path, inner, fields);
        }
        path.pop();
    }
}

fn entry_of<'a>(entries: &'a mut Vec<Entry>, manager: Manager<'_>, operation: &str, object: &Value) -> &'a mut Entry {
    let position = entries.iter().position(|entry| entry.is(manager, operation)).unwrap_or_else(|| {
        entries.push(Entry {
            manager: manager.name.to_owned(),
            operation: operation.to_owned(),
            subresource: manager.subresource.to_owned(),
            rest: Map::new(),
            fields: Fields::new(),
        });
        entries.len() - 1
    });
    // `position` was found in, or pushed to, this very list.
    let entry = &mut entries[position];
    entry.rest.insert("apiVersion".to_owned(), object["apiVersion"].clone());
    entry.rest.insert("time".to_owned(), now().into());
    entry
}

fn write_entries(object: &mut Value, entries: Vec<Entry>) {
    let entries = entries.into_iter().filter(|entry| !entry.fields.is_empty()).map(|mut entry| {
        let mut tree = json!({});
        for path in &entry.fields {
            let leaf = path.iter().fold(&mut tree, |at, step| {
                // Only objects are ever put into the tree.
                at.as_object_mut().expect("an object").entry(step).or_insert_with(|| json!({}))
            });
            debug_assert!(leaf.is_object());
        }
        entry.rest.insert("manager".to_owned(), entry.manager.into());
        entry.rest.insert("operation".to_owned(), entry.operation.into());
        entry.rest.insert("fieldsType".to_owned(), "FieldsV1".into());
        entry.rest.insert("fieldsV1".to_owned(), tree);
        if !entry.subresource.is_empty() {
            entry.rest.insert("subresource".to_owned(), entry.subresource.into());
        }
        Value::Object(entry.rest)
    });
    let entries: Vec<Value> = entries.collect();
    metadata_mut(object).insert("managedFields".to_owned(), entries.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECTL: Manager<'_> = Manager { name: "kubectl", subresource: "" };
    const OTHER: Manager<'_> = Manager { name: "other", subresource: "" };

    fn config_map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
    }

    #[test]
    fn an_applied_field_is_owned_and_removed_when_no_longer_applied() {
        let first = apply(None, &config_map(json!({"a": "1", "b": "2"})), KUBECTL, false).unwrap();
        let entry = &first["metadata"]["managedFields"][0];
        assert_eq!((entry["manager"].as_str(), entry["operation"].as_str()), (Some("kubectl"), Some("Apply")));
        assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:a": {}, "f:b": {}}}));
        let second = apply(Some(&first), &config_map(json!({"a": "1"})), KUBECTL, false).unwrap();
        assert_eq!(second["data"], json!({"a": "1"}));
    }

    #[test]
    fn a_field_of_another_manager_conflicts_unless_forced() {
        let mut live = config_map(json!({"a": "1"}));
        record_update(None, &mut live, OTHER);
        let error = apply(Some(&live), &config_map(json!({"a": "2"})), KUBECTL, false).unwrap_err();
        assert_eq!(error.status.message, "Apply failed with 1 conflict: conflict with \"other\" using v1: .data.a");
        let forced = apply(Some(&live), &config_map(json!({"a": "2"})), KUBECTL, true).unwrap();
        assert_eq!(forced["data"]["a"], "2");
        assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn equal_values_are_owned_together() {
        let first = apply(None, &config_map(json!({"a": "1"})), KUBECTL, false).unwrap();
        let second = apply(Some(&first), &config_map(json!({"a": "1"})), OTHER, false).unwrap();
        let third = apply(Some(&second), &config_map(json!({})), KUBECTL, false).unwrap();
        assert_eq!(third["data"]["a"], "1");
    }

    #[test]
    fn an_update_takes_over_what_it_changes() {
        let before = apply(None, &config_map(json!({"a": "1", "b": "1"})), KUBECTL, false).unwrap();
        let mut after = before.clone();
        after["data"]["a"] = "2".into();
        record_update(Some(&before), &mut after, OTHER);
        let owned: Vec<_> =
            after["metadata"]["managedFields"].as_array().unwrap().iter().map(|e| &e["fieldsV1"]).collect();
        assert_eq!(owned, [&json!({"f:data": {"f:b": {}}}), &json!({"f:data": {"f:a": {}}})]);
    }
}
