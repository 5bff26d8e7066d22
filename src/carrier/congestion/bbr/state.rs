//! The states of section 5.1 and what they do to the pace (the table of section 5.6.1).

/// What the controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Doubling the rate in every round, to find out what the path can deliver.
    Startup,
    /// Emptying the queue that this has made.
    Drain,
    /// `ProbeBW_DOWN`: sending less than the path delivers, so that queues empty and others find room.
    ProbeBwDown,
    /// `ProbeBW_CRUISE`: sending what the path delivers.
    ProbeBwCruise,
    /// `ProbeBW_REFILL`: filling the path for one round before probing.
    ProbeBwRefill,
    /// `ProbeBW_UP`: sending more than the path has delivered, to find out whether it can deliver more.
    ProbeBwUp,
    /// Sending little, to measure the round trip time without queues.
    ProbeRtt,
}

impl State {
    /// `IsInAProbeBWState`.
    pub(super) fn is_probe_bw(self) -> bool {
        matches!(self, Self::ProbeBwDown | Self::ProbeBwCruise | Self::ProbeBwRefill | Self::ProbeBwUp)
    }

    /// `IsProbingBW`: whether what is sent is meant to find the limits of the path.
    pub(super) fn is_accelerating(self) -> bool {
        matches!(self, Self::Startup | Self::ProbeBwRefill | Self::ProbeBwUp)
    }

    /// How fast to send, as a multiple of the bandwidth.
    pub(super) fn pacing_gain(self) -> f64 {
        match self {
            Self::Startup => 2.77,
            Self::Drain => 0.5,
            Self::ProbeBwDown => 0.9,
            Self::ProbeBwCruise | Self::ProbeBwRefill | Self::ProbeRtt => 1.0,
            Self::ProbeBwUp => 1.25,
        }
    }

    /// How much to have in flight at most, as a multiple of the bandwidth-delay product.
    pub(super) fn cwnd_gain(self) -> f64 {
        match self {
            Self::ProbeBwUp => 2.25,
            Self::ProbeRtt => 0.5,
            _ => 2.0,
        }
    }
}
