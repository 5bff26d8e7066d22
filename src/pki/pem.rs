//! PEM text (RFC 7468).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// One certificate as PEM.
pub(super) fn certificate_to_pem(certificate: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", certificate)
}

/// Several certificates as PEM, one after the other.
pub(super) fn chain_to_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(certificate_to_pem).collect()
}

/// A private key as PEM.
pub(super) fn key_to_pem(key: &PrivatePkcs8KeyDer<'_>) -> String {
    encode("PRIVATE KEY", key.secret_pkcs8_der())
}

fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so every index is a character boundary.
        let (line, after) = rest.split_at(rest.len().min(LINE_LENGTH));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// RFC 7468, section 2: generators wrap at exactly 64 characters.
const LINE_LENGTH: usize = 64;
