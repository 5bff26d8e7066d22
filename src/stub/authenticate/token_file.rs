//! Static bearer tokens from a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::{Authenticating, Authenticator, Credentials, Proof, Vouched, answered};
use crate::kube::StaticTokens;
use crate::stub::reload::{Followed, Reload, Source};

/// Knows the bearers of the tokens in a file, in the format of kube-apiserver's `--token-auth-file`. The file is read again
/// when it changes.
#[derive(Debug, Clone)]
pub struct TokenFile(Arc<Followed<File>>);

/// Why a token file cannot be used. It does not hold a token.
#[derive(Debug, thiserror::Error)]
#[error("the token file {}: {why}", path.display())]
pub struct TokenFileError {
    path: PathBuf,
    why: String,
}

#[derive(Debug)]
struct File(PathBuf);

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or one of its lines cannot be used.
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        Followed::load(File(path.to_owned())).map(|file| Self(Arc::new(file)))
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.0.clone()
    }
}

impl Source for File {
    type Content = String;
    type Value = StaticTokens;
    type Error = TokenFileError;

    fn name(&self) -> &'static str {
        "token"
    }

    fn read(&self) -> Result<String, TokenFileError> {
        std::fs::read_to_string(&self.0).map_err(|error| self.failed(&error))
    }

    fn build(&self, text: &String) -> Result<StaticTokens, TokenFileError> {
        StaticTokens::parse(text).map_err(|error| self.failed(&error))
    }
}

impl File {
    fn failed(&self, why: &dyn std::fmt::Display) -> TokenFileError {
        TokenFileError { path: self.0.clone(), why: why.to_string() }
    }
}

impl Authenticator for TokenFile {
    fn name(&self) -> &'static str {
        "token-file"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        let tokens = self.0.current();
        let identity = credentials.token_hash().and_then(|hash| tokens.identify(hash));
        answered(Ok(identity.map(|identity| Vouched { identity: identity.clone(), by: Proof::Token, until: None })))
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.0.changes()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::BearerToken;

    #[tokio::test]
    async fn a_token_that_is_taken_out_of_the_file_is_known_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.csv");
        std::fs::write(&path, "t1,alice,,\nt2,bob,,\n").unwrap();
        let tokens = TokenFile::load(&path).unwrap();
        let user = async |token| {
            let credentials = Credentials::new(None, BearerToken::new(token));
            tokens.authenticate(&credentials).await.unwrap().map(|vouched| vouched.identity.user)
        };
        assert_eq!(user("t1").await.unwrap(), "alice");
        std::fs::write(&path, "t2,bob,,\n").unwrap();
        tokens.file().check(true);
        assert_eq!((user("t1").await, user("t2").await.unwrap()), (None, "bob".to_owned()));
    }
}
