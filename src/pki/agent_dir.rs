//! The agent's state directory: who it is, and whom it trusts.

use std::fmt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};

use super::credentials::{AgentCredentials, CredentialsError};
use super::pem;
use super::private_file::{self, FileError};

/// A directory (0700) that keeps an agent's credentials between restarts: `agent.pem` holds the private key and the
/// certificate in one file, so that a crash cannot part them; `server-ca.pem` the authority that the stub's certificate
/// must chain to.
#[derive(Debug)]
pub struct AgentState {
    directory: PathBuf,
}

impl AgentState {
    /// Uses `directory`, which is created if it is missing.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(directory: &Path) -> Result<Self, AgentStateError> {
        private_file::create_directory(directory)?;
        Ok(Self { directory: directory.into() })
    }

    /// The credentials that were stored last; `None` if the agent has not joined yet.
    ///
    /// # Errors
    /// A file is unreadable or damaged, or key and certificate do not fit together.
    pub fn load(&self) -> Result<Option<AgentCredentials>, AgentStateError> {
        let path = self.credentials_path();
        let key = match private_file::read_private_key(&path) {
            Err(FileError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        let chain = private_file::read_certificates(&path)?;
        let [authority] = <[_; 1]>::try_from(private_file::read_certificates(&self.authority_path())?)
            .map_err(|_| AgentStateError::SeveralAuthorities { path: self.authority_path() })?;
        let credentials = AgentCredentials::new(chain, key, authority);
        credentials.map(Some).map_err(|error| AgentStateError::Credentials { path, error })
    }

    /// Checks what the stub has issued for `key`, stores it in place of what was there, and returns it for use.
    ///
    /// # Errors
    /// The certificate is for another key or names no agent, or a file cannot be written. The old credentials then remain.
    pub fn store(
        &self,
        key: &AgentKey,
        chain: Vec<CertificateDer<'static>>,
        server_authority: CertificateDer<'static>,
    ) -> Result<AgentCredentials, AgentStateError> {
        let path = self.credentials_path();
        let credentials = AgentCredentials::new(chain, key.pkcs8().into(), server_authority)
            .map_err(|error| AgentStateError::Issued { error })?;
        // First the authority: without credentials beside it, it is an agent that has not joined yet.
        let authority = pem::certificate_to_pem(credentials.server_authority());
        private_file::write(&self.authority_path(), authority.as_bytes())?;
        let content = pem::key_to_pem(&key.pkcs8()) + &pem::chain_to_pem(credentials.chain());
        private_file::write(&path, content.as_bytes())?;
        Ok(credentials)
    }

    fn credentials_path(&self) -> PathBuf {
        self.directory.join("agent.pem")
    }

    fn authority_path(&self) -> PathBuf {
        self.directory.join("server-ca.pem")
    }
}

/// A private key that has no certificate yet. It never leaves the agent.
pub struct AgentKey(KeyPair);

impl AgentKey {
    /// Makes a fresh ECDSA P-256 key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<Self, AgentStateError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// A certificate signing request for this key. It names nobody: the stub decides who the agent is.
    ///
    /// # Errors
    /// Signing fails.
    pub fn signing_request(&self) -> Result<CertificateSigningRequestDer<'static>, AgentStateError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        Ok(parameters.serialize_request(&self.0)?.into())
    }

    fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        self.0.serialize_der().into()
    }
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentKey(...)")
    }
}

