//! Which of several stubs leads.
//!
//! Stubs need no leader for their work: each serves every cluster, and what must happen once, such as spending a join token or
//! renewing the server certificate, is a compare and swap in their [store](crate::pki::Store). A leader is for those who put
//! several stubs behind one address: only the one that leads is ready (`/readyz`), so that a load balancer sends users and
//! agents to the same stub, and another takes over when it stops or dies.

mod candidate;
mod lease;

use std::fmt;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use candidate::Timing;
pub use lease::{LeaseElection, LeaseName};

/// Who leads, as far as this stub knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this stub does. It has stopped to be true when another stub's becomes true, as long as both clocks run equally
    /// fast; whether they show the same time does not matter.
    pub leads: bool,
    /// The name of the one that does, once it is known.
    pub leader: Option<String>,
    /// Since when that one does, by its own clock, once it is known. For people.
    pub since: Option<Timestamp>,
}

/// An election among stubs. There is [`LeaseElection`]; a stub without an election always leads.
pub trait Election: fmt::Debug + Send + Sync {
    /// Who leads, now and whenever that changes.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Stands for election until `shutdown`, then hands over. Called once. Has to step down by itself when it can no longer
    /// know whether somebody else leads.
    fn campaign(&self, shutdown: CancellationToken) -> BoxFuture<'_, ()>;
}
