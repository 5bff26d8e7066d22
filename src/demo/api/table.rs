//! Server-side printing: `meta.k8s.io` Tables (`k8s.io/kubernetes/pkg/printers/internalversion/printers.go`).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{request::Query, resources::Resource, response::ListMeta};

/// A column: name, type, format, priority (0 is always shown, 1 with `-o wide`).
type Column = (&'static str, &'static str, &'static str, u8);

const NAME: Column = ("Name", "string", "name", 0);
const AGE: Column = ("Age", "string", "", 0);

/// The table of these objects. `query` may say what of the objects comes along (`includeObject`).
pub(super) fn of_objects<'a>(
    resource: &Resource,
    version: &str,
    metadata: &ListMeta,
    objects: impl Iterator<Item = &'a Value>,
    query: &Query,
) -> Value {
    let rows: Vec<Value> = objects.map(|object| row(resource, version, object, query.get("includeObject"))).collect();
    let columns: Vec<Value> = columns(resource)
        .iter()
        .map(|(name, kind, format, priority)| {
            json!({"name": name, "type": kind, "format": format, "description": name, "priority": priority})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// The object with its metadata alone.
pub(super) fn partial_metadata(version: &str, object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": object["metadata"],
    })
}

fn row(resource: &Resource, version: &str, object: &Value, include: Option<&str>) -> Value {
    let cells = cells(resource, object);
    match include {
        Some("None") => json!({"cells": cells}),
        Some("Object") => json!({"cells": cells, "object": object}),
        _ => json!({"cells": cells, "object": partial_metadata(version, object)}),
    }
}

fn columns(resource: &Resource) -> &'static [Column] {
    match resource.plural {
        "pods" => &[
            NAME,
            ("Ready", "string", "", 0),
            ("Status", "string", "", 0),
            ("Restarts", "string", "", 0),
            AGE,
            ("IP", "string", "", 1),
            ("Node", "string", "", 1),
        ],
        "configmaps" => &[NAME, ("Data", "integer", "", 0), AGE],
        "secrets" => &[NAME, ("Type", "string", "", 0), ("Data", "integer", "", 0), AGE],
        "namespaces" | "nodes" => &[NAME, ("Status", "string", "", 0), AGE],
        "services" => {
            &[NAME, ("Type", "string", "", 0), ("Cluster-IP", "string", "", 0), ("Port(s)", "string", "", 0), AGE]
        }
        "deployments" => {
            &[NAME, ("Ready", "string", "", 0), ("Up-to-date", "integer", "", 0), ("Available", "integer", "", 0), AGE]
        }
        "leases" => &[NAME, ("Holder", "string", "", 0), AGE],
        "events" => &[
            ("Last Seen", "string", "", 0),
            ("Type", "string", "", 0),
            ("Reason", "string", "", 0),
            ("Object", "string", "", 0),
            ("Message", "string", "", 0),
        ],
        _ => &[NAME, AGE],
    }
}

fn cells(resource: &Resource, object: &Value) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    let age = Value::from(age(&object["metadata"]["creationTimestamp"]));
    let status = &object["status"];
    match resource.plural {
        "pods" => {
            let (ready, restarts, all) = count_containers(object);
            let phase = status["phase"].clone();
            let (ip, node) = (status["podIP"].clone(), object["spec"]["nodeName"].clone());
            vec![name, format!("{ready}/{all}").into(), phase, restarts.to_string().into(), age, ip, node]
        }
        "configmaps" => vec![name, (entries(&object["data"]) + entries(&object["binaryData"])).into(), age],
        "secrets" => vec![name, object["type"].clone(), entries(&object["data"]).into(), age],
        "namespaces" => vec![name, status["phase"].clone(), age],
        "nodes" => vec![name, "Ready".into(), age],
        "services" => {
            let spec = &object["spec"];
            vec![name, spec["type"].clone(), spec["clusterIP"].clone(), ports(&spec["ports"]).into(), age]
        }
        "deployments" => {
            let count = |key: &str| status[key].as_u64().unwrap_or_default();
            let wanted = object["spec"]["replicas"].as_u64().unwrap_or_default();
            let ready = format!("{}/{wanted}", count("readyReplicas"));
            vec![name, ready.into(), count("updatedReplicas").into(), count("availableReplicas").into(), age]
        }
        "leases" => vec![name, object["spec"]["holderIdentity"].clone(), age],
        "events" => {
            let about = &object["involvedObject"];
            let kind = about["kind"].as_str().unwrap_or_default().to_lowercase();
            let about = format!("{kind}/{}", about["name"].as_str().unwrap_or_default());
            vec![age, object["type"].clone(), object["reason"].clone(), about.into(), object["message"].clone()]
        }
        _ => vec![name, age],
    }
}

fn count_containers(pod: &Value) -> (usize, u64, usize) {
    let statuses = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = statuses.iter().filter(|status| status["ready"] == true).count();
    let restarts = statuses.iter().filter_map(|status| status["restartCount"].as_u64()).sum();
    (ready, restarts, pod["spec"]["containers"].as_array().map_or(0, Vec::len))
}

fn entries(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn ports(ports: &Value) -> String {
    let ports = ports.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let ports = ports.map(|port| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP")));
    let ports: Vec<String> = ports.collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

fn age(created: &Value) -> String {
    let created = created.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or_else(|| "<unknown>".to_owned(), |t| human(Timestamp::now().as_second() - t.as_second()))
}

/// Seconds as kubectl prints an age (`k8s.io/apimachinery/pkg/util/duration/duration.go`, `HumanDuration`).
fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, big_unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, 'y', days % 365, 'd'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::api::resources::pods;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let printed: Vec<String> = [5, 119, 150, 3000, 10_800, 90_000, 200_000].map(human).into();
        assert_eq!(printed, ["5s", "119s", "2m30s", "50m", "3h", "25h", "2d7h"]);
    }

    #[test]
    fn a_pod_shows_how_many_containers_are_ready() {
        let pod = json!({
            "metadata": {"name": "web"}, "spec": {"containers": [{}, {}]},
            "status": {"phase": "Running", "containerStatuses": [{"ready": true}, {"ready": false, "restartCount": 2}]},
        });
        let row = row(pods(), "v1", &pod, Some("None"));
        assert_eq!(row["cells"].as_array().unwrap()[..4], ["web", "1/2", "Running", "2"]);
    }
}
