//! The TLS configurations of every connection, each with the one authority that it trusts.
//!
//! All of them use aws-lc-rs, which prefers the key exchange X25519MLKEM768, so that recorded traffic stays secret from a
//! later quantum computer. None depends on a process-wide default.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::credentials::{AgentCredentials, ServerCredentials};
use super::peer_authorities::PeerAuthorities;
use super::pinned_authority::{Pin, PinnedAuthority};
use crate::wire::{ALPN_ENROLLMENT, ALPN_ENROLLMENT_TCP, ALPN_TUNNEL, ALPN_TUNNEL_TCP};

/// For the stub's HTTPS front: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1. A client may do without a certificate, to
/// authenticate in another way; one that it does present must be one that `users` accepts.
///
/// A resumed session is not verified again: have the certificate verified for each connection.
///
/// # Errors
/// The cryptographic provider lacks a version of TLS, which does not happen.
pub fn front_server_config(
    server: &ServerCredentials,
    users: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, TlsError> {
    let mut config = server_config(server, users, &[&TLS13, &TLS12])?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(FRONT_SESSIONS);
    Ok(config)
}

/// For the stub's QUIC endpoint: TLS 1.3, for tunnels and for enrolment. A certificate that a client presents must chain
/// to one of `agent_authorities`. The handshake succeeds without one, because an agent that enrols has none yet: a
/// connection with the ALPN of the tunnel and no certificate is for the caller to refuse.
///
/// Sessions are kept in `session_storage`, not in tickets, and can be resumed once only, so early data cannot be replayed
/// (RFC 8446, section 8.1). Unless it is exchanged it is memory, which ends with the process. A resumed session is not verified
/// again: check the certificate's expiry for each connection.
///
/// # Errors
/// `agent_authorities` is empty or holds what is no certificate.
pub fn tunnel_server_config(
    server: &ServerCredentials,
    agent_authorities: &[CertificateDer<'_>],
) -> Result<ServerConfig, TlsError> {
    tunnel_server_config_verified_by(server, client_verifier(agent_authorities, Vec::new())?)
}

/// [`tunnel_server_config`] for a QUIC endpoint that users share, who speak HTTP/3. Ask `authorities` after each handshake
/// who the peer is.
///
/// # Errors
/// The cryptographic provider lacks TLS 1.3, which does not happen.
pub fn shared_quic_server_config(
    server: &ServerCredentials,
    authorities: &PeerAuthorities,
) -> Result<ServerConfig, TlsError> {
    let mut config = tunnel_server_config_verified_by(server, authorities.either())?;
    config.alpn_protocols.push(ALPN_HTTP3.to_vec());
    Ok(config)
}

/// [`tunnel_server_config`] where `agents` says which certificates are accepted.
///
/// # Errors
/// The cryptographic provider lacks TLS 1.3, which does not happen.
pub fn tunnel_server_config_verified_by(
    server: &ServerCredentials,
    agents: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, TlsError> {
    let mut config = server_config(server, agents, &[&TLS13])?;
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec(), ALPN_ENROLLMENT.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(TUNNEL_SESSIONS);
    config.send_tls13_tickets = SESSIONS_PER_HANDSHAKE;
    // The only value besides 0 that QUIC permits (RFC 9001, section 4.6.1).
    config.max_early_data_size = u32::MAX;
    Ok(config)
}

/// [`tunnel_server_config`] for the stub's TCP port: the names of the TCP carrier, and no early data, because over TCP
/// nothing is won by it that is worth its rules.
///
/// # Errors
/// As [`tunnel_server_config`].
pub fn tcp_tunnel_server_config(
    server: &ServerCredentials,
    agent_authorities: &[CertificateDer<'_>],
) -> Result<ServerConfig, TlsError> {
    tcp_tunnel_server_config_verified_by(server, client_verifier(agent_authorities, Vec::new())?)
}

/// [`tcp_tunnel_server_config`] where `agents` says which certificates are accepted.
///
/// # Errors
/// The cryptographic provider lacks TLS 1.3, which does not happen.
pub fn tcp_tunnel_server_config_verified_by(
    server: &ServerCredentials,
    agents: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, TlsError> {
    let mut config = tunnel_server_config_verified_by(server, agents)?;
    config.alpn_protocols = vec![ALPN_TUNNEL_TCP.to_vec(), ALPN_ENROLLMENT_TCP.to_vec()];
    config.max_early_data_size = 0;
    Ok(config)
}

/// For an agent that has joined: TLS 1.3 with its certificate, to a stub whose certificate chains to the authority the
/// agent learned when it joined. Keep one for as long as the credentials: it remembers the sessions to resume, in
/// memory alone: rustls 0.23 lets nobody write a client's session down (`Tls13ClientSessionValue`).
///
/// # Errors
/// The credentials hold what is no certificate.
pub fn tunnel_client_config(agent: &AgentCredentials) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(std::slice::from_ref(agent.server_authority()))?)
        .with_client_auth_cert(agent.chain().to_vec(), agent.key().clone_key())?;
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.enable_early_data = true;
    Ok(config)
}

/// [`tunnel_client_config`] for the TCP carrier.
///
/// # Errors
/// As [`tunnel_client_config`].
pub fn tcp_tunnel_client_config(agent: &AgentCredentials) -> Result<ClientConfig, TlsError> {
    let mut config = tunnel_client_config(agent)?;
    config.alpn_protocols = vec![ALPN_TUNNEL_TCP.to_vec()];
    config.enable_early_data = false;
    Ok(config)
}

/// For an agent that has only a join token: TLS 1.3 without a certificate, to a stub whose certificate chains to the
/// authority that is pinned. It never resumes and sends no early data, so that a secret is sent once only.
///
/// # Errors
/// The cryptographic provider lacks TLS 1.3, which does not happen.
pub fn enrollment_client_config(authority: impl Into<Pin>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        // "Dangerous" is any verifier that is not rustls's own; this one only chooses the root for rustls's own.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority::new(authority.into(), provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLLMENT.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// [`enrollment_client_config`] for the TCP carrier.
///
/// # Errors
/// As [`enrollment_client_config`].
pub fn tcp_enrollment_client_config(authority: impl Into<Pin>) -> Result<ClientConfig, TlsError> {
    let mut config = enrollment_client_config(authority)?;
    config.alpn_protocols = vec![ALPN_ENROLLMENT_TCP.to_vec()];
    Ok(config)
}

/// Accepts clients without a certificate, and those whose certificate chains to one of `authorities` and is on none of the
/// `revoked` lists. Authorities without a list revoke nothing, and a list that is past its next update still counts.
///
/// # Errors
/// `authorities` is empty or holds what is no certificate, or a list cannot be read.
pub fn client_verifier(
    authorities: &[CertificateDer<'_>],
    revoked: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = roots(authorities)?;
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    Ok(builder.with_crls(revoked).allow_unknown_revocation_status().allow_unauthenticated().build()?)
}

/// Why a configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key that rustls refuses.
    #[error("the TLS configuration is unusable: {0}")]
    Rustls(#[from] rustls::Error),
    /// No authority to verify clients with.
    #[error("clients cannot be verified: {0}")]
    ClientVerifier(#[from] VerifierBuilderError),
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn roots(authorities: &[CertificateDer<'_>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone().into_owned()))?;
    Ok(roots)
}

/// HTTP/3 (RFC 9114, section 3.1).
pub const ALPN_HTTP3: &[u8] = b"h3";

/// Sessions of clients of the front that can be resumed. TLS 1.3 uses up two for each connection.
const FRONT_SESSIONS: usize = 4096;
/// Sessions that an agent gets with each handshake. An attempt to connect uses one up, also when the stub is not there yet.
const SESSIONS_PER_HANDSHAKE: usize = 4;
/// Sessions of agents that can be resumed: two for each of 10,000 agents, and room to spare.
const TUNNEL_SESSIONS: usize = 32 * 1024;

fn server_config(
    server: &ServerCredentials,
    verifier: Arc<dyn ClientCertVerifier>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ServerConfig, TlsError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(server.resolver()))
}
