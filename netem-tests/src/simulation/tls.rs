//! Keys for simulated endpoints.

use std::sync::Arc;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{ClientConfig, ServerConfig};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::pki_types::PrivateKeyDer;

/// The name in the server's certificate.
pub(super) const SERVER_NAME: &str = "simulated";

/// Both ends' TLS settings, made for each other.
pub(super) struct Credentials {
    pub(super) client: ClientConfig,
    pub(super) server: ServerConfig,
}

impl Credentials {
    /// Keys and signatures differ from run to run, but not in their lengths: Ed25519 has no others, and the serial number
    /// is fixed. Lengths are all that a run can notice.
    pub(super) fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut parameters = CertificateParams::new([SERVER_NAME.to_owned()])?;
        parameters.serial_number = Some(SerialNumber::from(1u64));
        let certificate = parameters.self_signed(&key)?.der().clone();

        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone())?;
        let versions = &[&rustls::version::TLS13];
        let client = rustls::ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = rustls::ServerConfig::builder_with_protocol_versions(versions)
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
        Ok(Self {
            client: ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?)),
            server: ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?)),
        })
    }
}
