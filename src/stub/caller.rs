//! Who makes a request, and where it goes: of a client by what it presents, of the stub's own program by its word.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::HeaderMap;
use http::request::Parts;

use super::authenticate::{Authenticator, Credentials, NotVouched, Proof, Vouched};
use super::front::ClientConnection;
use super::record::RequestRecord;
use super::route::Route;
use super::shared::Shared;
use crate::kube::{Status, requested_upgrade, take_bearer_token};
use crate::wire::{BearerToken, ClusterId, Identity};

/// Where a request comes from.
pub enum Caller<'a> {
    /// A client's connection.
    Client(&'a ClientConnection),
    /// The program that the stub is a part of.
    Program(Errand<'a>),
}

/// In whose name, and to which cluster, a program makes a request whose path is the one there.
#[derive(Debug)]
pub struct Errand<'a> {
    /// The user.
    pub identity: Identity,
    /// The cluster.
    pub cluster: &'a ClusterId,
}

/// Who makes a request, and where it goes.
pub struct Asked {
    /// Where it goes.
    pub route: Route,
    /// Who makes it.
    pub identity: Identity,
    /// What that is known by; `None` where no client has presented any.
    pub credentials: Option<Arc<Credentials>>,
    /// The user's own token for the cluster.
    pub cluster_token: Option<BearerToken>,
    /// The client's address.
    pub client_address: Option<IpAddr>,
}

impl Caller<'_> {
    /// Whether the stub still takes requests from here.
    ///
    /// # Errors
    /// 429 when it is about to stop.
    pub fn let_in(&self, shared: &Shared) -> Result<(), Status> {
        match self {
            Self::Client(connection) => connection.let_in(),
            Self::Program(_) if shared.drain.is_closing() => Err(Status::draining()),
            Self::Program(_) => Ok(()),
        }
    }

    /// Who makes the request of `parts`, and where it goes. The record learns it as it becomes known.
    ///
    /// # Errors
    /// Nobody known is asking, or what is asked for cannot be understood.
    pub async fn asks(self, shared: &Shared, parts: &mut Parts, record: &mut RequestRecord) -> Result<Asked, Status> {
        match self {
            Self::Client(connection) => asked_by_client(shared, connection, parts, record).await,
            Self::Program(errand) => asked_by_program(errand, parts, record),
        }
    }
}

async fn asked_by_client(
    shared: &Shared,
    connection: &ClientConnection,
    parts: &mut Parts,
    record: &mut RequestRecord,
) -> Result<Asked, Status> {
    let credentials = Arc::new(credentials(connection, &mut parts.headers)?);
    let user = authenticate(&*shared.authenticator, &credentials)
        .await
        .map_err(|status| shared.limits.unauthenticated(connection.address.ip(), status))?;
    record.set_user(&user.identity);
    // Set already by an earlier request on the same connection.
    let _ = connection.authenticated.set(());
    let route = Route::of(parts, connection.server_name.as_deref(), shared.config.base_domain.as_deref())?;
    record.set_target(&route.cluster, route.target.as_str());
    Ok(Asked {
        route,
        identity: user.identity,
        cluster_token: cluster_token(&credentials, user.by),
        credentials: Some(credentials),
        client_address: Some(connection.address.ip().to_canonical()),
    })
}

fn asked_by_program(errand: Errand<'_>, parts: &Parts, record: &mut RequestRecord) -> Result<Asked, Status> {
    let Errand { identity, cluster } = errand;
    record.set_user(&identity);
    let route = Route::to(cluster.clone(), parts)?;
    record.set_target(&route.cluster, route.target.as_str());
    let upgrade = requested_upgrade(&parts.headers, parts.version);
    if upgrade.map_err(|error| Status::bad_request(error.to_string()))?.is_some() {
        return Err(Status::bad_request("a program cannot upgrade a request: that needs a client's connection"));
    }
    Ok(Asked { route, identity, credentials: None, cluster_token: None, client_address: None })
}

/// What the client authenticates with. The token is taken out of the headers.
fn credentials(connection: &ClientConnection, headers: &mut HeaderMap) -> Result<Credentials, Status> {
    let token = take_bearer_token(headers).map_err(|error| Status::bad_request(error.to_string()))?;
    Ok(Credentials::new(connection.certificate.clone(), token))
}

async fn authenticate(authenticator: &dyn Authenticator, credentials: &Credentials) -> Result<Vouched, Status> {
    match authenticator.authenticate(credentials).await {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Status::unauthorized()),
        Err(NotVouched::Refused(why)) => {
            // Whoever it is need not know.
            tracing::info!("credentials were refused: {why}");
            Err(Status::unauthorized())
        }
        Err(NotVouched::CannotTell(why)) => {
            tracing::warn!("a user could not be authenticated: {why}");
            Err(Status::not_authenticated_now())
        }
    }
}

/// A token that did not authenticate: the user's own for the cluster. Only pass-through agents ever get it.
fn cluster_token(credentials: &Credentials, proof: Proof) -> Option<BearerToken> {
    credentials.token().filter(|_| proof == Proof::Certificate).cloned()
}
