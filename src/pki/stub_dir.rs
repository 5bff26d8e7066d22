//! A stub's keys: three authorities, the server certificate and the join tokens.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use rcgen::KeyPair;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::authority::{self, AuthorityError, CertificateAuthority};
use super::certificate::{self, CertificateError, Validity};
use super::credentials::{CredentialsError, ServerCredentials};
use super::host_name::HostName;
use super::pem;
use super::private_file::{self, FileError};
use super::store::{self, Key, Store, StoreError, Table};
use super::tls;
use super::token_store::JoinTokenStore;
use super::trusted_authorities::AuthorityFiles;

/// What a stub needs to prove itself and to recognize others, loaded from one [`Store`]: `server-ca.pem`, `agent-ca.pem` and
/// `user-ca.pem` with their keys in `*-ca-key.pem`, the server certificate in `server.pem` with `server-key.pem`, and join
/// tokens. Stubs that use the same store are one to users and agents. After the authority that signs, `agent-ca.pem` and
/// `user-ca.pem` may hold others that are trusted as well ([`AuthorityFiles`]).
#[derive(Debug)]
pub struct StubKeys {
    store: Arc<dyn Store>,
    server_authority: CertificateAuthority,
    agent_authority: CertificateAuthority,
    user_authority: CertificateAuthority,
    server: ServerCredentials,
    derivation: hmac::Key,
    tokens: JoinTokenStore,
}

impl StubKeys {
    /// Creates a new set of keys in `store`. The server certificate is for `hosts` and, with `base_domain`, for every name
    /// directly below it, where each cluster has its own.
    ///
    /// # Errors
    /// The store already has a part of such a set: nothing is replaced. Or it fails.
    pub fn create(
        store: Arc<dyn Store>,
        hosts: &[HostName],
        base_domain: Option<&HostName>,
        now: SystemTime,
    ) -> Result<Self, StubKeysError> {
        refuse_existing(&*store)?;
        let [server, agent, user] =
            AUTHORITIES.map(|name| CertificateAuthority::create(&format!("qtunnel {name}"), now));
        let (server, agent, user) = (server?, agent?, user?);
        let key = KeyPair::generate().map_err(AuthorityError::from)?;
        let certificate = server.issue_server(&names(hosts, base_domain)?, &key, now)?;
        let chain = pem::chain_to_pem(&[certificate, server.certificate_der().clone()]);

        // Nothing is written before everything is made.
        for (name, authority) in AUTHORITIES.into_iter().zip([server, agent, user]) {
            authority.save(&*store, name)?;
        }
        store::create(&*store, &Key::pem(SERVER_KEY), key.serialize_pem().as_bytes())?;
        store::create(&*store, &Key::pem(SERVER_CERTIFICATE), chain.as_bytes())?;
        Self::load(store, now)
    }

    /// Loads the keys in `store` and checks that they fit together at `now`. A server certificate that has expired is no
    /// error, because [`renew_server_certificate_if_due`](Self::renew_server_certificate_if_due) replaces it.
    ///
    /// # Errors
    /// A part is missing, unreadable or damaged, a key belongs to another certificate, an authority has expired, or agents and
    /// users share an authority.
    pub fn load(store: Arc<dyn Store>, now: SystemTime) -> Result<Self, StubKeysError> {
        let [server_authority, agent_authority, user_authority] =
            AUTHORITIES.map(|name| load_authority(&*store, name, now));
        let (server_authority, agent_authority, user_authority) =
            (server_authority?, agent_authority?, user_authority?);
        let (server, derivation) = load_server(&*store, &server_authority)?;
        let tokens = JoinTokenStore::new(store.clone(), server_authority.fingerprint());
        let keys = Self { store, server_authority, agent_authority, user_authority, server, derivation, tokens };
        AuthorityFiles::read(&keys)?.trusted(&keys)?;
        Ok(keys)
    }

    /// Signs the stub's server certificate; join tokens pin it.
    pub fn server_authority(&self) -> &CertificateAuthority {
        &self.server_authority
    }

    /// Signs the agents' certificates.
    pub fn agent_authority(&self) -> &CertificateAuthority {
        &self.agent_authority
    }

