//! Static bearer tokens from a file.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Authenticating, Authenticator, Credentials, Proof, Vouched, answered};
use crate::kube::StaticTokens;
use crate::stub::reload::{Followed, Reload};
use crate::stub::text_file::{TextFile, TextFileError};

/// Knows the bearers of the tokens in a file, in the format of kube-apiserver's `--token-auth-file`. The file is read again
/// when it changes.
#[derive(Debug, Clone)]
pub struct TokenFile(Arc<Followed<TextFile<StaticTokens>>>);

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or one of its lines cannot be used.
    pub fn load(path: &Path) -> Result<Self, TextFileError> {
        let parse = |text: &str| StaticTokens::parse(text).map_err(|error| error.to_string());
        Followed::load(TextFile::new(path, "token", parse)).map(|file| Self(Arc::new(file)))
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.0.clone()
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
