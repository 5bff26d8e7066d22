//! Certificate authorities: they sign, and decide every name in what they sign.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::ASN1Time;

use super::certificate::{self, AgentIdentity, CertificateError, CertificateFingerprint, Validity};
use super::host_name::HostName;
use super::pem;
use super::private_file::{self, FileError};
use super::signing_request::{SigningRequest, SigningRequestError};
use super::user_subject::{self, ReplaceError};

/// A certificate authority with an ECDSA P-256 key that signs end-entity certificates only (path length 0).
///
/// Whatever it issues has a random serial number, is valid from 5 minutes before `now`, to allow for clocks that differ,
/// and never beyond the end of the authority.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    validity: Validity,
}

/// A user's certificate with the private key that was made for it.
#[derive(Debug)]
pub struct UserCertificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

impl CertificateAuthority {
    /// How long a new authority is valid: 10 years.
    pub const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
    /// How long a server certificate is valid: 397 days, the longest that TLS clients accept.
    pub const SERVER_LIFETIME: Duration = Duration::from_secs(397 * 24 * 60 * 60);

    /// Makes a new authority named `common_name`, with a fresh key.
    ///
    /// # Errors
    /// The system's random numbers or its clock fail.
    pub fn create(common_name: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(Validity { not_before: now - CLOCK_SKEW, not_after: now + Self::LIFETIME })?;
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key)?;
        Self::new(certificate.into(), key)
    }

    /// Loads an authority from a PEM certificate and its PEM key.
    ///
    /// # Errors
    /// A file cannot be read, the certificate is no authority's, or the key belongs to another certificate.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        let unusable = |reason: String| AuthorityError::Unusable { path: certificate.display().to_string(), reason };
        let [der] = <[_; 1]>::try_from(private_file::read_certificates(certificate)?)
            .map_err(|_| unusable("it must hold exactly one certificate".to_owned()))?;
        let key_der = private_file::read_private_key(key)?;
        let key_pair = KeyPair::try_from(&key_der)
            .map_err(|error| FileError::NotAPrivateKey { path: key.into(), reason: error.to_string() })?;
        let parsed = certificate::parse(&der)?;
        if !parsed.is_ca() {
            return Err(unusable("it is not the certificate of an authority".to_owned()));
        }
        if parsed.public_key().raw != key_pair.subject_public_key_info() {
            return Err(unusable(format!("the key in {} belongs to another certificate", key.display())));
        }
        Self::new(der, key_pair)
    }

    /// Writes the authority to two new files, both readable by their owner only.
    ///
    /// # Errors
    /// A file exists already, or cannot be written.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), FileError> {
        private_file::write_new(key, self.issuer.key().serialize_pem().as_bytes())?;
        private_file::write_new(certificate, self.certificate_pem().as_bytes())
    }

    /// The authority's own certificate.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's own certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem::certificate_to_pem(&self.certificate)
    }

    /// The SHA-256 of the authority's own certificate.
    pub fn fingerprint(&self) -> CertificateFingerprint {
        CertificateFingerprint::of(&self.certificate)
    }

    /// From when to when the authority is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Issues a server certificate for `hosts` and the public half of `key`.
    ///
    /// # Errors
    /// No host is given, the authority has expired, or signing fails.
    pub fn issue_server(
        &self,
        hosts: &[HostName],
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        if hosts.is_empty() {
            return Err(AuthorityError::NoHost);
        }
        let mut parameters = self.leaf(Self::SERVER_LIFETIME, now, ExtendedKeyUsagePurpose::ServerAuth)?;
        parameters.distinguished_name.push(DnType::CommonName, "qtunnel stub");
        parameters.subject_alt_names = hosts.iter().map(alternative_name).collect::<Result<_, _>>()?;
        Ok(parameters.signed_by(key, &self.issuer)?.into())
    }

    /// Issues a client certificate for the agent that sent the certificate signing request `request` (DER), valid for
    /// `ttl`. `identity` is who the sender is known to be; no name in the request has any effect.
    ///
    /// # Errors
    /// The request is malformed, is not signed by its own key, or asks to be another agent; the authority has expired; or
    /// signing fails.
    pub fn issue_agent(
        &self,
        request: &[u8],
        identity: &AgentIdentity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let request = SigningRequest::verify(request)?;
        let public_key = request.public_key_for(identity)?;
        let mut parameters = self.leaf(ttl, now, ExtendedKeyUsagePurpose::ClientAuth)?;
        parameters.distinguished_name.push(DnType::CommonName, identity.agent.as_str());
        parameters.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(parameters.signed_by(public_key, &self.issuer)?.into())
    }

    /// Issues a client certificate with a fresh key for `user` as a member of `groups`, valid for `ttl`.
    ///
    /// # Errors
    /// The user or a group is empty, the authority has expired, or signing fails.
    pub fn issue_user(
        &self,
        user: &str,
        groups: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<UserCertificate, AuthorityError> {
        if user.is_empty() || groups.iter().any(String::is_empty) {
            return Err(AuthorityError::EmptyName);
        }
        let key = KeyPair::generate()?;
        let parameters = self.leaf(ttl, now, ExtendedKeyUsagePurpose::ClientAuth)?;
        let template = parameters.signed_by(&key, &self.issuer)?;
        let certificate = user_subject::replace_subject(template.der(), user, groups, self.issuer.key())?;
        Ok(UserCertificate { certificate, key: key.serialize_der().into() })
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let validity = Validity::of(&certificate)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate, validity })
    }

    /// What all end-entity certificates have in common.
    fn leaf(
        &self,
        ttl: Duration,
        now: SystemTime,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<CertificateParams, AuthorityError> {
        if self.validity.is_expired(now) {
            return Err(AuthorityError::Expired);
        }
        let not_after = now.checked_add(ttl).map_or(self.validity.not_after, |end| end.min(self.validity.not_after));
        let mut parameters = parameters(Validity { not_before: now - CLOCK_SKEW, not_after })?;
        // Not `NoCa`, with which rcgen leaves out the subject key identifier.
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![usage];
        Ok(parameters)
    }
}