    /// Signs the users' certificates.
    pub fn user_authority(&self) -> &CertificateAuthority {
        &self.user_authority
    }

    /// The server certificate and its key. Renewal replaces the certificate in all clones.
    pub fn server(&self) -> &ServerCredentials {
        &self.server
    }

    /// A secret that is the same whenever these keys are loaded: what a stub that was started again tells its agents with
    /// that it has forgotten them. It is derived from the key of the server certificate, which renewal keeps.
    pub fn reset_secret(&self) -> [u8; 32] {
        let tag = hmac::sign(&self.derivation, b"qtunnel stateless reset");
        let mut secret = [0; 32];
        // An HMAC-SHA-256 has 32 bytes, so nothing is left over on either side.
        secret.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        secret
    }

    /// The join tokens.
    pub fn tokens(&self) -> &JoinTokenStore {
        &self.tokens
    }

    /// What the keys are kept in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Reads what is stored of the server certificate, as it is now.
    ///
    /// # Errors
    /// The certificate or its key is missing or unreadable.
    pub fn read_server_files(&self) -> Result<ServerFiles, StubKeysError> {
        let read = |name| store::require(&*self.store, &Key::pem(name));
        Ok(ServerFiles { chain: read(SERVER_CERTIFICATE)?, key: read(SERVER_KEY)? })
    }

    /// Presents the certificate in `files` from now on.
    ///
    /// # Errors
    /// It is damaged, has another issuer than the server authority, or its key belongs to another; the one before it then
    /// stays in use.
    pub fn present(&self, files: &ServerFiles) -> Result<(), StubKeysError> {
        let chain = certificate_chain(&*self.store, &files.chain, &self.server_authority)?;
        let key = private_file::private_key(&self.store.place(&Key::pem(SERVER_KEY)), &files.key)?;
        Ok(self.server.replace(chain, key)?)
    }

    /// Issues a new server certificate for the same names if less than a third of the old one's life is left at `now`,
    /// stores it and presents it from then on; one that another stub has stored already is taken instead. Says whether there
    /// is a new one. The key stays, so that a crash between two files cannot part it from its certificate.
    ///
    /// # Errors
    /// The authority has expired, or the new certificate cannot be stored; the old one then stays in use.
    pub fn renew_server_certificate_if_due(&self, now: SystemTime) -> Result<bool, StubKeysError> {
        let taken = self.take_stored_certificate()?;
        let chain = self.server.chain();
        let current = chain.first().ok_or(StubKeysError::EmptyChain)?;
        if !Validity::of(current)?.renewal_due(now) {
            return Ok(taken);
        }
        let key = self.server_key()?;
        let public_key = KeyPair::try_from(&key).map_err(AuthorityError::from)?;
        let hosts = certificate::host_names(current)?;
        let renewed = self.server_authority.issue_server(&hosts, &public_key, now)?;
        let chain = vec![renewed, self.server_authority.certificate_der().clone()];
        let certificate = Key::pem(SERVER_CERTIFICATE);
        let old = store::require(&*self.store, &certificate)?;
        if !self.store.swap(&certificate, Some(&old), Some(pem::chain_to_pem(&chain).as_bytes()))? {
            // Another stub was faster.
            return self.take_stored_certificate();
        }
        self.server.replace(chain, key)?;
        Ok(true)
    }

    /// Presents the certificate that is stored from now on. Says whether it is another one.
    fn take_stored_certificate(&self) -> Result<bool, StubKeysError> {
        let chain = stored_chain(&*self.store, &self.server_authority)?;
        if chain.first() == self.server.chain().first() {
            return Ok(false);
        }
        self.server.replace(chain, self.server_key()?)?;
        Ok(true)
    }

    fn server_key(&self) -> Result<PrivateKeyDer<'static>, StubKeysError> {
        read_server_key(&*self.store)
    }
}

/// What stands in the files of a server certificate. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerFiles {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for ServerFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerFiles(..)")
    }
}

