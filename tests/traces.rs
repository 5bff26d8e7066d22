//! Spans of a request at a collector, and `traceparent` on its way.

mod support;

use std::sync::{Arc, Mutex};

use serde_json::Value;
use support::eventually_async;
use support::http1::Head;
use support::scene::Scene;
use support::scripted_upstream::{Next, ScriptedUpstream, UpstreamConnection};
use support::tunnel::StubOptions;

const PATH: &str = "/api/v1/namespaces/demo/pods";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A collector of spans.
struct Collector {
    server: ScriptedUpstream,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    async fn start() -> Self {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = spans.clone();
        let server = ScriptedUpstream::start(move |head: Head, mut connection: UpstreamConnection| {
            let spans = kept.clone();
            async move {
                assert_eq!((head.method(), head.target()), ("POST", "/v1/traces"));
                assert_eq!(head.header("content-type"), Some("application/json"));
                let (body, complete) = connection.wire.request_body(&head).await;
                assert!(complete);
                let body: Value = serde_json::from_slice(&body).unwrap();
                spans.lock().unwrap().extend(spans_of(&body));
                connection.answer("200 OK", &[("Content-Type", "application/json")], "{}").await
            }
        });
        Self { server: server.await, spans }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The span that this program told of the trace.
    async fn span(&self, service: &str, trace: &str) -> Value {
        eventually_async(&format!("a span of {service}"), async || {
            let spans = self.spans.lock().unwrap();
            spans.iter().find(|span| span["service"] == service && span["traceId"] == trace).cloned()
        })
        .await
    }
}

/// Every span of a body for a collector, each with the name of the program that tells it.
fn spans_of(body: &Value) -> Vec<Value> {
    let resource = &body["resourceSpans"][0];
    let service = attribute(&resource["resource"], "service.name").clone();
    let mut spans = resource["scopeSpans"][0]["spans"].as_array().unwrap().clone();
    for span in &mut spans {
        span["service"] = service.clone();
    }
    spans
}

/// The text or number of an attribute.
fn attribute<'a>(holder: &'a Value, key: &str) -> &'a Value {
    let attributes = holder["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("no {key} in {holder}"))["value"];
    if value["stringValue"].is_null() { &value["intValue"] } else { &value["stringValue"] }
}

/// Answers with the `traceparent` that came.
async fn echo(head: Head, connection: UpstreamConnection) -> Next {
    let came = head.header("traceparent").unwrap_or("none").to_owned();
    let status = if head.target().ends_with("/broken") { "500 Internal Server Error" } else { "200 OK" };
    connection.answer(status, &[], &came).await
}

async fn scene(collector: &Collector) -> Scene {
    let endpoint = collector.endpoint();
    let options = StubOptions::default().set("tracing", "otlp_endpoint", endpoint.as_str());
    Scene::start_with(options, &["--otlp-endpoint", &endpoint], echo).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_at_the_stub_and_one_below_it_at_the_agent() {
    let collector = Collector::start().await;
    let scene = scene(&collector).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let answer = scene.user.ask("GET", PATH, &[("traceparent", &parent), ("tracestate", "a=b")]).await;
    assert_eq!(answer.head.status(), 200);
    let stub = collector.span("qtunnel-stub", TRACE).await;
    let agent = collector.span("qtunnel-agent", TRACE).await;
    assert_eq!(stub["parentSpanId"], SPAN);
    assert_eq!(agent["parentSpanId"], stub["spanId"]);
    assert_eq!(answer.text(), format!("00-{TRACE}-{}-01", agent["spanId"].as_str().unwrap()));
    assert_eq!((&stub["kind"], &agent["kind"], &stub["name"]), (&2.into(), &3.into(), &"list pods".into()));
    for (key, value) in [
        ("enduser.id", "alice"),
        ("qtunnel.cluster", "c1"),
        ("k8s.verb", "list"),
        ("k8s.namespace.name", "demo"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(attribute(&stub, key), value);
    }
    assert_eq!(attribute(&agent, "http.response.status_code"), "200");
    let nanoseconds = |span: &Value, field: &str| span[field].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanoseconds(&stub, "startTimeUnixNano") < nanoseconds(&stub, "endTimeUnixNano"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_trace_begins_one_and_an_error_is_marked() {
    let collector = Collector::start().await;
    let scene = scene(&collector).await;
    let answer = scene.user.ask("GET", &format!("{PATH}/broken"), &[("traceparent", "nonsense")]).await;
    let trace = answer.text().split('-').nth(1).unwrap().to_owned();
    let stub = collector.span("qtunnel-stub", &trace).await;
    assert_eq!(stub["parentSpanId"], Value::Null);
    assert_eq!(stub["status"]["code"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_not_recorded_stays_so_and_without_a_collector_nothing_is_changed() {
    let collector = Collector::start().await;
    let traced = scene(&collector).await;
    let unrecorded = format!("00-{TRACE}-{SPAN}-00");
    let answer = traced.user.ask("GET", PATH, &[("traceparent", &unrecorded)]).await;
    assert!(answer.text().starts_with(&format!("00-{TRACE}-")) && answer.text().ends_with("-00"), "{}", answer.text());
    // A recorded one after it: what would have been told of the other has been told when this one has.
    let answer = traced.user.ask("GET", PATH, &[]).await;
    let trace = answer.text().split('-').nth(1).unwrap().to_owned();
    collector.span("qtunnel-stub", &trace).await;
    assert!(collector.spans.lock().unwrap().iter().all(|span| span["traceId"] != TRACE));

    let untraced = Scene::start(echo).await;
    let answer = untraced.user.ask("GET", PATH, &[("traceparent", &unrecorded)]).await;
    assert_eq!(answer.text(), unrecorded);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pass_while_the_collector_is_gone() {
    let collector = Collector::start().await;
    let mut scene = scene(&collector).await;
    drop(collector);
    assert_eq!(scene.user.ask("GET", PATH, &[]).await.head.status(), 200);
    scene.stub.process.wait_for_log("spans are lost");
    assert_eq!(scene.user.ask("GET", PATH, &[]).await.head.status(), 200);
}
