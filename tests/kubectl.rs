//! kubectl through the tunnel: objects, discovery, identity and routing, with a new kubectl and an old one.

mod support;

use std::io::Read;

use flate2::read::GzDecoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, LOCATION};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use support::http::{Access, get_plain, read};
use support::kubectl::Kubectl;
use support::proxy::ConnectProxy;
use support::tunnel::{AgentOptions, CLUSTER, IMPERSONATORS, StubOptions, Tunnel, USERS};

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note, namespace: demo}\ndata: {a: \"1\"}\n";

#[test]
fn objects_are_shown_as_tables_and_as_they_are() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let pods = kubectl.ok(&["get", "pods", "-n", "demo"]);
        assert!(pods.starts_with("NAME") && pods.contains("web") && pods.contains("3/3"), "{pods}");
        assert!(kubectl.ok(&["get", "pods", "-A", "-o", "name"]).contains("pod/dns"));
        let pod: Value = serde_json::from_str(&kubectl.ok(&["get", "pod", "web", "-n", "demo", "-o", "json"])).unwrap();
        assert_eq!(pod["metadata"]["name"], "web");
        assert!(kubectl.ok(&["describe", "pod", "web", "-n", "demo"]).contains("sidecar"));
        assert_eq!(kubectl.ok(&["get", "cm", "-n", "demo", "-l", "app=web", "-o", "name"]), "configmap/settings\n");
    }
}

#[test]
fn objects_are_applied_changed_and_deleted() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let file = kubectl.file("cm.yaml", CONFIG_MAP);
        assert_eq!(kubectl.ok(&["apply", "-f", &file]), "configmap/note created\n");
        kubectl.file("cm.yaml", CONFIG_MAP.replace("\"1\"", "\"2\""));
        assert_eq!(kubectl.ok(&["apply", "-f", &file]), "configmap/note configured\n");
        assert_eq!(kubectl.ok(&["apply", "-f", &file]), "configmap/note unchanged\n");
        kubectl.ok(&["label", "cm", "note", "-n", "demo", "a=b"]);
        kubectl.ok(&["patch", "cm", "note", "-n", "demo", "--type=merge", "-p", r#"{"data":{"b":"x"}}"#]);
        // The fields that `apply` left alone go with a replacement.
        assert_eq!(kubectl.ok(&["replace", "-f", &file]), "configmap/note replaced\n");
        let note: Value =
            serde_json::from_str(&kubectl.ok(&["get", "cm", "note", "-n", "demo", "-o", "json"])).unwrap();
        assert_eq!((&note["data"], &note["metadata"]["labels"]), (&json!({"a": "2"}), &Value::Null));
        assert_eq!(kubectl.ok(&["delete", "-f", &file]), "configmap \"note\" deleted\n");
        assert!(
            kubectl
                .fails(&["get", "-f", &file])
                .contains("Error from server (NotFound): configmaps \"note\" not found")
        );
    }
}

#[test]
fn objects_are_applied_at_the_server_with_their_owners_kept_apart() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let file = kubectl.file("cm.yaml", CONFIG_MAP);
        assert_eq!(kubectl.ok(&["apply", "--server-side", "-f", &file]), "configmap/note serverside-applied\n");
        kubectl.file("cm.yaml", CONFIG_MAP.replace("\"1\"", "\"2\""));
        let conflict = kubectl.fails(&["apply", "--server-side", "--field-manager=other", "-f", &file]);
        assert!(conflict.contains("conflict with \"kubectl\""), "{conflict}");
        kubectl.ok(&["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", &file]);
        assert_eq!(kubectl.ok(&["get", "cm", "note", "-n", "demo", "-o", "jsonpath={.data.a}"]), "2");
        kubectl.ok(&["delete", "-f", &file]);
    }
}

#[test]
fn the_clusters_own_complaints_arrive_word_for_word() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let conflict = kubectl.fails(&["create", "cm", "settings", "-n", "demo"]);
        assert!(
            conflict.contains("(AlreadyExists): configmaps \"settings\" already exists")
                || conflict.contains("configmaps \"settings\" already exists"),
            "{conflict}"
        );
        let invalid = kubectl.file("bad.yaml", CONFIG_MAP.replace("a: \"1\"", "\"bad key!\": \"1\""));
        let invalid = kubectl.fails(&["apply", "-f", &invalid]);
        assert!(
            invalid.contains("The ConfigMap \"note\" is invalid")
                && invalid.contains("a valid config key must consist of"),
            "{invalid}"
        );
    }
}

