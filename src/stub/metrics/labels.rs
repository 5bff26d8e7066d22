//! The labels of what is counted while the stub runs.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::wire::ClusterId;

/// A request to a known cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// One of a fixed set.
    pub verb: &'static str,
    /// Of the head of the answer.
    pub code: u32,
}

/// A code of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// Of the head of the answer.
    pub code: u32,
}

/// Why something was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// One of a fixed set.
    pub reason: &'static str,
}

/// A kind of request to a known cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LatencyLabels {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// One of a fixed set.
    pub verb: &'static str,
}

/// A direction of a known cluster's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BytesLabels {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// `to_client` or `from_client`.
    pub direction: &'static str,
}

/// A known cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClusterLabel {
    /// The cluster's id.
    pub cluster: ClusterId,
}

/// A limit, by its name in the settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    /// Its name.
    pub limit: &'static str,
}

/// How an agent connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// `quic` or `tcp`.
    pub carrier: String,
    /// `0-rtt` or `complete`.
    pub handshake: &'static str,
}

/// Labels of what is counted for each request have the id itself, which costs nothing to clone.
impl EncodeLabelValue for ClusterId {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}
