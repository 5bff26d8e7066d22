//! Where clients come in: HTTPS with HTTP/1.1 and HTTP/2 on a TCP port, and HTTP/3 on the UDP port of the same number.
//! Agents use both ports as well.

pub mod http3;
pub mod tcp;

use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use tokio::sync::SetOnce;

use crate::pki::{CertificateError, Validity, user_identity};
use crate::wire::Identity;

/// What is known of the connection that requests come over.
#[derive(Debug)]
pub struct ClientConnection {
    /// The client's address.
    pub address: SocketAddr,
    /// The host name the client asked TLS for (SNI).
    pub server_name: Option<String>,
    /// The client's certificate, if it presented one; TLS has verified it.
    pub certificate: Option<ClientCertificate>,
    /// Set once a request on the connection was made by somebody known. Until then the client is a stranger.
    pub authenticated: SetOnce<()>,
}

/// A client's certificate, parsed once.
#[derive(Debug)]
pub struct ClientCertificate {
    /// Who it names.
    pub identity: Identity,
    /// When it is valid.
    pub validity: Validity,
}

impl ClientConnection {
    /// A connection on which nobody has authenticated yet. `chain` is what TLS has verified of the client.
    fn new(
        address: SocketAddr,
        server_name: Option<String>,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, CertificateError> {
        let certificate = match chain.first() {
            Some(certificate) => {
                Some(ClientCertificate { identity: user_identity(certificate)?, validity: Validity::of(certificate)? })
            }
            None => None,
        };
        Ok(Self { address, server_name, certificate, authenticated: SetOnce::new() })
    }
}
