//! A certificate authority for what is no part of qtunnel.

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::sync::Arc;

/// The authority.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A key and its certificate.
pub struct Leaf {
    certificate: Certificate,
    key: KeyPair,
}

impl TestAuthority {
    /// A new one.
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "cluster of a test");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    /// For a server on loopback.
    pub fn server(&self) -> Leaf {
        let mut parameters = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.sign(&parameters)
    }

    /// For a user, as Kubernetes reads it: the name is the CN, each group an O.
    pub fn user(&self, name: &str, groups: &[&str]) -> Leaf {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        // One at most: `DistinguishedName` holds one value of each type.
        assert!(groups.len() < 2, "one group at most");
        groups.iter().for_each(|group| parameters.distinguished_name.push(DnType::OrganizationName, *group));
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.sign(&parameters)
    }

    fn sign(&self, parameters: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: parameters.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

impl Leaf {
    /// The certificate, PEM.
    pub fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// The key, PEM.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// A server with it.
    pub fn server_config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        builder.with_no_client_auth().with_single_cert(vec![self.certificate.der().clone()], key).unwrap()
    }
}