/// Why the agent's credentials cannot be loaded, made or stored.
#[derive(Debug, thiserror::Error)]
pub enum AgentStateError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stored key and certificate do not fit together.
    #[error("{}: {error}; remove the file to join again with a new token", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        error: CredentialsError,
    },
    /// The trusted authority is not one certificate.
    #[error("{} must hold exactly one certificate: remove it and agent.pem to join again", path.display())]
    SeveralAuthorities {
        /// The file.
        path: PathBuf,
    },
    /// What the stub sent cannot be used.
    #[error("the certificate that the stub issued cannot be used: {error}")]
    Issued {
        /// What is wrong with it.
        #[source]
        error: CredentialsError,
    },
    /// The key or the request could not be made.
    #[error("making a key or a certificate signing request failed: {0}")]
    Key(#[from] rcgen::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::pki::{AgentIdentity, CertificateAuthority};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    struct Scene {
        root: tempfile::TempDir,
        state: AgentState,
        authority: CertificateAuthority,
        now: SystemTime,
    }

    impl Scene {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let state = AgentState::open(&root.path().join("agent")).unwrap();
            let now = SystemTime::now();
            Self { root, state, authority: CertificateAuthority::create("agents", now).unwrap(), now }
        }

        fn issue(&self, key: &AgentKey) -> Vec<CertificateDer<'static>> {
            let request = key.signing_request().unwrap();
            vec![self.authority.issue_agent(&request, &identity(), 30 * DAY, self.now).unwrap()]
        }

        /// Any certificate will do: the directory only keeps it.
        fn server_authority(&self) -> CertificateDer<'static> {
            self.authority.certificate_der().clone()
        }

        fn file(&self, name: &str) -> PathBuf {
            self.root.path().join("agent").join(name)
        }
    }

    fn identity() -> AgentIdentity {
        AgentIdentity { cluster: "prod".parse().unwrap(), agent: "a1".parse().unwrap() }
    }

    #[test]
    fn an_agent_that_has_not_joined_has_no_credentials() {
        assert!(Scene::new().state.load().unwrap().is_none());
    }

    #[test]
    fn stored_credentials_come_back_and_are_private() {
        let scene = Scene::new();
        let key = AgentKey::generate().unwrap();
        let stored = scene.state.store(&key, scene.issue(&key), scene.server_authority()).unwrap();
        let loaded = scene.state.load().unwrap().unwrap();
        assert_eq!(loaded.identity(), &identity());
        assert_eq!(
            (loaded.chain(), loaded.key(), loaded.server_authority()),
            (stored.chain(), stored.key(), &scene.server_authority())
        );
        for name in ["agent.pem", "server-ca.pem"] {
            assert_eq!(fs::metadata(scene.file(name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
        }
    }

    #[test]
    fn renewal_is_due_when_two_thirds_of_the_life_are_gone() {
        let scene = Scene::new();
        let key = AgentKey::generate().unwrap();
        let agent = scene.state.store(&key, scene.issue(&key), scene.server_authority()).unwrap();
        assert!(!agent.renew_due(scene.now + 19 * DAY));
        assert!(agent.renew_due(scene.now + 20 * DAY));
        assert!(agent.not_after() <= scene.now + 30 * DAY);
    }

    #[test]
    fn a_certificate_for_another_key_does_not_replace_good_credentials() {
        let scene = Scene::new();
        let (key, other) = (AgentKey::generate().unwrap(), AgentKey::generate().unwrap());
        scene.state.store(&key, scene.issue(&key), scene.server_authority()).unwrap();
        let before = fs::read(scene.file("agent.pem")).unwrap();
        let error = scene.state.store(&other, scene.issue(&key), scene.server_authority()).unwrap_err();
        assert!(matches!(error, AgentStateError::Issued { .. }), "{error}");
        assert!(scene.state.store(&other, vec![], scene.server_authority()).is_err());
        assert_eq!(fs::read(scene.file("agent.pem")).unwrap(), before);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let scene = Scene::new();
        let key = AgentKey::generate().unwrap();
        scene.state.store(&key, scene.issue(&key), scene.server_authority()).unwrap();
        fs::write(scene.file("server-ca.pem"), "").unwrap();
        assert!(scene.state.load().unwrap_err().to_string().contains("server-ca.pem"));
        fs::write(scene.file("agent.pem"), "-----BEGIN PRIVATE KEY-----\n").unwrap();
        assert!(scene.state.load().unwrap_err().to_string().contains("agent.pem"));
    }

    #[test]
    fn a_key_does_not_appear_in_debug_output() {
        assert_eq!(format!("{:?}", AgentKey::generate().unwrap()), "AgentKey(...)");
    }
}
