//! Who users are.
//!
//! An [`Authenticator`] vouches for users by what they present; a [`Chain`] asks several in their configured order. Built in
//! are [`ClientCertificates`], [`TokenFile`], [`JwtAuthenticator`], [`TokenWebhook`] and [`Anonymous`].

mod anonymous;
mod build;
mod certificates;
mod chain;
mod credentials;
mod jwt;
mod names;
mod revocation;
mod token_file;
mod webhook;

use std::fmt::Debug;
use std::pin::Pin;
use std::time::SystemTime;

use tokio::sync::watch;

pub use anonymous::Anonymous;
pub use build::{Authentication, AuthenticationError};
pub use certificates::{CertificateFilesError, ClientCertificates, OwnAuthorities};
pub use chain::Chain;
pub use credentials::{ClientCertificate, CredentialKey, Credentials};
pub use jwt::JwtAuthenticator;
pub use names::SystemNames;
pub use revocation::RevocationList;
pub use token_file::TokenFile;
pub use webhook::{TokenWebhook, TokenWebhookError, TokenWebhookSettings};

pub use crate::stub::text_file::TextFileError;
use crate::wire::Identity;

/// Vouches for users.
///
/// It is asked about every request, so an answer that takes work should be remembered, by [`Credentials::key`] and never by
/// the secret itself, within a bound and not for long. It is asked again and again about requests that are open: at least
/// every few seconds, and at once after [`Authenticator::changes`] has counted. A request ends whose credentials are not
/// vouched for any more, or stand for somebody else.
///
/// It fails closed: with [`NotVouched::CannotTell`] a new request is answered with a 503 and goes nowhere, unless a later
/// authenticator vouches; requests that are open go on for a minute. The caller sets it no deadline; an authenticator that
/// asks somebody else has to bound the time that takes.
pub trait Authenticator: Debug + Send + Sync {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// Who presents these credentials; `None` where they are nothing that this authenticator knows of.
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a>;

    /// Count up whenever an earlier answer may not hold any more. None, the default: answers change at most by time.
    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        Vec::new()
    }
}

/// An answer on its way.
pub type Authenticating<'a> = Pin<Box<dyn Future<Output = Result<Option<Vouched>, NotVouched>> + Send + 'a>>;

/// A user who is vouched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Who it is. The group `system:authenticated` is not among the groups: everybody is in it who is not
    /// `system:unauthenticated`.
    pub identity: Identity,
    /// By what.
    pub by: Proof,
    /// Until when the credentials are good. Requests that are open end then. `None`: until somebody revokes them.
    pub until: Option<SystemTime>,
}

/// What a user was known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The certificate of the connection. A token beside it is the user's own for the cluster.
    Certificate,
    /// The bearer token of the request.
    Token,
    /// Nothing.
    Nothing,
}

/// Why an authenticator does not vouch for a user. No variant holds a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotVouched {
    /// The credentials are of its kind, and not good.
    #[error("{0}")]
    Refused(String),
    /// It cannot say at the moment.
    #[error("{0}")]
    CannotTell(String),
}

/// An answer that is there already.
fn answered<'a>(answer: Result<Option<Vouched>, NotVouched>) -> Authenticating<'a> {
    Box::pin(std::future::ready(answer))
}
