//! The congestion controllers that can be compared, by name.

use std::fmt;
use std::sync::Arc;

use clap::ValueEnum;
use qtunnel::carrier::BbrConfig;
use quinn_proto::congestion::{ControllerFactory, CubicConfig, NewRenoConfig};

/// A congestion controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CongestionControl {
    /// quinn's Cubic (RFC 9438), quinn's default.
    Cubic,
    /// quinn's NewReno (RFC 9002, section 7).
    NewReno,
    /// qtunnel's BBR, version 3.
    Bbr,
    /// quinn's BBR, the first version of that algorithm; marked experimental there.
    QuinnBbr,
}

impl CongestionControl {
    pub(super) fn factory(self, seed: u64) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::seeded(seed)),
            Self::QuinnBbr => Arc::new(quinn_proto::congestion::BbrConfig::default()),
        }
    }
}

impl fmt::Display for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cubic => "cubic",
            Self::NewReno => "new-reno",
            Self::Bbr => "bbr",
            Self::QuinnBbr => "quinn-bbr",
        })
    }
}
