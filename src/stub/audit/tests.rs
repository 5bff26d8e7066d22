use std::sync::Mutex;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::kube::{RequestInfo, RequestPath};
use crate::stub::authorize::{Decision, OwnedAttributes};
use crate::stub::meter::Meter;
use crate::stub::open_requests::{OpenRequests, Origin};
use crate::stub::record::{GivenAnswer, RequestRecord, Watchers};
use crate::wire::Identity;

/// Keeps what is written, unless it has to fail.
#[derive(Debug, Clone, Default)]
struct Memory {
    events: Arc<Mutex<Vec<Value>>>,
    /// How many events each write had.
    batches: Arc<Mutex<Vec<usize>>>,
    failures: Arc<Mutex<u32>>,
}

impl AuditSink for Memory {
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a> {
        Box::pin(async move {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(SinkError("the disk is full".to_owned()));
            }
            self.batches.lock().unwrap().push(events.len());
            let events = events.iter().map(|event| serde_json::to_value(event).unwrap());
            self.events.lock().unwrap().extend(events);
            Ok(())
        })
    }
}

fn attributes(method: &http::Method, target: &str, requested: Option<Identity>) -> Arc<OwnedAttributes> {
    let path = RequestPath::parse(target).unwrap();
    let user = Identity {
        uid: Some("u1".to_owned()),
        groups: vec!["devs".to_owned()],
        extra: vec![("team".to_owned(), "a".to_owned()), ("team".to_owned(), "b".to_owned())],
        ..Identity::named("alice")
    };
    let request = RequestInfo::new(method, &path).unwrap();
    Arc::new(OwnedAttributes { user, requested, cluster: "prod-eu".parse().unwrap(), request })
}

/// A request from its beginning to its end.
async fn make(log: &AuditLog, target: &str, answer: GivenAnswer) -> Result<(), Status> {
    let request = http::Request::get(format!("/clusters/prod-eu{target}"))
        .header("user-agent", "kubectl/v1.33")
        .header("authorization", "Bearer sesame")
        .body(())
        .unwrap();
    let mut record = RequestRecord::new(&request, "192.0.2.1".parse().unwrap(), &Watchers::default());
    record.audit(log.begin().await?);
    let attributes = attributes(request.method(), target, Some(Identity::named("bob")));
    record.set_user(&attributes.user);
    record.set_target(&attributes.cluster, target);
    let attributes = Arc::unwrap_or_clone(attributes);
    let requests = Arc::new(OpenRequests::default());
    let open = requests.open(attributes, Origin::of(record.facts(), None), Meter::default());
    record.understood(&open).await?;
    record.decided(Decision::Allow("rule 1".into()));
    record.answered(answer, Some("agent-1".parse().unwrap()));
    record.complete();
    Ok(())
}

fn passed(code: u16) -> GivenAnswer {
    GivenAnswer::Passed(http::StatusCode::from_u16(code).unwrap())
}

const EXEC: &str = "/api/v1/namespaces/demo/pods/web/exec?command=sh&token=sesame";

async fn written(memory: &Memory, writer: AuditWriter) -> Vec<Value> {
    let stop = CancellationToken::new();
    stop.cancel();
    timeout(Duration::from_secs(30), writer.run(stop)).await.unwrap();
    memory.events.lock().unwrap().clone()
}

#[tokio::test]
async fn an_exec_leaves_three_events_of_the_form_that_kubernetes_has() {
    let memory = Memory::default();
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Block, 16);
    make(&log, EXEC, passed(101)).await.unwrap();
    let mut events = written(&memory, writer).await;
    let stages: Vec<_> = events.iter().map(|event| event["stage"].as_str().unwrap().to_owned()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert!(events.iter().all(|event| event["auditID"] == events[0]["auditID"]));
    assert!(!format!("{events:?}").contains("sesame"), "no secret is in the log");
    assert_eq!(events[0]["annotations"], json!({"qtunnel.dev/cluster": "prod-eu"}));
    assert_eq!(events[0].get("responseStatus"), None);

    let mut last = events.pop().unwrap();
    let last = last.as_object_mut().unwrap();
    for key in ["requestReceivedTimestamp", "stageTimestamp"] {
        let time = last.remove(key).unwrap();
        // 2006-01-02T15:04:05.000000Z
        assert_eq!(time.as_str().unwrap().len(), 27, "{time}");
    }
    last.remove("auditID").unwrap();
    last["annotations"].as_object_mut().unwrap().remove("qtunnel.dev/duration-ms").unwrap();
    let expected = json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces/demo/pods/web/exec?command=sh&token=redacted",
        "verb": "get",
        "user": {"username": "alice", "uid": "u1", "groups": ["devs"], "extra": {"team": ["a", "b"]}},
        "impersonatedUser": {"username": "bob"},
        "sourceIPs": ["192.0.2.1"],
        "userAgent": "kubectl/v1.33",
        "objectRef": {
            "resource": "pods", "namespace": "demo", "name": "web", "apiVersion": "v1", "subresource": "exec",
        },
        "responseStatus": {"metadata": {}, "code": 101},
        "annotations": {
            "authorization.k8s.io/decision": "allow",
            "authorization.k8s.io/reason": "rule 1",
            "qtunnel.dev/agent": "agent-1",
            "qtunnel.dev/bytes-received": "0",
            "qtunnel.dev/bytes-sent": "0",
            "qtunnel.dev/cluster": "prod-eu",
            "qtunnel.dev/end": "complete",
        },
    });
    assert_eq!(Value::from(last.clone()), expected);
}