/// Why a stub's keys cannot be created or used.
#[derive(Debug, thiserror::Error)]
pub enum StubKeysError {
    /// There are keys already.
    #[error(
        "{} exists already, and keys are never replaced: agents and users trust them. Choose another directory; or, if \
         these keys are not in use, remove them first", path.display()
    )]
    Exists {
        /// The first file that was found.
        path: PathBuf,
    },
    /// A base domain that has no names below it.
    #[error("{0} cannot be the base domain of clusters' host names: give a DNS name such as k8s.example.com")]
    BaseDomain(HostName),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Where the keys are kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An authority cannot be loaded, or does not sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// An authority is past its end.
    #[error("the certificate authority in {} has expired: create a new set of keys", path.display())]
    AuthorityExpired {
        /// Its certificate.
        path: PathBuf,
    },
    /// Anybody of one kind could pass for the other kind.
    #[error("agent-ca.pem and user-ca.pem are the same authority: agents and users must not share one")]
    SharedAuthority,
    /// A certificate that may not vouch for others.
    #[error("{} holds what is not the certificate of an authority", path.display())]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
    },
    /// Whoever has a certificate of this stub would be refused.
    #[error(
        "{} lacks the authority that this stub signs with; start the stub again to sign with another, which the file has \
         to begin with, and keep both in the file until then", path.display()
    )]
    OwnAuthorityMissing {
        /// The file.
        path: PathBuf,
    },
    /// The server certificate cannot be parsed.
    #[error("server.pem: {0}")]
    Certificate(#[from] CertificateError),
    /// The server certificate and its key do not fit together.
    #[error("server.pem and server-key.pem: {0}")]
    Credentials(#[from] CredentialsError),
    /// The server certificate has another issuer.
    #[error("server.pem was not issued by the authority in server-ca.pem: {0}")]
    OtherIssuer(#[source] rustls::Error),
    /// No server certificate.
    #[error("server.pem holds no certificate")]
    EmptyChain,
}

/// Of servers, agents and users.
const AUTHORITIES: [&str; 3] = ["server-ca", "agent-ca", "user-ca"];
const SERVER_CERTIFICATE: &str = "server.pem";
const SERVER_KEY: &str = "server-key.pem";

fn names(hosts: &[HostName], base_domain: Option<&HostName>) -> Result<Vec<HostName>, StubKeysError> {
    let mut names = hosts.to_vec();
    if let Some(domain) = base_domain {
        names.push(domain.wildcard_below().ok_or_else(|| StubKeysError::BaseDomain(domain.clone()))?);
    }
    Ok(names)
}

fn refuse_existing(store: &dyn Store) -> Result<(), StubKeysError> {
    let mut keys: Vec<Key> = AUTHORITIES.into_iter().flat_map(authority::keys_of).collect();
    keys.extend([SERVER_CERTIFICATE, SERVER_KEY].map(Key::pem));
    keys.extend(store.names(Table::Tokens)?.into_iter().map(|name| Key::listed(Table::Tokens, name)));
    for key in keys {
        if store.get(&key)?.is_some() {
            return Err(StubKeysError::Exists { path: store.place(&key) });
        }
    }
    Ok(())
}

fn load_authority(store: &dyn Store, name: &str, now: SystemTime) -> Result<CertificateAuthority, StubKeysError> {
    let authority = CertificateAuthority::load(store, name)?;
    if authority.validity().is_expired(now) {
        let [certificate, _] = authority::keys_of(name);
        return Err(StubKeysError::AuthorityExpired { path: store.place(&certificate) });
    }
    Ok(authority)
}

fn load_server(
    store: &dyn Store,
    authority: &CertificateAuthority,
) -> Result<(ServerCredentials, hmac::Key), StubKeysError> {
    let chain = stored_chain(store, authority)?;
    let key = read_server_key(store)?;
    let derivation = hmac::Key::new(HMAC_SHA256, key.secret_der());
    Ok((ServerCredentials::new(chain, key)?, derivation))
}

/// The server certificate that is stored, and the authority that has to have signed it.
fn stored_chain(
    store: &dyn Store,
    authority: &CertificateAuthority,
) -> Result<Vec<CertificateDer<'static>>, StubKeysError> {
    let stored = store::require(store, &Key::pem(SERVER_CERTIFICATE))?;
    certificate_chain(store, &stored, authority)
}

fn certificate_chain(
    store: &dyn Store,
    stored: &[u8],
    authority: &CertificateAuthority,
) -> Result<Vec<CertificateDer<'static>>, StubKeysError> {
    let chain = private_file::certificates(&store.place(&Key::pem(SERVER_CERTIFICATE)), stored)?;
    let leaf = chain.into_iter().next().ok_or(StubKeysError::EmptyChain)?;
    check_issuer(&leaf, authority)?;
    Ok(vec![leaf, authority.certificate_der().clone()])
}

