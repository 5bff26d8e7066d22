//! The congestion controllers that can be compared, by name.

use std::fmt;
use std::sync::Arc;

use clap::ValueEnum;
use qtunnel::carrier::{BbrConfig, LimitedStart};
use quinn_proto::congestion::{ControllerFactory, CubicConfig, NewRenoConfig};

/// A congestion controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CongestionControl {
    /// Cubic (RFC 9438) as qtunnel has it: quinn's with a limited slow start.
    Cubic,
    /// qtunnel's BBR, version 3, with a limited start.
    Bbr,
    /// quinn's Cubic, quinn's default.
    QuinnCubic,
    /// quinn's NewReno (RFC 9002, section 7).
    NewReno,
    /// quinn's BBR, the first version of that algorithm; marked experimental there.
    QuinnBbr,
}

impl CongestionControl {
    pub(super) fn factory(self, seed: u64) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(LimitedStart::of(Arc::new(CubicConfig::default()))),
            Self::Bbr => Arc::new(LimitedStart::of(Arc::new(BbrConfig::seeded(seed)))),
            Self::QuinnCubic => Arc::new(CubicConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
            Self::QuinnBbr => Arc::new(quinn_proto::congestion::BbrConfig::default()),
        }
    }
}

impl fmt::Display for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::QuinnCubic => "quinn-cubic",
            Self::NewReno => "new-reno",
            Self::QuinnBbr => "quinn-bbr",
        })
    }
}