#[tokio::test]
async fn a_fault_of_the_stub_itself_is_in_the_log() {
    let memory = Memory::default();
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Block, 16);
    let trail = log.begin().await.unwrap();
    let handling = tokio::spawn(async move {
        let request = http::Request::get("/api").body(()).unwrap();
        let mut record = RequestRecord::new(&request, "192.0.2.1".parse().unwrap(), &Watchers::default());
        record.audit(trail);
        panic!("a fault");
    });
    assert!(handling.await.unwrap_err().is_panic());
    let events = written(&memory, writer).await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0]["stage"], &events[0]["annotations"]["qtunnel.dev/end"]),
        (&"Panic".into(), &"panicked".into())
    );
}

#[tokio::test]
async fn a_short_request_leaves_two_events() {
    let memory = Memory::default();
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Drop, 16);
    make(&log, "/api/v1/pods", GivenAnswer::Own(Status::bad_request("what?"))).await.unwrap();
    let events = written(&memory, writer).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["responseStatus"]["reason"], "BadRequest");
    assert_eq!(events[1]["responseStatus"]["code"], 400);
}

#[tokio::test]
async fn what_has_no_room_is_dropped_and_counted() {
    let memory = Memory::default();
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Drop, 3);
    for _ in 0..3 {
        make(&log, "/api/v1/pods", passed(200)).await.unwrap();
    }
    assert_eq!(log.dropped(), 3);
    assert_eq!(written(&memory, writer).await.len(), 3);
}

#[tokio::test]
async fn what_a_failing_sink_does_not_take_is_dropped_and_counted() {
    let memory = Memory::default();
    *memory.failures.lock().unwrap() = 1;
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Drop, 16);
    make(&log, "/api/v1/pods", passed(200)).await.unwrap();
    assert_eq!(written(&memory, writer).await.len(), 0);
    assert_eq!((log.dropped(), log.failures()), (2, 1));
}

#[tokio::test]
async fn a_sink_that_blocks_loses_nothing() {
    let memory = Memory::default();
    *memory.failures.lock().unwrap() = 2;
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Block, 16);
    make(&log, "/api/v1/pods", passed(200)).await.unwrap();
    assert_eq!(written(&memory, writer).await.len(), 2);
    assert_eq!((log.dropped(), log.failures()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn events_that_come_soon_after_a_write_are_written_together() {
    let memory = Memory::default();
    let (log, writer) = AuditLog::new(Box::new(memory.clone()), OnFailure::Block, 4096);
    let writing = tokio::spawn(writer.run(CancellationToken::new()));
    make(&log, "/api/v1/pods", passed(200)).await.unwrap();
    while memory.batches.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // The clock stands still as long as anybody has something to do.
    for _ in 0..3 {
        make(&log, "/api/v1/pods", passed(200)).await.unwrap();
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*memory.batches.lock().unwrap(), [2, 6]);
    writing.abort();
}

#[tokio::test]
async fn an_open_request_keeps_its_place_and_another_one_waits() {
    let memory = Memory::default();
    let (log, _writer) = AuditLog::new(Box::new(memory), OnFailure::Block, 1);
    let open = log.begin().await.unwrap();
    let waiting = timeout(Duration::from_millis(50), log.begin()).await;
    assert!(waiting.is_err(), "there is no room");
    drop(open);
    assert!(timeout(Duration::from_secs(30), log.begin()).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_log_that_is_closed_refuses_requests_that_may_not_pass_without_it() {
    let (log, writer) = AuditLog::new(Box::<Memory>::default(), OnFailure::Block, 1);
    drop(writer);
    assert_eq!(log.begin().await.unwrap_err().code(), 503);
    assert!(AuditLog::default().begin().await.is_ok(), "no audit log, nothing to wait for");
}
