//! Users with client certificates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use tokio::sync::watch;

use super::{
    Authenticating, Authenticator, ClientCertificate, Credentials, NotVouched, Proof, SystemNames, Vouched, answered,
};
use crate::pki::{AuthorityFiles, PeerRole, StubKeys, StubKeysError, TrustedAuthorities, client_verifier};
use crate::stub::reload::{Followed, Reload, Source};

/// Knows users by their client certificates: the common name is the user, each organization a group.
///
/// Certificates of the stub's own user authorities may name anybody; those of further authorities only whom [`SystemNames`]
/// lets others name. The files of authorities and of revocation lists are read again when they change, and certificates
/// that have been accepted are verified again then: also those of open connections and resumed sessions, which TLS does not
/// look at twice.
///
/// It knows who vouches for agents as well, because no authority may vouch for both.
#[derive(Debug, Clone)]
pub struct ClientCertificates {
    files: Arc<Followed<Files>>,
    names: SystemNames,
}

/// Why the files of authorities or revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFilesError {
    /// A file cannot be read, or not be understood.
    #[error("{}: {why}; `client_ca_files` and `crl_files` under [authentication] name such files", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An agent could pass for a user.
    #[error("{} holds the authority of the agents: agents and users must not share one", path.display())]
    AgentAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The stub's own authorities.
    #[error(transparent)]
    Own(#[from] StubKeysError),
    /// What they say together.
    #[error("client certificates cannot be verified: {0}")]
    Verifier(#[from] crate::pki::TlsError),
}

impl ClientCertificates {
    /// Accepts certificates of `own` authorities and of those in `authority_files`, unless a list in `crl_files` revokes them.
    ///
    /// # Errors
    /// See [`CertificateFilesError`].
    pub fn load(
        own: OwnAuthorities,
        authority_files: &[PathBuf],
        crl_files: &[PathBuf],
        names: SystemNames,
    ) -> Result<Self, CertificateFilesError> {
        let files = Files {
            own,
            authorities: authority_files.to_vec(),
            lists: crl_files.to_vec(),
            // A certificate that has not been verified has 0.
            next_state: AtomicU64::new(1),
        };
        Ok(Self { files: Arc::new(Followed::load(files)?), names })
    }

    /// What TLS asks in each handshake with a peer of this kind.
    pub fn verifier(&self, role: PeerRole) -> Arc<dyn ClientCertVerifier> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Arc::new(CurrentTrust { files: self.files.clone(), role, provider: Arc::new(provider) })
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.files.clone()
    }

    fn vouch(&self, certificate: &ClientCertificate) -> Result<Vouched, NotVouched> {
        let refused = |why: &dyn fmt::Display| NotVouched::Refused(format!("the client certificate: {why}"));
        if certificate.validity.is_expired(SystemTime::now()) {
            return Err(refused(&"it has expired"));
        }
        let trust = self.files.current();
        if certificate.verified_under.load(Ordering::Relaxed) != trust.state {
            let signer = trust.verify_chain(&certificate.chain).map_err(|error| refused(&error))?;
            if signer == Signer::Other {
                self.names.check(certificate.identity.clone())?;
            }
            certificate.verified_under.store(trust.state, Ordering::Relaxed);
        }
        let until = Some(certificate.validity.not_after);
        Ok(Vouched { identity: certificate.identity.clone(), by: Proof::Certificate, until })
    }
}

impl Authenticator for ClientCertificates {
    fn name(&self) -> &'static str {
        "client-certificate"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        answered(credentials.certificate().map(|certificate| self.vouch(certificate)).transpose())
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.files.changes()]
    }
}

/// The stub's own authorities.
#[derive(Debug)]
pub struct OwnAuthorities {
    keys: Arc<StubKeys>,
    /// What they were; `None`: they are read again and again.
    fixed: Option<AuthorityFiles>,
}

impl OwnAuthorities {
    /// Those in the store of `keys`, which is looked into every second. Its files cost little; others may cost much.
    pub fn followed(keys: Arc<StubKeys>) -> Self {
        Self { keys, fixed: None }
    }

    /// Those in the store of `keys` now.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn fixed(keys: Arc<StubKeys>) -> Result<Self, StubKeysError> {
        let fixed = Some(AuthorityFiles::read(&keys)?);
        Ok(Self { keys, fixed })
    }

    fn read(&self) -> Result<AuthorityFiles, StubKeysError> {
        self.fixed.clone().map_or_else(|| AuthorityFiles::read(&self.keys), Ok)
    }
}

