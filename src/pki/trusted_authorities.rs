//! Which authorities vouch for agents and for users, as it stands in the store at the moment.
//!
//! `agent-ca.pem` and `user-ca.pem` begin with the authority that the stub signs with. Others may follow: those that signed
//! before, or will sign next.

use rustls::pki_types::CertificateDer;

use super::private_file;
use super::store::{self, Key};
use super::stub_dir::{StubKeys, StubKeysError};
use super::{authority, certificate};

/// What stands in the files of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFiles {
    agents: Vec<u8>,
    users: Vec<u8>,
}

/// The authorities of each, at least one, and none of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedAuthorities {
    /// They vouch for agents.
    pub agents: Vec<CertificateDer<'static>>,
    /// They vouch for users.
    pub users: Vec<CertificateDer<'static>>,
}

impl AuthorityFiles {
    /// Reads what is stored now. It may block.
    ///
    /// # Errors
    /// A file is missing or unreadable.
    pub fn read(keys: &StubKeys) -> Result<Self, StubKeysError> {
        let read = |name| store::require(&**keys.store(), &certificate_of(name));
        Ok(Self { agents: read(AGENTS)?, users: read(USERS)? })
    }

    /// Understands it.
    ///
    /// # Errors
    /// A file holds what is not the certificate of an authority, or lacks the one that `keys` sign with; or one authority
    /// stands in both.
    pub fn trusted(&self, keys: &StubKeys) -> Result<TrustedAuthorities, StubKeysError> {
        let agents = authorities(keys, AGENTS, &self.agents, keys.agent_authority().certificate_der())?;
        let users = authorities(keys, USERS, &self.users, keys.user_authority().certificate_der())?;
        match agents.iter().any(|agent| users.contains(agent)) {
            true => Err(StubKeysError::SharedAuthority),
            false => Ok(TrustedAuthorities { agents, users }),
        }
    }
}

const AGENTS: &str = "agent-ca";
const USERS: &str = "user-ca";

fn certificate_of(name: &str) -> Key {
    let [certificate, _key] = authority::keys_of(name);
    certificate
}

fn authorities(
    keys: &StubKeys,
    name: &str,
    text: &[u8],
    own: &CertificateDer<'static>,
) -> Result<Vec<CertificateDer<'static>>, StubKeysError> {
    let path = keys.store().place(&certificate_of(name));
    let found = private_file::certificates(&path, text)?;
    for authority in &found {
        if !certificate::parse(authority)?.is_ca() {
            return Err(StubKeysError::NotAnAuthority { path });
        }
    }
    match found.contains(own) {
        true => Ok(found),
        false => Err(StubKeysError::OwnAuthorityMissing { path }),
    }
}
