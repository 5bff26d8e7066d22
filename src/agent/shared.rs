//! What every request at a running agent shares.

use std::sync::Arc;
use std::time::Duration;

use super::access::AccessCache;
use super::forward::ForwardPolicy;
use super::upstream::Upstream;
use crate::kube::impersonation::ImpersonationPolicy;
use crate::wire::AuthMode;

/// The shared parts of a running agent.
#[derive(Debug)]
pub struct Shared {
    /// The API server.
    pub upstream: Arc<Upstream>,
    /// How requests are made.
    pub auth_mode: AuthMode,
    /// Whom the agent acts as.
    pub policy: ImpersonationPolicy,
    /// Where the agent connects to besides its API server.
    pub forward: ForwardPolicy,
    /// Who may act as whom, as the cluster said a moment ago.
    pub access: AccessCache,
    /// How long an answer may take to begin, unless the request is long-running.
    pub response_timeout: Duration,
}
