//! Certificate authorities: they sign, and decide every name in what they sign.

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
use super::store::{self, Key, Store, StoreError};
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

    /// Loads the authority `name` from its PEM certificate, `<name>.pem`, and its PEM key, `<name>-key.pem`.
    ///
    /// # Errors
    /// One of them cannot be read, the certificate is no authority's, or the key belongs to another certificate.
    pub fn load(store: &dyn Store, name: &str) -> Result<Self, AuthorityError> {
        let [certificate, key] = keys_of(name);
        let path = store.place(&certificate);
        let unusable = |reason: String| AuthorityError::Unusable { path: path.display().to_string(), reason };
        let certificates = private_file::certificates(&path, &store::require(store, &certificate)?)?;
        let der = certificates.into_iter().next().ok_or_else(|| unusable("it holds no certificate".to_owned()))?;
        let key_path = store.place(&key);
        let key_der = private_file::private_key(&key_path, &store::require(store, &key)?)?;
        let key_pair = KeyPair::try_from(&key_der)
            .map_err(|error| FileError::NotAPrivateKey { path: key_path.clone(), reason: error.to_string() })?;
        let parsed = certificate::parse(&der).map_err(|error| unusable(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(unusable("it is not the certificate of an authority".to_owned()));
        }
        if parsed.public_key().raw != key_pair.subject_public_key_info() {
            return Err(unusable(format!("the key in {} belongs to another certificate", key_path.display())));
        }
        Self::new(der, key_pair)
    }

    /// Stores the authority as `name`.
    ///
    /// # Errors
    /// There is one already, or the store fails.
    pub fn save(&self, store: &dyn Store, name: &str) -> Result<(), StoreError> {
        let [certificate, key] = keys_of(name);
        store::create(store, &key, self.issuer.key().serialize_pem().as_bytes())?;
        store::create(store, &certificate, self.certificate_pem().as_bytes())
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
    /// Where the authority is kept.
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// Where the certificate and the private key of an authority are.
pub(super) fn keys_of(name: &str) -> [Key; 2] {
    [Key::pem(format!("{name}.pem")), Key::pem(format!("{name}-key.pem"))]
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

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::pki::AgentKey;
    use crate::pki::DirectoryStore;
    use crate::wire::Identity;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create("test authority", SystemTime::now()).unwrap()
    }

    fn identity(text: &str) -> AgentIdentity {
        text.parse().unwrap()
    }

    fn request_naming(uri: &str) -> Vec<u8> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "system:masters");
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    /// What RFC 5280 wants of every certificate that the authority issues.
    fn check_leaf(authority: &CertificateAuthority, der: &CertificateDer<'_>) {
        let (_, leaf) = X509Certificate::from_der(der).unwrap();
        let (_, issuer) = X509Certificate::from_der(authority.certificate_der()).unwrap();
        leaf.verify_signature(Some(issuer.public_key())).unwrap();
        assert_eq!(leaf.issuer(), issuer.subject());
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let identifiers = |certificate: &X509Certificate<'_>| {
            let mut found = (None, None);
            for extension in certificate.extensions() {
                match extension.parsed_extension() {
                    x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => {
                        found.0 = Some(id.0.to_vec());
                    }
                    x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                        found.1 = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                    }
                    _ => {}
                }
            }
            found
        };
        let (own, authority_key) = identifiers(&leaf);
        assert!(own.is_some());
        assert_eq!(authority_key, identifiers(&issuer).0);
    }

    #[test]
    fn an_authority_may_sign_certificates_and_nothing_else() {
        let authority = authority();
        let (_, parsed) = X509Certificate::from_der(authority.certificate_der()).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    }

    #[test]
    fn a_loaded_authority_signs_as_the_saved_one_did() {
        let root = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(root.path());
        let created = authority();
        created.save(&store, "ca").unwrap();
        assert!(matches!(created.save(&store, "ca"), Err(StoreError::File(FileError::Exists { .. }))));
        let loaded = CertificateAuthority::load(&store, "ca").unwrap();
        assert_eq!(loaded.fingerprint(), created.fingerprint());
        let user = loaded.issue_user("eve", &[], DAY, SystemTime::now()).unwrap();
        check_leaf(&created, &user.certificate);
    }

    #[test]
    fn an_end_entity_certificate_is_no_authority() {
        let root = tempfile::tempdir().unwrap();
        let user = authority().issue_user("eve", &[], DAY, SystemTime::now()).unwrap();
        let (certificate, key) = (root.path().join("ca.pem"), root.path().join("ca-key.pem"));
        private_file::write(&certificate, user.certificate_pem().as_bytes()).unwrap();
        private_file::write(&key, user.key_pem().as_bytes()).unwrap();
        let loaded = CertificateAuthority::load(&DirectoryStore::new(root.path()), "ca");
        assert!(matches!(loaded, Err(AuthorityError::Unusable { .. })));
    }

    #[test]
    fn serial_numbers_differ() {
        let authority = authority();
        let serials: std::collections::HashSet<_> = (0..20)
            .map(|_| {
                let user = authority.issue_user("eve", &[], DAY, SystemTime::now()).unwrap();
                X509Certificate::from_der(&user.certificate).unwrap().1.raw_serial().to_vec()
            })
            .collect();
        assert_eq!(serials.len(), 20);
        assert!(serials.iter().all(|serial| serial.len() == 16));
    }

    #[test]
    fn an_agent_gets_the_identity_that_the_stub_chose() {
        let authority = authority();
        let agent = identity("qtunnel://prod/agent/a1");
        let request = AgentKey::generate().unwrap().signing_request().unwrap();
        let certificate = authority.issue_agent(&request, &agent, DAY, SystemTime::now()).unwrap();
        check_leaf(&authority, &certificate);
        assert_eq!(AgentIdentity::from_certificate(&certificate).unwrap(), agent);
        assert!(matches!(certificate::user_identity(&certificate), Err(CertificateError::AgentAsUser)));
    }

    #[test]
    fn names_in_a_request_have_no_effect() {
        let authority = authority();
        let agent = identity("qtunnel://prod/agent/a1");
        for harmless in ["qtunnel://prod/agent/a1", "spiffe://prod/system:masters"] {
            let request = request_naming(harmless);
            let certificate = authority.issue_agent(&request, &agent, DAY, SystemTime::now()).unwrap();
            let parsed = certificate::parse(&certificate).unwrap();
            let names: Vec<_> = parsed.subject().iter_common_name().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(names, ["a1"]);
            assert_eq!(AgentIdentity::from_certificate(&certificate).unwrap(), agent);
        }
    }

    #[test]
    fn a_request_that_names_another_cluster_or_agent_is_refused() {
        let authority = authority();
        let agent = identity("qtunnel://prod/agent/a1");
        for other in ["qtunnel://test/agent/a1", "qtunnel://prod/agent/a2", "QTUNNEL://prod/agent/a1", "qtunnel:x"] {
            let error = authority.issue_agent(&request_naming(other), &agent, DAY, SystemTime::now()).unwrap_err();
            assert!(matches!(error, AuthorityError::Request(SigningRequestError::OtherIdentity { .. })), "{error}");
        }
    }

    #[test]
    fn a_request_that_its_own_key_has_not_signed_is_refused() {
        let authority = authority();
        let agent = identity("qtunnel://prod/agent/a1");
        let mut request = AgentKey::generate().unwrap().signing_request().unwrap().to_vec();
        // The last byte belongs to the signature.
        *request.last_mut().unwrap() ^= 1;
        let error = authority.issue_agent(&request, &agent, DAY, SystemTime::now()).unwrap_err();
        assert!(
            matches!(
                error,
                AuthorityError::Request(SigningRequestError::Refused(
                    rcgen::Error::InvalidCertificationRequestSignature
                ))
            ),
            "{error}"
        );
    }

    #[test]
    fn a_request_with_bytes_after_it_or_without_end_is_refused() {
        let authority = authority();
        let agent = identity("qtunnel://prod/agent/a1");
        let mut request = AgentKey::generate().unwrap().signing_request().unwrap().to_vec();
        request.push(0);
        let error = authority.issue_agent(&request, &agent, DAY, SystemTime::now()).unwrap_err();
        assert!(matches!(error, AuthorityError::Request(SigningRequestError::TrailingBytes)), "{error}");
        request.resize(100_000, 0);
        let error = authority.issue_agent(&request, &agent, DAY, SystemTime::now()).unwrap_err();
        assert!(matches!(error, AuthorityError::Request(SigningRequestError::TooLong)), "{error}");
    }

    #[test]
    fn a_user_certificate_has_an_organization_for_each_group() {
        let authority = authority();
        for count in [0, 1, 3, 200] {
            let groups: Vec<_> = (0..count).map(|number| format!("team-ä-{number}")).collect();
            let user = authority.issue_user("eve@example.com", &groups, DAY, SystemTime::now()).unwrap();
            check_leaf(&authority, &user.certificate);
            let expected = Identity { groups, ..Identity::named("eve@example.com") };
            assert_eq!(certificate::user_identity(&user.certificate).unwrap(), expected);
        }
    }

    #[test]
    fn a_user_or_group_without_a_name_is_refused() {
        let authority = authority();
        for (user, groups) in [("", vec![]), ("eve", vec![String::new()])] {
            let refused = authority.issue_user(user, &groups, DAY, SystemTime::now());
            assert!(matches!(refused, Err(AuthorityError::EmptyName)));
        }
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let authority = authority();
        let end = authority.validity().not_after;
        for ttl in [CertificateAuthority::LIFETIME * 2, Duration::MAX] {
            let user = authority.issue_user("eve", &[], ttl, SystemTime::now()).unwrap();
            assert_eq!(certificate::not_after(&user.certificate).unwrap(), end);
        }
        assert!(matches!(authority.issue_user("eve", &[], DAY, end + DAY), Err(AuthorityError::Expired)));
    }

    #[test]
    fn a_clock_that_is_five_minutes_slow_accepts_a_new_certificate() {
        let now = SystemTime::now();
        let user = authority().issue_user("eve", &[], DAY, now).unwrap();
        let not_before = Validity::of(&user.certificate).unwrap().not_before;
        assert!(not_before <= now - Duration::from_secs(300) && not_before > now - Duration::from_secs(302));
    }
}
