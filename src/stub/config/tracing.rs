//! Where spans of requests go.

use serde::Deserialize;

use crate::trace::OtlpEndpoint;

/// The `[tracing]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// The OpenTelemetry collector that takes them, over OTLP/HTTP in JSON. Each request gets a span in the trace that its
    /// `traceparent` names, or in a new one. Default: none; a client's `traceparent` travels on as it is.
    pub otlp_endpoint: Option<OtlpEndpoint>,
}
