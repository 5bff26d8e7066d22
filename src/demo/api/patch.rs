//! The patch formats: JSON merge patch (RFC 7396), JSON patch (RFC 6902) and strategic merge patch
//! (`k8s.io/apimachinery/pkg/util/strategicpatch`). Server-side apply is in [`super::managed_fields`].

use serde_json::{Map, Value};

use super::status::ApiError;

/// Operations one JSON patch may have (`maxJSONPatchOperations`).
const MAX_OPERATIONS: usize = 10_000;
/// Bytes the `copy` operations of one JSON patch may add; copies of copies double otherwise.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// RFC 7396.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = make_object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// A merge patch that also merges lists of objects by their merge key and knows the `$patch` directives.
pub(super) fn strategic_merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let replaces = patch.get("$patch").is_some_and(|directive| directive == "replace");
    let target = make_object(target);
    if replaces {
        target.clear();
    }
    for (key, value) in patch {
        merge_field(target, key, value);
    }
}

fn merge_field(target: &mut Map<String, Value>, key: &str, value: &Value) {
    if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
        if let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(list), value) {
            items.retain(|item| !gone.contains(item));
        }
        return;
    }
    if key.starts_with('$') {
        // $setElementOrder and $retainKeys refine an order and a cleanup this API does not keep.
        return;
    }
    match value {
        Value::Null => {
            target.remove(key);
        }
        Value::Array(items) => match merge_key(key, items) {
            Some(merge_key) => merge_list(make_array(target.entry(key).or_insert(Value::Null)), items, merge_key),
            None => {
                target.insert(key.to_owned(), value.clone());
            }
        },
        _ => strategic_merge(target.entry(key).or_insert(Value::Null), value),
    }
}

/// The key by which the Kubernetes types merge this list (`patchMergeKey`), if every item has it.
fn merge_key(list: &str, items: &[Value]) -> Option<&'static str> {
    let key = match list {
        "ports" if items.iter().all(|item| item.get("containerPort").is_some()) => "containerPort",
        "ports" => "port",
        "volumeMounts" => "mountPath",
        "conditions" => "type",
        "ownerReferences" => "uid",
        "tolerations" | "command" | "args" => return None,
        _ => "name",
    };
    (!items.is_empty() && items.iter().all(|item| item.get(key).is_some())).then_some(key)
}

fn merge_list(target: &mut Vec<Value>, items: &[Value], key: &str) {
    for item in items {
        let position = target.iter().position(|existing| existing[key] == item[key]);
        let deletes = item.get("$patch").is_some_and(|directive| directive == "delete");
        match position {
            Some(position) if deletes => {
                target.remove(position);
            }
            // `position` was found in this very list.
            Some(position) => strategic_merge(&mut target[position], item),
            None if deletes => {}
            None => {
                let mut added = Value::Null;
                strategic_merge(&mut added, item);
                target.push(added);
            }
        }
    }
}

/// RFC 6902: `add`, `remove`, `replace`, `move`, `copy`, `test`. Errors: 400 for what is no patch, 422 where it
/// does not fit the object.
pub(super) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let operations = patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(ApiError::too_large(MAX_OPERATIONS));
    }
    let mut copied = 0;
    for operation in operations {
        apply_operation(target, operation, &mut copied)
            .ok_or_else(|| ApiError::bad_request(format!("the JSON patch operation {operation} cannot be applied")))?;
    }
    Ok(())
}

fn apply_operation(target: &mut Value, operation: &Value, copied: &mut usize) -> Option<()> {
    let path = operation["path"].as_str()?;
    match operation["op"].as_str()? {
        "add" => add(target, path, operation.get("value")?.clone()),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            *target.pointer_mut(path)? = operation.get("value")?.clone();
            Some(())
        }
        "move" => {
            let moved = remove(target, operation["from"].as_str()?)?;
            add(target, path, moved)
        }
        "copy" => {
            let copy = target.pointer(operation["from"].as_str()?)?.clone();
            *copied += copy.to_string().len();
            (*copied <= MAX_COPIED).then(|| add(target, path, copy))?
        }
        "test" => (target.pointer(path)? == operation.get("value")?).then_some(()),
        _ => None,
    }
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    let (parent, key) = split_pointer(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => {
            map.insert(key, value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let index = key.parse().ok().filter(|index| *index <= items.len())?;
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = split_pointer(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&key),
        Value::Array(items) => {
            let index = key.parse().ok().filter(|index| *index < items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

fn split_pointer(path: &str) -> Option<(&str, String)> {
    let (parent, key) = path.rsplit_once('/')?;
    Some((parent, key.replace("~1", "/").replace("~0", "~")))
}

fn make_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    // The line above made it an object.
    value.as_object_mut().expect("an object")
}

fn make_array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    // The line above made it a list.
    value.as_array_mut().expect("a list")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_removes_a_field_in_a_merge_patch() {
        let mut object = json!({"data": {"a": "1", "b": "2"}});
        merge(&mut object, &json!({"data": {"a": null, "c": "3"}}));
        assert_eq!(object, json!({"data": {"b": "2", "c": "3"}}));
    }

    #[test]
    fn containers_merge_by_name_in_a_strategic_patch() {
        let mut object = json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "a"}, {"name": "c"}],
            "containers": [{"name": "a", "image": "z"}, {"name": "b", "$patch": "delete"}, {"name": "c"}],
        });
        strategic_merge(&mut object, &patch);
        assert_eq!(object, json!({"containers": [{"name": "a", "image": "z"}, {"name": "c"}]}));
    }

    #[test]
    fn lists_of_words_are_replaced_in_a_strategic_patch() {
        let mut object = json!({"args": ["a"], "finalizers": ["x", "y"]});
        strategic_merge(&mut object, &json!({"args": ["b"], "$deleteFromPrimitiveList/finalizers": ["x"]}));
        assert_eq!(object, json!({"args": ["b"], "finalizers": ["y"]}));
    }

    #[test]
    fn copies_of_copies_are_bounded() {
        let mut object = json!({"a": ["x".repeat(1000)]});
        let doubling = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        assert!(json_patch(&mut object, &vec![doubling; 64].into()).is_err());
    }

    #[test]
    fn a_json_patch_stops_at_a_failed_test() {
        let mut object = json!({"a": {"b": [1, 2]}});
        let good = json!([
            {"op": "test", "path": "/a/b/0", "value": 1},
            {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "replace", "path": "/a/b/0", "value": 0},
            {"op": "remove", "path": "/a/b/1"},
        ]);
        json_patch(&mut object, &good).unwrap();
        assert_eq!(object, json!({"a": {"b": [0, 3]}}));
        assert!(json_patch(&mut object, &json!([{"op": "test", "path": "/a/b/0", "value": 9}])).is_err());
        assert!(json_patch(&mut object, &json!([{"op": "add", "path": "/a/b/7", "value": 9}])).is_err());
    }
}
