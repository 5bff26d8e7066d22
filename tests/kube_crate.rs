//! The `kube` crate through the tunnel: another client, with habits of its own (HTTP/1.1 only, WebSockets of its own make).

mod support;

use std::time::Duration;

use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use support::DEADLINE;
use support::tunnel::Tunnel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn client(tunnel: &Tunnel) -> Client {
    let kubeconfig = Kubeconfig::read_from(tunnel.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value}})
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_listed_created_applied_and_deleted() {
    let tunnel = Tunnel::start();
    let client = client(&tunnel).await;
    assert_eq!(in_time(client.apiserver_version()).await.unwrap().minor, "36");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "demo");
    let names = in_time(pods.list(&ListParams::default())).await.unwrap();
    assert!(names.iter().any(|pod| pod.metadata.name.as_deref() == Some("web")));

    let maps: Api<ConfigMap> = Api::namespaced(client, "demo");
    let new = serde_json::from_value(config_map("kube-rs", "1")).unwrap();
    in_time(maps.create(&PostParams::default(), &new)).await.unwrap();
    let again = in_time(maps.create(&PostParams::default(), &new)).await.unwrap_err();
    assert!(again.to_string().contains("already exists"), "{again}");
    let apply = PatchParams::apply("kube-rs").force();
    let applied = in_time(maps.patch("kube-rs", &apply, &Patch::Apply(config_map("kube-rs", "2")))).await.unwrap();
    assert_eq!(applied.data.unwrap()["a"], "2");
    in_time(maps.delete("kube-rs", &DeleteParams::default())).await.unwrap();
    assert!(in_time(maps.get_opt("kube-rs")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_each_change() {
    let tunnel = Tunnel::start();
    let maps: Api<ConfigMap> = Api::namespaced(client(&tunnel).await, "demo");
    let now = in_time(maps.list(&ListParams::default())).await.unwrap().metadata.resource_version.unwrap();
    let mut events = in_time(maps.watch(&WatchParams::default(), &now)).await.unwrap().boxed();
    let new = serde_json::from_value(config_map("watched", "1")).unwrap();
    in_time(maps.create(&PostParams::default(), &new)).await.unwrap();
    in_time(maps.delete("watched", &DeleteParams::default())).await.unwrap();
    for wanted in ["added", "deleted"] {
        let (seen, object) = match in_time(events.try_next()).await.unwrap().unwrap() {
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            other => panic!("{other:?}"),
        };
        assert_eq!((seen, object.metadata.name.as_deref()), (wanted, Some("watched")));
    }
    drop(events);
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed() {
    let tunnel = Tunnel::start();
    let pods: Api<Pod> = Api::namespaced(client(&tunnel).await, "demo");
    let container = Some("fast".to_owned());
    let params = LogParams { container, follow: true, tail_lines: Some(1), ..LogParams::default() };
    let mut lines = in_time(pods.log_stream("web", &params)).await.unwrap().lines();
    for _ in 0..20 {
        let line = in_time(lines.try_next()).await.unwrap().unwrap();
        assert!(line.starts_with("tick "), "{line}");
    }
    drop(lines);
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_input_output_and_an_exit_code() {
    let tunnel = Tunnel::start();
    let pods: Api<Pod> = Api::namespaced(client(&tunnel).await, "demo");
    let params = AttachParams::default().container("web").stdin(true);
    let command = ["sh", "-c", "cat; echo err >&2; exit 3"];
    let mut process = in_time(pods.exec("web", command, &params)).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let (mut stderr, status) = (process.stderr().unwrap(), process.take_status().unwrap());
    let input: Vec<u8> = (0..100_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    let sent = input.clone();
    let writing = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let (mut out, mut err) = (Vec::new(), String::new());
    let (read_out, read_err) =
        in_time(async { tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_string(&mut err)) }).await;
    read_out.unwrap();
    read_err.unwrap();
    writing.await.unwrap();
    assert!(out == input, "{} bytes came back", out.len());
    assert_eq!(err, "err\n");
    let status = in_time(status).await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");
    // A process that failed is no failure of the session.
    let _ = in_time(process.join()).await;
    tunnel.wait_until_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_port_carries_a_request() {
    let tunnel = Tunnel::start();
    let pods: Api<Pod> = Api::namespaced(client(&tunnel).await, "demo");
    let mut forwarder = in_time(pods.portforward("web", &[80])).await.unwrap();
    let mut stream = forwarder.take_stream(80).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
    assert!(answer.ends_with("hello from web\n"), "{answer}");
    drop(stream);
    forwarder.abort();
    tunnel.wait_until_idle();
}