impl UserCertificate {
    /// The certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem::certificate_to_pem(&self.certificate)
    }

    /// The private key as PEM.
    pub fn key_pem(&self) -> String {
        pem::key_to_pem(&self.key)
    }
}

/// Why an authority cannot be used, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority's certificate cannot be parsed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The files do not make an authority.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// The certificate file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority is past its end.
    #[error("the certificate authority has expired: create a new set of keys")]
    Expired,
    /// A server certificate for nothing.
    #[error("a server certificate needs at least one host name or address")]
    NoHost,
    /// A user or group without a name.
    #[error("the names of a user and of its groups must not be empty")]
    EmptyName,
    /// A date outside of what certificates can express.
    #[error("the certificate's validity is out of range")]
    DateOutOfRange,
    /// The agent's request is refused.
    #[error(transparent)]
    Request(#[from] SigningRequestError),
    /// The user's certificate could not be built.
    #[error(transparent)]
    User(#[from] ReplaceError),
    /// The certificate could not be built or signed.
    #[error("signing a certificate failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system's random number generator failed")]
    Random,
}

/// How far a peer's clock may lag behind.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Parameters that name nobody and allow nothing yet.
fn parameters(validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.serial_number = Some(random_serial_number()?);
    parameters.not_before = asn1_time(validity.not_before)?.to_datetime();
    parameters.not_after = asn1_time(validity.not_after)?.to_datetime();
    Ok(parameters)
}

/// 126 random bits: RFC 5280, section 4.1.2.2 wants a positive number of at most 20 octets.
fn random_serial_number() -> Result<SerialNumber, AuthorityError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    // Positive, and without a leading zero that DER would want removed.
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

fn asn1_time(moment: SystemTime) -> Result<ASN1Time, AuthorityError> {
    let since_epoch = moment.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| AuthorityError::DateOutOfRange)?;
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(|_| AuthorityError::DateOutOfRange)?;
    ASN1Time::from_timestamp(seconds).map_err(|_| AuthorityError::DateOutOfRange)
}

fn alternative_name(host: &HostName) -> Result<SanType, rcgen::Error> {
    Ok(match host {
        HostName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        HostName::Ip(address) => SanType::IpAddress(*address),
    })
}
