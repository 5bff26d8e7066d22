//! Certificate authorities, join tokens and enrolment.
//!
//! The stub owns three authorities that never mix: one signs the stub's own server certificate, one the agents'
//! certificates, one the users' certificates. An agent joins with a [`JoinToken`], which pins the server authority, and
//! gets a certificate for the identity that the stub chose. What stubs share is behind [`Store`]. Files and stores are
//! synchronous: call them from a blocking thread.

mod agent_dir;
mod authority;
mod certificate;
mod credentials;
mod host_name;
mod join_token;
mod peer_authorities;
mod pem;
mod pinned_authority;
pub mod private_file;
mod signing_request;
pub mod store;
mod stub_dir;
mod tls;
mod token_store;
mod trusted_authorities;
mod user_subject;

#[cfg(test)]
mod handshake_tests;

pub use agent_dir::{AgentKey, AgentState, AgentStateError};
pub use authority::{AuthorityError, CertificateAuthority, UserCertificate};
pub use certificate::{
    AgentIdentity, CertificateError, CertificateFingerprint, InvalidAgentIdentity, Validity, not_after, serial_number,
    user_identity,
};
pub use credentials::{AgentCredentials, CredentialsError, ServerCredentials};
pub use host_name::{HostName, InvalidHostName};
pub use join_token::{InvalidJoinToken, JoinToken, RandomFailure, TokenId, TokenSecret};
pub use peer_authorities::{PeerAuthorities, PeerRole};
pub use pinned_authority::{FingerprintMismatch, Pin, find_pinned};
pub use private_file::FileError;
pub use signing_request::SigningRequestError;
pub use store::{DirectoryStore, KubernetesStore, Store, StoreError};
pub use stub_dir::{ServerFiles, StubKeys, StubKeysError};
pub use tls::{
    ALPN_HTTP3, TlsError, client_verifier, enrollment_client_config, front_server_config, shared_quic_server_config,
    tcp_enrollment_client_config, tcp_tunnel_client_config, tcp_tunnel_server_config,
    tcp_tunnel_server_config_verified_by, tunnel_client_config, tunnel_server_config, tunnel_server_config_verified_by,
};
pub use token_store::{JoinTokenStore, RedeemError, TokenError};
pub use trusted_authorities::{AuthorityFiles, TrustedAuthorities};
pub use user_subject::ReplaceError;
