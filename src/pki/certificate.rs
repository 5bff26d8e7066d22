//! What a certificate says: one parse for each question.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::host_name::HostName;
use crate::wire::{AgentName, ClusterId, Identity, InvalidName};

/// The SHA-256 of a certificate's DER: what a join token pins.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateFingerprint([u8; CertificateFingerprint::LENGTH]);

impl CertificateFingerprint {
    /// Bytes in a fingerprint.
    pub const LENGTH: usize = 32;

    /// The fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }

    /// A fingerprint that was written down before.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Display for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateFingerprint({self})")
    }
}

/// Which agent of which cluster a certificate belongs to. As text: `qtunnel://CLUSTER/agent/NAME`, the URI among the
/// certificate's subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentIdentity {
    /// The cluster that the agent serves.
    pub cluster: ClusterId,
    /// The agent's name within its cluster.
    pub agent: AgentName,
}

impl AgentIdentity {
    /// Reads the identity from an agent's certificate, which the caller has verified against the agent authority.
    ///
    /// # Errors
    /// The certificate cannot be parsed, or does not carry exactly one `qtunnel:` URI of the right form.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = parse(certificate)?;
        let mut uris = tunnel_uris(&parsed)?.into_iter();
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse().map_err(CertificateError::AgentIdentity),
            (None, _) => Err(CertificateError::NotAnAgent),
            (Some(_), Some(_)) => Err(CertificateError::SeveralAgentIdentities),
        }
    }
}

impl fmt::Display for AgentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qtunnel://{}/agent/{}", self.cluster, self.agent)
    }
}

impl FromStr for AgentIdentity {
    type Err = InvalidAgentIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidAgentIdentity> {
        let (cluster, agent) = text
            .strip_prefix("qtunnel://")
            .and_then(|rest| rest.split_once("/agent/"))
            .ok_or(InvalidAgentIdentity::Form)?;
        Ok(Self { cluster: cluster.parse()?, agent: agent.parse()? })
    }
}

/// Why a text is not an agent's identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAgentIdentity {
    /// The text is built differently.
    #[error("an agent's identity has the form qtunnel://CLUSTER/agent/NAME")]
    Form,
    /// The cluster id or the agent's name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Reads a user from a client certificate as kube-apiserver does (`apiserver/pkg/authentication/request/x509`): the
/// common name is the user, each organization a group. The caller has verified it against the user authority.
///
/// # Errors
/// The certificate cannot be parsed, belongs to an agent, or does not name exactly one user in readable text.
pub fn user_identity(certificate: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    let parsed = parse(certificate)?;
    if !tunnel_uris(&parsed)?.is_empty() {
        return Err(CertificateError::AgentAsUser);
    }
    let mut names = parsed.subject().iter_common_name();
    let user = match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().map_err(|_| CertificateError::UnreadableSubject)?,
        (None, _) => return Err(CertificateError::NoUser),
        (Some(_), Some(_)) => return Err(CertificateError::SeveralUsers),
    };
    if user.is_empty() {
        return Err(CertificateError::NoUser);
    }
    let groups = parsed
        .subject()
        .iter_organization()
        .map(|group| group.as_str().map(str::to_owned).map_err(|_| CertificateError::UnreadableSubject))
        .collect::<Result<_, _>>()?;
    Ok(Identity { groups, ..Identity::named(user) })
}

/// The serial number of `certificate`, big-endian, without leading zeros.
///
/// # Errors
/// The certificate cannot be parsed.
pub fn serial_number(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateError> {
    let serial = parse(certificate)?.raw_serial().to_vec();
    Ok(serial.into_iter().skip_while(|byte| *byte == 0).collect())
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads the validity of `certificate`.
    ///
    /// # Errors
    /// The certificate cannot be parsed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = parse(certificate)?;
        let validity = parsed.validity();
        Ok(Self { not_before: system_time(validity.not_before)?, not_after: system_time(validity.not_after)? })
    }

    /// Whether the certificate is past its end at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// Whether the certificate should be replaced at `now`: two thirds of its life are gone.
    pub fn renewal_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        // Cannot underflow: the moment lies between two moments that exist.
        now >= self.not_after - life / 3
    }
}

