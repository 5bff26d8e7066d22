//! What is Kubernetes: how its API server reads a request, names an error, and learns who is asking.
//!
//! Nothing here does network IO by itself. Both sides of the tunnel use it, so that the stub's policy, the agent's policy and the
//! API server all read the same request the same way.
//!
//! - [`RequestPath`] and [`RequestInfo`]: what a request is about, by the API server's own rules.
//! - [`requested_upgrade`]: whether a request asks to become a raw stream.
//! - [`Status`]: the errors kubectl prints well.
//! - [`impersonation`]: acting in another's name, and who may.
//! - [`user_token`]: bearer tokens, and [`kubeconfig`]: how to reach an API server.
//! - [`ClusterAccess`]: a client of the cluster that keeps a stub's own state.
//! - [`without_secrets`]: a request target that may be logged.
//! - [`headers`]: which headers end at the tunnel, and [`rewrite_location`] for redirects.

mod cluster_access;
mod digest;
pub mod headers;
pub mod impersonation;
pub mod kubeconfig;
mod location;
mod percent;
mod redact;
mod request_info;
mod request_path;
mod status;
mod upgrade;
pub mod user_token;

pub use cluster_access::{ClusterAccess, ClusterAccessError};
pub use location::{ForeignLocation, rewrite_location};
pub(crate) use percent::decode as percent_decode;
pub use redact::without_secrets;
pub use request_info::{RequestInfo, UnknownRequest};
pub use request_path::{AmbiguousPath, RequestPath};
pub use status::Status;
pub use upgrade::{BadUpgrade, requested_upgrade};
pub use user_token::{StaticTokens, take_bearer_token};
