//! What the span of a request tells, by OpenTelemetry's names where there are any
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>).

use super::activity::Target;
use super::record::{End, RequestFacts};

/// Tells the span of a request that ends what is known of the request.
pub fn describe(facts: &mut RequestFacts) {
    let Some(mut span) = facts.span.take() else { return };
    let Target { verb, resource, namespace, name } = Target::of_facts(facts);
    let is_resource = facts.attributes.as_ref().is_some_and(|attributes| attributes.request.is_resource_request);
    // A path may hold anything; names of spans are few.
    span.set_name(if is_resource { format!("{verb} {resource}") } else { facts.method.to_string() });
    span.set("http.request.method", facts.method.as_str());
    span.set("url.path", facts.uri.split('?').next().unwrap_or_default());
    span.set("client.address", facts.source.to_string());
    span.set("qtunnel.audit_id", facts.audit_id.as_str());
    span.set("qtunnel.end", facts.end.as_str());
    span.set("http.request.body.size", facts.meter.received());
    span.set("http.response.body.size", facts.meter.sent());
    if let Some(code) = facts.code() {
        span.set("http.response.status_code", code);
    }
    if let Some(user) = &facts.user {
        span.set("enduser.id", user.user.as_str());
    }
    if let Some(cluster) = &facts.cluster {
        span.set("qtunnel.cluster", cluster.as_str());
    }
    if let Some(agent) = &facts.agent {
        span.set("qtunnel.agent", agent.as_str());
    }
    if is_resource {
        for (key, value) in [
            ("k8s.verb", verb),
            ("k8s.resource", resource),
            ("k8s.namespace.name", namespace),
            ("k8s.object.name", name),
        ] {
            span.set(key, value);
        }
    }
    let broke = facts.end == End::BrokenOff;
    if broke || facts.code().is_some_and(|code| code.is_server_error()) {
        span.fail();
    }
}