/// The last moment at which `certificate` is valid.
///
/// # Errors
/// The certificate cannot be parsed.
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, CertificateError> {
    Validity::of(certificate).map(|validity| validity.not_after)
}

/// Why a certificate does not say what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not the DER of an X.509 certificate.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    /// Bytes follow the certificate.
    #[error("the certificate cannot be parsed: bytes follow its end")]
    TrailingBytes,
    /// A date that this system cannot express.
    #[error("the certificate's validity is out of range")]
    DateOutOfRange,
    /// No `qtunnel:` URI.
    #[error("the certificate names no agent: it has no qtunnel:// URI among its subject alternative names")]
    NotAnAgent,
    /// More than one `qtunnel:` URI.
    #[error("the certificate names several agents")]
    SeveralAgentIdentities,
    /// A `qtunnel:` URI of another form.
    #[error("the certificate names an agent wrongly: {0}")]
    AgentIdentity(#[source] InvalidAgentIdentity),
    /// An agent's certificate in the place of a user's.
    #[error("the certificate belongs to an agent, which is never a user: use a certificate of the user authority")]
    AgentAsUser,
    /// The common name is missing or empty.
    #[error("the certificate names no user: its subject has no common name")]
    NoUser,
    /// Several common names.
    #[error("the certificate names several users: its subject has several common names")]
    SeveralUsers,
    /// A name that is not UTF-8 text.
    #[error("the certificate's subject is not readable as UTF-8 text")]
    UnreadableSubject,
    /// A subject alternative name that cannot be read.
    #[error("the certificate's subject alternative names are not readable")]
    UnreadableAlternativeNames,
}

/// Parses DER that holds one certificate and nothing else.
pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| CertificateError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(parsed) } else { Err(CertificateError::TrailingBytes) }
}

/// The host names and addresses of a server certificate, in its order.
pub(super) fn host_names(certificate: &CertificateDer<'_>) -> Result<Vec<HostName>, CertificateError> {
    alternative_names(&parse(certificate)?)?
        .iter()
        .map(|name| HostName::from_general_name(name).ok_or(CertificateError::UnreadableAlternativeNames))
        .collect()
}

/// Whether `uri` has the scheme that agents' identities have; schemes ignore case (RFC 3986, section 3.1).
pub(super) fn is_tunnel_uri(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("qtunnel"))
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    sum
}

pub(super) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn tunnel_uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, CertificateError> {
    let mut uris = Vec::new();
    for name in alternative_names(certificate)? {
        match name {
            GeneralName::URI(uri) if is_tunnel_uri(uri) => uris.push(uri.to_owned()),
            // A name that cannot be read might be an agent's identity in disguise.
            GeneralName::Invalid(..) => return Err(CertificateError::UnreadableAlternativeNames),
            _ => {}
        }
    }
    Ok(uris)
}

