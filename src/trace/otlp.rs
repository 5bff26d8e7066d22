//! Spans as the collector reads them: OTLP in JSON
//! (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::{Span, SpanKind, Value};

/// `STATUS_CODE_ERROR` in `opentelemetry/proto/trace/v1/trace.proto`.
const ERROR: u8 = 2;

/// A body for `/v1/traces`.
pub fn request(service: &str, spans: &[Span]) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [("service.name", service.into()), ("service.version", version.into())];
    json!({
        "resourceSpans": [{
            "resource": { "attributes": attributes(&resource) },
            "scopeSpans": [{
                "scope": { "name": "qtunnel", "version": version },
                "spans": spans.iter().map(span).collect::<Vec<_>>(),
            }],
        }],
    })
}

fn span(span: &Span) -> Json {
    let mut json = json!({
        "traceId": span.context.trace_id(),
        "spanId": span.context.span_id(),
        "name": span.name,
        "kind": match span.kind {
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        "startTimeUnixNano": nanoseconds(span.began),
        "endTimeUnixNano": nanoseconds(span.ended),
        "attributes": attributes(&span.attributes),
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = parent.span_id().into();
    }
    if span.failed {
        json["status"] = json!({ "code": ERROR });
    }
    json
}

fn attributes(attributes: &[(&str, Value)]) -> Vec<Json> {
    let one = |(key, value): &(&str, Value)| {
        let value = match value {
            Value::Text(text) => json!({ "stringValue": text }),
            // 64 bits do not fit every reader's number.
            Value::Number(number) => json!({ "intValue": number.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    attributes.iter().map(one).collect()
}

fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::TraceContext;
    use super::*;

    #[test]
    fn a_span_has_the_form_that_collectors_read() {
        let parent = TraceContext::root();
        let context = parent.child();
        let span = Span {
            context,
            parent: Some(parent),
            kind: SpanKind::Client,
            name: "list pods".to_owned(),
            began: UNIX_EPOCH + Duration::from_nanos(7),
            ended: UNIX_EPOCH + Duration::from_secs(1),
            attributes: vec![("code", Value::Number(200)), ("user", "alice".into())],
            failed: true,
        };
        let body = request("stub", &[span]);
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let expected = json!([{
            "traceId": context.trace_id(), "spanId": context.span_id(), "parentSpanId": parent.span_id(),
            "name": "list pods", "kind": 3, "startTimeUnixNano": "7", "endTimeUnixNano": "1000000000",
            "attributes": [
                { "key": "code", "value": { "intValue": "200" } },
                { "key": "user", "value": { "stringValue": "alice" } },
            ],
            "status": { "code": 2 },
        }]);
        assert_eq!(*spans, expected);
    }
}
