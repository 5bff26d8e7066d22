//! Several authenticators, one after the other.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Authenticating, Authenticator, Credentials, NotVouched, RevocationList, Vouched};

/// Asks authenticators in their order, and takes the first who vouches. One that refuses, or cannot tell, does not keep the
/// next from vouching (`apiserver/pkg/authentication/request/union`); if nobody vouches, its word is the chain's.
///
/// Whoever is on the revocation list is not vouched for, whoever vouches.
#[derive(Debug)]
pub struct Chain {
    authenticators: Vec<Arc<dyn Authenticator>>,
    revoked: Option<RevocationList>,
}

impl Chain {
    /// Asks these.
    pub fn new(authenticators: Vec<Arc<dyn Authenticator>>, revoked: Option<RevocationList>) -> Self {
        Self { authenticators, revoked }
    }

    async fn ask(&self, credentials: &Credentials) -> Result<Option<Vouched>, NotVouched> {
        let mut verdict = Ok(None);
        for authenticator in &self.authenticators {
            match authenticator.authenticate(credentials).await {
                Ok(None) => {}
                Ok(Some(vouched)) => return self.unless_revoked(credentials, vouched).map(Some),
                // To know later is worth more than a refusal now.
                Err(NotVouched::Refused(_)) if matches!(verdict, Err(NotVouched::CannotTell(_))) => {}
                Err(error) => verdict = Err(error),
            }
        }
        verdict
    }

    fn unless_revoked(&self, credentials: &Credentials, vouched: Vouched) -> Result<Vouched, NotVouched> {
        if let Some(revoked) = &self.revoked {
            revoked.check(credentials, &vouched)?;
        }
        Ok(vouched)
    }
}

impl Authenticator for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        Box::pin(self.ask(credentials))
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        let revoked = self.revoked.iter().map(RevocationList::changes);
        self.authenticators.iter().flat_map(|authenticator| authenticator.changes()).chain(revoked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Proof, answered};
    use super::*;
    use crate::wire::{BearerToken, Identity};

    /// Gives the same answer to everybody.
    #[derive(Debug)]
    struct Always(Result<Option<Vouched>, NotVouched>);

    impl Authenticator for Always {
        fn name(&self) -> &'static str {
            "always"
        }

        fn authenticate<'a>(&'a self, _credentials: &'a Credentials) -> Authenticating<'a> {
            answered(self.0.clone())
        }
    }

    fn vouched(user: &str) -> Result<Option<Vouched>, NotVouched> {
        Ok(Some(Vouched { identity: Identity::named(user), by: Proof::Token, until: None }))
    }

    fn refused() -> Result<Option<Vouched>, NotVouched> {
        Err(NotVouched::Refused("no".to_owned()))
    }

    fn cannot_tell() -> Result<Option<Vouched>, NotVouched> {
        Err(NotVouched::CannotTell("dead".to_owned()))
    }

    async fn ask(
        answers: Vec<Result<Option<Vouched>, NotVouched>>,
        revoked: Option<RevocationList>,
    ) -> Result<Option<Vouched>, NotVouched> {
        let authenticators = answers.into_iter().map(|answer| Arc::new(Always(answer)) as _).collect();
        let credentials = Credentials::new(None, BearerToken::new("t"));
        Chain::new(authenticators, revoked).authenticate(&credentials).await
    }

    #[tokio::test]
    async fn the_first_who_vouches_counts() {
        let answers = vec![Ok(None), refused(), cannot_tell(), vouched("alice"), vouched("bob")];
        assert_eq!(ask(answers, None).await, vouched("alice"));
    }

    #[tokio::test]
    async fn nobody_is_let_in_because_somebody_could_not_tell() {
        assert_eq!(ask(vec![cannot_tell(), refused(), Ok(None)], None).await, cannot_tell());
        assert_eq!(ask(vec![refused(), Ok(None)], None).await, refused());
        assert_eq!(ask(vec![], None).await, Ok(None));
    }

    #[tokio::test]
    async fn a_revoked_user_is_not_vouched_for_by_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revoked.txt");
        std::fs::write(&path, "user alice\n").unwrap();
        let list = RevocationList::load(&path).unwrap();
        assert!(ask(vec![vouched("alice"), vouched("bob")], Some(list.clone())).await.is_err());
        assert_eq!(ask(vec![vouched("bob")], Some(list)).await, vouched("bob"));
    }
}
