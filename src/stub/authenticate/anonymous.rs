//! Users without credentials.

use super::{Authenticating, Authenticator, Credentials, Proof, Vouched, answered};
use crate::kube::{ANONYMOUS, UNAUTHENTICATED};
use crate::wire::Identity;

/// Calls whoever presents nothing at all `system:anonymous`, as the API server does
/// (`apiserver/pkg/authentication/request/anonymous`). Whoever presents something has to be known by it.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous;

impl Authenticator for Anonymous {
    fn name(&self) -> &'static str {
        "anonymous"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        answered(Ok(credentials.is_empty().then(|| Vouched {
            identity: Identity { groups: vec![UNAUTHENTICATED.to_owned()], ..Identity::named(ANONYMOUS) },
            by: Proof::Nothing,
            until: None,
        })))
    }
}