fn read_server_key(store: &dyn Store) -> Result<PrivateKeyDer<'static>, StubKeysError> {
    let key = Key::pem(SERVER_KEY);
    Ok(private_file::private_key(&store.place(&key), &store::require(store, &key)?)?)
}

/// At the beginning of the certificate's life, since it may be over by now.
fn check_issuer(leaf: &CertificateDer<'_>, authority: &CertificateAuthority) -> Result<(), StubKeysError> {
    let since_epoch = Validity::of(leaf)?.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let roots = tls::roots(&[authority.certificate_der().clone()]).map_err(StubKeysError::OtherIssuer)?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(StubKeysError::OtherIssuer)?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], UnixTime::since_unix_epoch(since_epoch), algorithms)
        .map_err(StubKeysError::OtherIssuer)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::pki::DirectoryStore;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    struct Scene {
        root: tempfile::TempDir,
        now: SystemTime,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self { root: tempfile::tempdir().unwrap(), now: SystemTime::now() };
            scene.create(&scene.directory()).unwrap();
            scene
        }

        fn directory(&self) -> PathBuf {
            self.root.path().join("keys")
        }

        fn create(&self, directory: &Path) -> Result<StubKeys, StubKeysError> {
            StubKeys::create(store(directory), &hosts(), Some(&"k8s.example.com".parse().unwrap()), self.now)
        }

        fn load(&self) -> Result<StubKeys, StubKeysError> {
            StubKeys::load(store(&self.directory()), self.now)
        }

        fn load_error(&self) -> String {
            self.load().unwrap_err().to_string()
        }
    }

    fn store(directory: &Path) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::new(directory))
    }

    fn hosts() -> Vec<HostName> {
        ["stub.example.com", "192.0.2.1"].map(|host| host.parse().unwrap()).to_vec()
    }

    fn leaf(keys: &StubKeys) -> CertificateDer<'static> {
        keys.server().chain().swap_remove(0)
    }

    #[test]
    fn a_new_set_of_keys_is_private_and_can_be_loaded() {
        let scene = Scene::new();
        let keys = scene.load().unwrap();
        let names: Vec<_> = certificate::host_names(&leaf(&keys)).unwrap().iter().map(HostName::to_string).collect();
        assert_eq!(names, ["stub.example.com", "192.0.2.1", "*.k8s.example.com"]);
        assert_eq!(keys.server().chain().last(), Some(keys.server_authority().certificate_der()));
        let mut files = 0;
        for entry in fs::read_dir(scene.directory()).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{:?}", entry.path());
            files += 1;
        }
        assert_eq!(files, 8);
    }

    #[test]
    fn the_reset_secret_stays_with_its_keys() {
        let (scene, other) = (Scene::new(), Scene::new());
        let secret = scene.load().unwrap().reset_secret();
        assert_eq!(scene.load().unwrap().reset_secret(), secret);
        assert_ne!(other.load().unwrap().reset_secret(), secret);
    }

    #[test]
    fn keys_are_never_replaced() {
        let scene = Scene::new();
        let before = scene.load().unwrap().server_authority().fingerprint();
        let error = scene.create(&scene.directory()).unwrap_err().to_string();
        assert!(error.contains("server-ca.pem exists already"), "{error}");
        assert_eq!(scene.load().unwrap().server_authority().fingerprint(), before);
    }

    #[test]
    fn a_base_domain_that_is_no_domain_leaves_the_directory_empty() {
        let scene = Scene::new();
        let other = scene.root.path().join("other");
        let address = "192.0.2.1".parse().unwrap();
        let error = StubKeys::create(store(&other), &hosts(), Some(&address), scene.now).unwrap_err();
        assert!(matches!(error, StubKeysError::BaseDomain(_)));
        assert!(matches!(
            StubKeys::create(store(&other), &[], None, scene.now),
            Err(StubKeysError::Authority(AuthorityError::NoHost))
        ));
        assert!(!other.exists());
    }

    #[test]
    fn files_that_do_not_fit_together_are_named() {
        let scene = Scene::new();
        let other = scene.root.path().join("other");
        scene.create(&other).unwrap();
        let cases = [
            ("server-ca-key.pem", "belongs to another certificate"),
            ("user-ca.pem", "belongs to another certificate"),
            ("server-key.pem", "server.pem and server-key.pem: "),
            ("server.pem", "not issued by the authority in server-ca.pem"),
        ];
        for (file, expected) in cases {
            let path = scene.directory().join(file);
            let good = fs::read(&path).unwrap();
            fs::copy(other.join(file), &path).unwrap();
            let error = scene.load_error();
            assert!(error.contains(expected), "{file}: {error}");
            fs::write(&path, "garbage").unwrap();
            assert!(scene.load_error().contains(file), "{}", scene.load_error());
            fs::remove_file(&path).unwrap();
            assert!(scene.load_error().contains(&format!("{file} does not exist")), "{}", scene.load_error());
            fs::write(&path, good).unwrap();
        }
        scene.load().unwrap();
    }

    #[test]
    fn agents_and_users_must_not_share_an_authority() {
        let scene = Scene::new();
        for file in ["ca.pem", "ca-key.pem"] {
            let path = |kind: &str| scene.directory().join(format!("{kind}-{file}"));
            fs::copy(path("agent"), path("user")).unwrap();
        }
        assert!(matches!(scene.load(), Err(StubKeysError::SharedAuthority)));
    }

    #[test]
    fn an_expired_authority_is_refused() {
        let scene = Scene::new();
        let later = scene.now + CertificateAuthority::LIFETIME + DAY;
        let error = StubKeys::load(store(&scene.directory()), later).unwrap_err();
        assert!(matches!(error, StubKeysError::AuthorityExpired { .. }), "{error}");
    }

    #[test]
    fn the_server_certificate_is_renewed_for_the_same_names_in_the_last_third_of_its_life() {
        let scene = Scene::new();
        let keys = scene.load().unwrap();
        let old = leaf(&keys);
        assert!(!keys.renew_server_certificate_if_due(scene.now + 200 * DAY).unwrap());
        assert_eq!(leaf(&keys), old);

        let due = scene.now + 300 * DAY;
        assert!(keys.renew_server_certificate_if_due(due).unwrap());
        let renewed = leaf(&keys);
        assert_eq!(certificate::host_names(&renewed).unwrap(), certificate::host_names(&old).unwrap());
        assert!(certificate::not_after(&renewed).unwrap() > due + 390 * DAY);
        assert_eq!(leaf(&StubKeys::load(store(&scene.directory()), due).unwrap()), renewed);
        assert!(!keys.renew_server_certificate_if_due(due).unwrap());
    }

    #[test]
    fn stubs_that_share_their_keys_renew_the_server_certificate_once() {
        let scene = Scene::new();
        let [one, other] = [(); 2].map(|()| scene.load().unwrap());
        let due = scene.now + 300 * DAY;
        assert!(one.renew_server_certificate_if_due(due).unwrap());
        assert!(other.renew_server_certificate_if_due(due).unwrap());
        assert_eq!(leaf(&one), leaf(&other));
    }

    #[test]
    fn a_stub_that_was_off_for_long_replaces_its_expired_server_certificate() {
        let scene = Scene::new();
        let later = scene.now + 500 * DAY;
        let keys = StubKeys::load(store(&scene.directory()), later).unwrap();
        assert!(keys.renew_server_certificate_if_due(later).unwrap());
        assert!(certificate::not_after(&leaf(&keys)).unwrap() > later);
    }
}
