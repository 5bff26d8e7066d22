//! Which controller decides how much may be in flight.

use std::sync::Arc;

use quinn_proto::congestion::{ControllerFactory, CubicConfig};

use super::{BbrConfig, LimitedStart};

/// How an end of a connection decides how much it has in flight. Each end decides for what it sends itself, so the two may
/// differ. Both start slower than they could where more than 1,024 packets are in flight: see [`LimitedStart`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CongestionControl {
    /// Cubic (RFC 9438): sends less whenever a packet is lost. Where others' Cubic flows fill the link, it keeps its share;
    /// where the path loses packets by itself, it sends next to nothing.
    Cubic,
    /// BBR version 3 (draft-ietf-ccwg-bbr): sends what the path has been measured to deliver, and keeps queues short. The
    /// default: netem-tests/RESULTS.md has the evidence, and where Cubic is better.
    #[default]
    Bbr,
}

impl CongestionControl {
    pub(crate) fn controllers(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        let controllers: Arc<dyn ControllerFactory + Send + Sync> = match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
        };
        Arc::new(LimitedStart::of(controllers))
    }
}