/// The files of every authority and revocation list.
#[derive(Debug)]
struct Files {
    own: OwnAuthorities,
    authorities: Vec<PathBuf>,
    lists: Vec<PathBuf>,
    next_state: AtomicU64,
}

/// Whom to trust.
#[derive(Debug)]
struct Trust {
    agents: Arc<dyn ClientCertVerifier>,
    own: Arc<dyn ClientCertVerifier>,
    others: Option<Arc<dyn ClientCertVerifier>>,
    /// Another number for each state that has been in force.
    state: u64,
}

/// Whose authority has signed a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signer {
    Own,
    Other,
}

impl Source for Files {
    /// What stands in the files: of the stub's own authorities, of further ones, and of revocation lists.
    type Content = (AuthorityFiles, Vec<Vec<u8>>, Vec<Vec<u8>>);
    type Value = Trust;
    type Error = CertificateFilesError;

    fn name(&self) -> &'static str {
        "client authority"
    }

    fn read(&self) -> Result<Self::Content, CertificateFilesError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|error| failed(path, &error));
        let authorities = self.authorities.iter().map(read).collect::<Result<_, _>>()?;
        Ok((self.own.read()?, authorities, self.lists.iter().map(read).collect::<Result<_, _>>()?))
    }

    fn build(&self, (own, authorities, lists): &Self::Content) -> Result<Trust, CertificateFilesError> {
        let TrustedAuthorities { agents, users } = own.trusted(&self.own.keys)?;
        let mut others = Vec::new();
        for (path, bytes) in self.authorities.iter().zip(authorities) {
            let found = certificates(path, bytes)?;
            if found.iter().any(|authority| agents.contains(authority)) {
                return Err(CertificateFilesError::AgentAuthority { path: path.clone() });
            }
            others.extend(found);
        }
        let mut revoked = Vec::new();
        for (path, bytes) in self.lists.iter().zip(lists) {
            revoked.extend(revocation_lists(path, bytes)?);
        }
        Ok(Trust {
            agents: client_verifier(&agents, Vec::new())?,
            own: client_verifier(&users, revoked.clone())?,
            others: if others.is_empty() { None } else { Some(client_verifier(&others, revoked)?) },
            state: self.next_state.fetch_add(1, Ordering::Relaxed),
        })
    }
}

impl Trust {
    fn verify_chain(&self, chain: &[CertificateDer<'_>]) -> Result<Signer, rustls::Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verify(end_entity, intermediates, UnixTime::now()).map(|(signer, _)| signer)
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Signer, ClientCertVerified), rustls::Error> {
        let verdict = match self.own.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => return Ok((Signer::Own, verified)),
            Err(error) => error,
        };
        let Some(others) = &self.others else { return Err(verdict) };
        match others.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => Ok((Signer::Other, verified)),
            // What the own authority said then tells more: expired, revoked.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(verdict),
            Err(error) => Err(error),
        }
    }
}

/// Asks whatever is in force at the moment of a handshake.
#[derive(Debug)]
struct CurrentTrust {
    files: Arc<Followed<Files>>,
    role: PeerRole,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for CurrentTrust {
    /// Mandatory would shut out users with tokens, and agents that are to enrol.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints, since the authorities change. Clients then offer what they have (RFC 8446, section 4.2.4).
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let trust = self.files.current();
        match self.role {
            PeerRole::Agent => trust.agents.verify_client_cert(end_entity, intermediates, now),
            PeerRole::User => trust.verify(end_entity, intermediates, now).map(|(_, verified)| verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateFilesError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let certificates = certificates.map_err(|error| failed(path, &error))?;
    match certificates.is_empty() {
        false => Ok(certificates),
        true => Err(failed(path, &"it holds no certificate in PEM")),
    }
}

/// The lists of a PEM file, at least one, or the one that a DER file is.
fn revocation_lists(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, CertificateFilesError> {
    // The DER of a list begins with the byte of a SEQUENCE, which no PEM begins with.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec().into()]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let lists = lists.map_err(|error| failed(path, &error))?;
    match lists.is_empty() {
        false => Ok(lists),
        true => Err(failed(path, &"it holds no certificate revocation list in PEM or DER")),
    }
}

fn failed(path: &Path, why: &dyn fmt::Display) -> CertificateFilesError {
    CertificateFilesError::File { path: path.to_owned(), why: why.to_string() }
}
