//! Certificate authorities, join tokens and enrolment.
//!
//! The stub owns three authorities that never mix: one signs the stub's own server certificate, one the agents'
//! certificates, one the users' certificates. An agent joins with a [`JoinToken`], which pins the server authority, and
//! gets a certificate for the identity that the stub chose. File access is synchronous: call it from a blocking thread.

pub mod agent_dir;
pub mod authority;
pub mod certificate;
pub mod credentials;
pub mod host_name;
pub mod join_token;
mod pem;
mod pinned_authority;
pub mod private_file;
mod signing_request;
pub mod stub_dir;
pub mod tls;
pub mod token_store;
mod user_subject;

#[cfg(test)]
mod handshake_tests;

pub use agent_dir::{AgentKey, AgentState};
pub use authority::{CertificateAuthority, UserCertificate};
pub use certificate::{AgentIdentity, CertificateFingerprint, Validity};
pub use credentials::{AgentCredentials, ServerCredentials};
pub use host_name::HostName;
pub use join_token::{JoinToken, TokenId, TokenSecret};
pub use pinned_authority::find_pinned;
pub use stub_dir::StubKeys;
pub use token_store::{JoinTokenStore, RedeemError};