fn alternative_names<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<GeneralName<'a>>, CertificateError> {
    let extension = certificate.subject_alternative_name().map_err(|_| CertificateError::UnreadableAlternativeNames)?;
    Ok(extension.map(|extension| extension.value.general_names.clone()).unwrap_or_default())
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moment.ok_or(CertificateError::DateOutOfRange)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};

    use super::*;
    use crate::pki::signing_request::SigningRequest;

    const COMMON_NAME: &str = "eve";

    fn certificate(subject: Vec<(DnType, DnValue)>, uris: &[&str]) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            parameters.distinguished_name.push(kind, value);
        }
        parameters.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    fn named(uris: &[&str]) -> CertificateDer<'static> {
        certificate(vec![(DnType::CommonName, COMMON_NAME.into())], uris)
    }

    #[test]
    fn a_user_needs_exactly_one_readable_common_name() {
        // rcgen holds one value for each kind of attribute; given as a number, the same kind counts as another.
        let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
        let teletex = DnValue::TeletexString("eve".try_into().unwrap());
        let cases = [
            (vec![], "names no user"),
            (vec![(DnType::CommonName, "".into())], "names no user"),
            (vec![(DnType::OrganizationName, "dev".into())], "names no user"),
            (vec![(DnType::CommonName, "eve".into()), (again, "root".into())], "names several users"),
            (vec![(DnType::CommonName, teletex.clone())], "not readable"),
            (vec![(DnType::CommonName, "eve".into()), (DnType::OrganizationName, teletex)], "not readable"),
        ];
        for (subject, expected) in cases {
            let error = user_identity(&certificate(subject, &[])).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(user_identity(&named(&["https://example.com"])).unwrap(), Identity::named(COMMON_NAME));
    }

    #[test]
    fn whatever_claims_to_be_an_agent_is_no_user() {
        for uri in ["qtunnel://prod/agent/a1", "QTunnel://x", "qtunnel:"] {
            let error = user_identity(&named(&[uri])).unwrap_err();
            assert!(matches!(error, CertificateError::AgentAsUser), "{uri}: {error}");
        }
    }

    #[test]
    fn an_agent_has_exactly_one_well_formed_identity() {
        let good = "qtunnel://prod/agent/a1";
        let identity = AgentIdentity::from_certificate(&named(&["spiffe://other", good])).unwrap();
        assert_eq!((identity.cluster.as_str(), identity.agent.as_str()), ("prod", "a1"));
        assert_eq!(identity.to_string(), good);

        assert!(matches!(AgentIdentity::from_certificate(&named(&[])), Err(CertificateError::NotAnAgent)));
        let several = AgentIdentity::from_certificate(&named(&[good, "qtunnel://test/agent/a1"]));
        assert!(matches!(several, Err(CertificateError::SeveralAgentIdentities)));
        for bad in [
            "QTUNNEL://prod/agent/a1",
            "qtunnel://prod/agent/a1/",
            "qtunnel://prod/user/a1",
            "qtunnel://prod/x/agent/a1",
            "qtunnel:///agent/a1",
            "qtunnel://prod/agent/a1?x",
        ] {
            let refused = AgentIdentity::from_certificate(&named(&[bad]));
            assert!(matches!(refused, Err(CertificateError::AgentIdentity(_))), "{bad}");
        }
    }

    #[test]
    fn bytes_after_a_certificate_are_refused() {
        let mut der = named(&[]).to_vec();
        der.push(0);
        assert!(matches!(user_identity(&der.into()), Err(CertificateError::TrailingBytes)));
    }

    #[test]
    fn a_certificate_is_due_for_renewal_in_the_last_third_of_its_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let validity = Validity { not_before: start, not_after: start + Duration::from_secs(300) };
        assert!(!validity.renewal_due(start + Duration::from_secs(199)));
        assert!(validity.renewal_due(start + Duration::from_secs(200)));
        assert!(!validity.is_expired(start + Duration::from_secs(300)));
        assert!(validity.is_expired(start + Duration::from_secs(301)));
    }

    proptest! {
        #[test]
        fn garbage_in_the_place_of_der_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let der = CertificateDer::from(bytes.clone());
            prop_assert!(AgentIdentity::from_certificate(&der).is_err());
            prop_assert!(user_identity(&der).is_err());
            prop_assert!(Validity::of(&der).is_err());
            prop_assert!(SigningRequest::verify(&bytes).is_err());
        }

        #[test]
        fn damaged_der_never_makes_a_panic(
            position in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let certificate = named(&["qtunnel://prod/agent/a1"]).to_vec();
            let request = CertificateParams::new(vec!["example.com".to_owned(), "192.0.2.1".to_owned()])
                .unwrap()
                .serialize_request(&KeyPair::generate().unwrap())
                .unwrap();
            for mut der in [certificate, request.der().to_vec()] {
                let position = position.index(der.len());
                der[position] = byte;
                for der in [&der[..], &der[..cut.index(der.len())]] {
                    let _ = SigningRequest::verify(der);
                    let der = CertificateDer::from(der);
                    let _ = AgentIdentity::from_certificate(&der);
                    let _ = user_identity(&der);
                    let _ = Validity::of(&der);
                    let _ = host_names(&der);
                }
            }
        }
    }
}