#[test]
fn discovery_explains_what_there_is() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let resources = kubectl.ok(&["api-resources"]);
        assert!(resources.contains("deployments") && resources.contains("configmaps"), "{resources}");
        assert!(kubectl.ok(&["api-versions"]).contains("apps/v1"));
        assert!(kubectl.ok(&["explain", "configmap.data"]).contains("configuration data"));
        assert!(kubectl.ok(&["version"]).contains("1.36"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_openapi_document_is_found_below_the_clusters_path() {
    let tunnel = Tunnel::start();
    let access = Access::of(&tunnel.kubeconfig());
    let index = access.get("/openapi/v3").await.json();
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    for mut client in [access.http1().await, access.http2().await] {
        let moved = client.get("/openapi/v3/api/v1?hash=STALE").await;
        assert_eq!(moved.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(moved.headers[LOCATION], format!("/clusters/{CLUSTER}{url}"));
        let document = client.get(&url).await;
        assert_eq!((document.status, &document.json()["openapi"]), (StatusCode::OK, &json!("3.0.0")));
    }
    // kubectl follows it.
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let path = format!("/clusters/{CLUSTER}/openapi/v3/api/v1?hash=STALE");
        assert!(kubectl.ok(&["get", "--raw", &path]).contains("io.k8s.api.core.v1.ConfigMap"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_come_compressed_and_in_chunks() {
    let tunnel = Tunnel::start();
    let Some(kubectl) = Kubectl::newest(&tunnel.kubeconfig()) else { return };
    let item = |number: usize| {
        let metadata =
            json!({"name": format!("large-{number}"), "namespace": "kube-public", "labels": {"set": "large"}});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": "x".repeat(1024)}})
    };
    let items: Vec<Value> = (0..200).map(item).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    kubectl.ok(&["create", "-f", &kubectl.file("list.json", list)]);

    let mut client = Access::of(&tunnel.kubeconfig()).http2().await;
    let path = "/api/v1/namespaces/kube-public/configmaps?labelSelector=set%3Dlarge";
    let mut request = client.request(path);
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    let compressed = read(client.send(request).await).await;
    assert_eq!(compressed.headers[CONTENT_ENCODING], "gzip");
    let mut whole = Vec::new();
    GzDecoder::new(&*compressed.body).read_to_end(&mut whole).unwrap();
    let plain = client.get(path).await;
    assert!(!plain.headers.contains_key(CONTENT_ENCODING));
    assert!(plain.body == whole, "{} and {} bytes", plain.body.len(), whole.len());

    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let names = ["get", "cm", "-n", "kube-public", "-l", "set=large", "-o", "name"];
        assert_eq!(kubectl.ok(&names).lines().count(), 200);
        assert_eq!(kubectl.ok(&[&names[..], &["--chunk-size=30"]].concat()).lines().count(), 200);
        let json = kubectl.ok(&["get", "cm", "-n", "kube-public", "-l", "set=large", "-o", "json"]);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["items"].as_array().unwrap().len(), 200);
    }
}

#[test]
fn the_cluster_knows_the_user_by_name() {
    let tunnel = Tunnel::start();
    if let Some(kubectl) = Kubectl::newest(&tunnel.kubeconfig()) {
        let review: Value = serde_json::from_str(&kubectl.ok(&["auth", "whoami", "-o", "json"])).unwrap();
        let user = &review["status"]["userInfo"];
        assert_eq!((&user["username"], &user["groups"]), (&json!("alice"), &json!([USERS, "system:authenticated"])));
    }
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        assert_eq!(kubectl.ok(&["auth", "can-i", "list", "pods", "-n", "demo"]), "yes\n");
        let cannot = kubectl.run(&["auth", "can-i", "impersonate", "users"]);
        assert!(cannot.stdout_text().starts_with("no") && cannot.code() == 1, "{cannot:?}");
    }
    for kubectl in Kubectl::versions(&tunnel.stub.kubeconfig(CLUSTER, "mallory", &[])) {
        let forbidden = kubectl.fails(&["get", "secrets", "-n", "demo"]);
        let words = "Error from server (Forbidden): secrets is forbidden: User \"mallory\" cannot list resource \"secrets\" in API group \"\" in the namespace \"demo\"";
        assert!(forbidden.contains(words), "{forbidden}");
    }
}

#[test]
fn acting_as_somebody_else_takes_the_clusters_permission() {
    let tunnel = Tunnel::start();
    let may = tunnel.stub.kubeconfig(CLUSTER, "carol", &[IMPERSONATORS]);
    for kubectl in Kubectl::versions(&may) {
        let as_users = ["--as", "bob", "--as-group", USERS];
        assert!(kubectl.ok(&[&["get", "pods", "-n", "demo"][..], &as_users].concat()).contains("web"));
        // carol herself may not, and neither may bob without the group.
        assert!(kubectl.fails(&["get", "pods", "-n", "demo"]).contains("User \"carol\" cannot list"));
        assert!(kubectl.fails(&["get", "pods", "-n", "demo", "--as", "bob"]).contains("User \"bob\" cannot list"));
    }
    if let Some(kubectl) = Kubectl::newest(&may) {
        let whoami = kubectl.ok(&["auth", "whoami", "-o", "json", "--as", "bob", "--as-group", "ops"]);
        let user = serde_json::from_str::<Value>(&whoami).unwrap()["status"]["userInfo"].clone();
        assert_eq!((&user["username"], &user["groups"]), (&json!("bob"), &json!(["ops", "system:authenticated"])));
        assert!(user["extra"].to_string().contains("carol"), "on whose behalf: {user}");
    }
    if let Some(kubectl) = Kubectl::newest(&tunnel.kubeconfig()) {
        let refused = kubectl.fails(&["create", "cm", "mine", "-n", "demo", "--as", "bob"]);
        assert!(refused.contains("is forbidden") && refused.contains("cannot impersonate users \"bob\""), "{refused}");
    }
}

#[test]
fn nobody_becomes_a_system_master_through_the_tunnel() {
    let tunnel = Tunnel::start();
    let identities = [
        (
            tunnel.stub.kubeconfig(CLUSTER, "carol", &[IMPERSONATORS]),
            vec!["--as", "bob", "--as-group", "system:masters"],
        ),
        (tunnel.stub.kubeconfig(CLUSTER, "mallory", &["system:masters"]), vec![]),
    ];
    for (kubeconfig, arguments) in identities {
        if let Some(kubectl) = Kubectl::newest(&kubeconfig) {
            // Where discovery is refused, kubectl keeps the reason to itself; this command does without discovery.
            let refused = kubectl.fails(&[&["create", "cm", "mine", "-n", "demo"], &arguments[..]].concat());
            assert!(refused.contains("agent does not impersonate the group \"system:masters\""), "{refused}");
        }
    }
}

#[test]
fn each_cluster_answers_at_a_host_name_of_its_own() {
    let options = StubOptions::default().base_domain("clusters.test");
    let tunnel = Tunnel::start_with(options, AgentOptions::default());
    let kubeconfig = tunnel.kubeconfig();
    let server = format!("https://{CLUSTER}.clusters.test:{}", tunnel.stub.address.port());
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(text.contains(&server), "{text}");
    // No resolver knows the name; a proxy that leads to the stub whatever the name takes its place.
    let proxy = ConnectProxy::start(tunnel.stub.address);
    for kubectl in Kubectl::all(&kubeconfig) {
        kubectl.ok(&["config", "set", &format!("clusters.{CLUSTER}.proxy-url"), &format!("http://{}", proxy.address)]);
        assert!(kubectl.ok(&["get", "pods", "-n", "demo"]).contains("web"));
        assert_eq!(kubectl.ok(&["exec", "-n", "demo", "web", "-c", "web", "--", "echo", "hi"]), "hi\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_and_a_path_lead_to_the_same_cluster() {
    let options = StubOptions::default().base_domain("clusters.test");
    let tunnel = Tunnel::start_with(options, AgentOptions::default());
    let access = Access::of(&tunnel.kubeconfig());
    assert_eq!(access.prefix(), "");
    for mut client in [access.http1().await, access.http2().await] {
        assert_eq!(client.get("/api/v1/namespaces/demo").await.json()["metadata"]["name"], "demo");
        let moved = client.get("/openapi/v3/api/v1?hash=STALE").await;
        assert!(moved.headers[LOCATION].to_str().unwrap().starts_with("/openapi/v3/api/v1?hash="));
    }
    let by_path = access.at(&format!("https://127.0.0.1:{}/clusters/{CLUSTER}", tunnel.stub.address.port()));
    for mut client in [by_path.http1().await, by_path.http2().await] {
        assert_eq!(client.get("/api/v1/namespaces/demo").await.json()["metadata"]["name"], "demo");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_proxy_serves_the_cluster_on_a_local_port() {
    let tunnel = Tunnel::start();
    // The old one leaves the path of the server to whoever asks.
    let prefix = format!("/clusters/{CLUSTER}");
    let kubeconfig = tunnel.kubeconfig();
    let clients =
        [(Kubectl::newest(&kubeconfig), &["--append-server-path"][..], ""), (Kubectl::old(&kubeconfig), &[], &prefix)];
    for (kubectl, arguments, prefix) in clients {
        let Some(kubectl) = kubectl else { continue };
        let mut proxy = kubectl.start(&[&["proxy", "--port=0"], arguments].concat());
        let said = proxy.wait_for_stdout("its address", |text| text.contains("Starting to serve on"));
        let address = said.split_whitespace().last().unwrap().to_owned();
        let answer = get_plain(&address, &format!("{prefix}/api/v1/namespaces/demo/pods/web")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"name\":\"web\""), "{answer}");
    }
}
