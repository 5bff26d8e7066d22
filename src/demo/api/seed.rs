//! What a fresh sample cluster contains.

use serde_json::{Value, json};

use super::{
    managed_fields::{self, Manager},
    objects,
    resources::Resource,
    store::{Commit, Key, Store},
};

/// Fills an empty store, and makes that its oldest history.
pub(super) fn fill(store: &Store, cluster_name: &str) {
    for namespace in ["default", "kube-system", "kube-public", "demo"] {
        add(store, "namespaces", "", json!({"metadata": {"name": namespace}}));
        add(store, "serviceaccounts", namespace, json!({"metadata": {"name": "default"}}));
    }
    add(store, "nodes", "", node());
    let cluster = json!({"metadata": {"name": "cluster-info"}, "data": {"name": cluster_name}});
    add(store, "configmaps", "kube-public", cluster);
    let settings = json!({"metadata": {"name": "settings", "labels": {"app": "web"}}, "data": {"greeting": "hello"}});
    add(store, "configmaps", "demo", settings);
    add(store, "secrets", "demo", json!({"metadata": {"name": "login"}, "stringData": {"user": "sample"}}));
    let ports = json!([{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}]);
    let spec = json!({"selector": {"app": "web"}, "ports": ports});
    add(store, "services", "demo", json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": spec}));
    add(store, "pods", "demo", pod("web", web_containers()));
    add(store, "pods", "demo", pod("worker", json!([{"name": "worker", "image": "qtunnel.sample/ticker"}])));
    add(store, "pods", "kube-system", pod("dns", json!([{"name": "dns", "image": "qtunnel.sample/ticker"}])));
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": web_containers()}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    add(store, "deployments", "demo", json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": spec}));
    store.forget_history();
}

fn add(store: &Store, plural: &str, namespace: &str, mut object: Value) {
    let group = match plural {
        "deployments" => "apps",
        _ => "",
    };
    // Every resource named in `fill` stands in the table, and every object there is valid.
    let resource = Resource::find(group, "v1", plural).expect("a resource of the table");
    objects::prepare_create(resource, namespace, &mut object).expect("a valid object");
    managed_fields::record_update(None, &mut object, Manager { name: "sample-api", subresource: "" });
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let key = Key::new(resource, namespace, name);
    store.create(resource, key, object, Commit::Keep).expect("a name used once");
}

fn pod(name: &str, containers: Value) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": containers}})
}

/// A container that ticks once a second, one that echoes what it reads, one that ticks a hundred times a second.
fn web_containers() -> Value {
    json!([
        {"name": "web", "image": "qtunnel.sample/ticker", "ports": [{"containerPort": 80, "protocol": "TCP"}]},
        {"name": "sidecar", "image": "qtunnel.sample/cat", "command": ["cat"], "stdin": true},
        {
            "name": "fast", "image": "qtunnel.sample/ticker",
            "env": [{"name": "TICKS_PER_SECOND", "value": "100"}],
        },
    ])
}

fn node() -> Value {
    let capacity = json!({"cpu": "2", "memory": "4Gi", "pods": "110"});
    json!({
        "metadata": {"name": "sample-node", "labels": {"kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "SampleReady"}],
            "nodeInfo": {"kubeletVersion": super::discovery::GIT_VERSION, "operatingSystem": "linux"},
        },
    })
}
