//! A certificate whose subject has several organizations.
//!
//! Kubernetes reads one group from each organizationName of a client certificate, but rcgen's `DistinguishedName` keeps a
//! single value for each attribute type. So rcgen issues the certificate with any subject, and here the subject is
//! replaced and the certificate signed again.

use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, Header};
use x509_parser::nom::Offset;
use x509_parser::prelude::FromDer;

use super::certificate::{self, CertificateError};

/// `template` with the subject `O = group, ..., CN = user`, signed by `issuer`, which also signed the template.
pub(super) fn replace_subject(
    template: &CertificateDer<'_>,
    user: &str,
    groups: &[String],
    issuer: &KeyPair,
) -> Result<CertificateDer<'static>, ReplaceError> {
    let parsed = certificate::parse(template)?;
    let old_to_be_signed: &[u8] = parsed.tbs_certificate.as_ref();
    let old_subject = parsed.tbs_certificate.subject.as_raw();
    let (before, rest) = old_to_be_signed.split_at(old_to_be_signed.offset(old_subject));
    let (_, after) = rest.split_at(old_subject.len());
    let (before, _header) = Header::from_der(before).map_err(|_| ReplaceError::Layout)?;
    let to_be_signed = encode(SEQUENCE, &[before, &subject(user, groups), after]);

    let signature = issuer.sign(&to_be_signed)?;
    let algorithm = signature_algorithm(template, old_to_be_signed)?;
    // The octet 0: a signature has no unused bits.
    let signature = encode(BIT_STRING, &[&[0], &signature]);
    Ok(CertificateDer::from(encode(SEQUENCE, &[&to_be_signed, algorithm, &signature])))
}

/// Why a subject was not replaced. None of it can happen to a certificate that rcgen has just issued.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The template cannot be parsed.
    #[error(transparent)]
    Template(#[from] CertificateError),
    /// The template is not built as RFC 5280 says.
    #[error("the certificate's parts do not follow each other as RFC 5280, section 4.1 says")]
    Layout,
    /// The issuer's key failed.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

// ASN.1 tags (X.690, section 8).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
/// id-at-organizationName, 2.5.4.10 (RFC 5280, appendix A.1).
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

fn subject(user: &str, groups: &[String]) -> Vec<u8> {
    let names = groups.iter().map(|group| attribute(ORGANIZATION, group)).chain([attribute(COMMON_NAME, user)]);
    encode(SEQUENCE, &[&names.collect::<Vec<_>>().concat()])
}

fn attribute(oid: &[u8], value: &str) -> Vec<u8> {
    let oid = encode(OBJECT_IDENTIFIER, &[oid]);
    let value = encode(UTF8_STRING, &[value.as_bytes()]);
    encode(SET, &[&encode(SEQUENCE, &[&oid, &value])])
}

/// The bytes of the second of a certificate's three parts.
fn signature_algorithm<'a>(certificate: &'a CertificateDer<'_>, to_be_signed: &[u8]) -> Result<&'a [u8], ReplaceError> {
    let (parts, _header) = Header::from_der(certificate).map_err(|_| ReplaceError::Layout)?;
    let rest = parts.get(to_be_signed.len()..).ok_or(ReplaceError::Layout)?;
    let (signature, _algorithm) = Any::from_der(rest).map_err(|_| ReplaceError::Layout)?;
    Ok(&rest[..rest.len() - signature.len()])
}

/// DER: tag, length, contents (X.690, section 8.1).
fn encode(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let mut der = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(short @ 0..=0x7f) => der.push(short),
        _ => {
            let length = contents.len().to_be_bytes();
            let significant: Vec<u8> = length.into_iter().skip_while(|&byte| byte == 0).collect();
            // At most the 8 octets of a usize.
            der.push(0x80 | significant.len() as u8);
            der.extend(significant);
        }
    }
    der.extend(contents);
    der
}
