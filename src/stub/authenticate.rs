//! Who a user is.

use std::time::SystemTime;

use http::HeaderMap;

use super::front::ClientConnection;
use crate::kube::{StaticTokens, Status, take_bearer_token};
use crate::wire::{BearerToken, Identity};

/// Authenticates users: by client certificate, else by static bearer token.
#[derive(Debug, Default)]
pub struct Authenticator {
    tokens: StaticTokens,
}

/// An authenticated user.
#[derive(Debug)]
pub struct User {
    /// Who it is.
    pub identity: Identity,
    /// A bearer token that was sent but did not authenticate: the user's own for the cluster. Only pass-through agents
    /// ever get it.
    pub cluster_token: Option<BearerToken>,
}

impl Authenticator {
    /// Knows the users of `tokens`, and everyone with a certificate.
    pub fn new(tokens: StaticTokens) -> Self {
        Self { tokens }
    }

    /// Who makes a request. Takes every credential out of `headers`.
    ///
    /// # Errors
    ///
    /// 401 when nobody known asks.
    pub fn authenticate(&self, connection: &ClientConnection, headers: &mut HeaderMap) -> Result<User, Status> {
        let token = take_bearer_token(headers).map_err(|error| Status::bad_request(error.to_string()))?;
        if let Some(certificate) = &connection.certificate {
            // TLS looked at the dates when the connection was made, which may be days ago, or a resumption.
            return match certificate.validity.is_expired(SystemTime::now()) {
                false => Ok(User { identity: certificate.identity.clone(), cluster_token: token }),
                true => Err(Status::unauthorized()),
            };
        }
        let identity = token.as_ref().and_then(|token| self.tokens.identify(token));
        match identity {
            Some(identity) => Ok(User { identity: identity.clone(), cluster_token: None }),
            None => Err(Status::unauthorized()),
        }
    }
}
