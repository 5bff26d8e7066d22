//! Where clients come in: HTTPS with HTTP/1.1 and HTTP/2 on a TCP port, and HTTP/3 on the UDP port of the same number.
//! Agents use both ports as well. Others can be added: see [`Front`].

pub(in crate::stub) mod http3;
pub(in crate::stub) mod tcp;
mod visit;

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

pub use super::limits::Stranger;
pub use visit::{Leave, Leaving, Visit};

use super::StubHandle;
use super::authenticate::ClientCertificate;
use super::drain::Drain;

use super::shared::Shared;
use crate::kube::Status;
use crate::pki::CertificateError;

/// A way in for clients: it accepts their connections, reads requests from them, and hands these to the stub.
///
/// A front added with [`StubBuilder::front`](super::StubBuilder::front) serves beside the stub's own. It may assume that the stub
/// runs for as long as it is asked to serve. It has to bound by itself what a connection may take before its first request is
/// handed over: handshakes, heads, slowness. From there on the stub bounds everything.
///
/// It goes on after [`Door::closing`], to tell those who come that they had better go elsewhere, until it is dropped; connections
/// that [`Door::spawn`] serves then have had their time. If it ends before that, the log says so, and the stub serves on without
/// it. A panic in it ends the stub, one in a connection that `spawn` serves ends that connection.
pub trait Front: Debug + Send + 'static {
    /// Serves whoever comes.
    fn run(self: Box<Self>, door: Door) -> Serving;
}

/// A front at work.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a front has of its stub. Clones are the same.
#[derive(Debug, Clone)]
pub struct Door(Arc<Shared>);

impl Door {
    pub(in crate::stub) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(in crate::stub) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// The stub, for fronts that know who their clients are: [`StubHandle::request`].
    pub fn stub(&self) -> StubHandle {
        StubHandle::new(self.0.clone())
    }

    /// A place for a new connection from `address`; `None` if it is to be closed at once, because there are too many from there
    /// (`connections_per_second` and `strangers_per_address` under `[limits]`).
    pub fn admit(&self, address: IpAddr) -> Option<Stranger> {
        self.0.limits.admit_connection(address)
    }

    /// Lets a client in that has a place, and who authenticates with each request, as at the stub's own ports. `server_name` is the
    /// host name that it asked TLS for; `chain` its certificates, if it presented some, of which TLS has to have verified that
    /// their key is the client's. Whether to trust them is asked for each request.
    ///
    /// # Errors
    ///
    /// The certificate cannot be read.
    pub fn let_in(
        &self,
        stranger: Stranger,
        address: SocketAddr,
        server_name: Option<String>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(Visit, Leaving), CertificateError> {
        let connection = ClientConnection::new(address, server_name, chain)?.coming_while(&self.0.drain);
        Ok(Visit::begin(self.0.clone(), Arc::new(connection), stranger))
    }

    /// Runs what serves one connection. A stop waits for it, within `limits.shutdown_timeout`, and for one that came when the
    /// stub had begun to close for five seconds after that.
    pub fn spawn(&self, serving: impl Future<Output = ()> + Send + 'static) {
        // A stop waits for the requests of those that came in time, and for the others to hear that they did not.
        match self.0.drain.is_closing() {
            true => drop(self.0.drain.latecomers().spawn(serving)),
            false => drop(self.0.tasks.spawn(serving)),
        }
    }

    /// Waits until the stub takes no more requests: connections are to be closed when their requests have ended.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.drain.closing()
    }
}

/// What is known of the connection that requests come over.
#[derive(Debug)]
pub(in crate::stub) struct ClientConnection {
    /// The client's address.
    pub address: SocketAddr,
    /// The host name the client asked TLS for (SNI).
    pub server_name: Option<String>,
    /// The client's certificate, if it presented one; TLS has verified it.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Set once a request on the connection was made by somebody known. Until then the client is a stranger.
    pub authenticated: SetOnce<()>,
    /// Of a connection that came too late, because the stub was about to stop: to be cancelled when its client knows.
    turned_away: Option<CancellationToken>,
}

impl ClientConnection {
    /// A connection on which nobody has authenticated yet. `chain` is what TLS has verified of the client.
    fn new(
        address: SocketAddr,
        server_name: Option<String>,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, CertificateError> {
        let certificate = ClientCertificate::of(chain)?.map(Arc::new);
        Ok(Self { address, server_name, certificate, authenticated: SetOnce::new(), turned_away: None })
    }

    /// The same, to be turned away if the stub takes no more requests.
    fn coming_while(self, drain: &Drain) -> Self {
        Self { turned_away: drain.is_closing().then(CancellationToken::new), ..self }
    }

    /// Whether requests may be made here.
    ///
    /// # Errors
    ///
    /// 429 on a connection that was turned away: nothing has happened, so clients make the request again, on another one.
    pub fn let_in(&self) -> Result<(), Status> {
        match &self.turned_away {
            None => Ok(()),
            Some(told) => {
                told.cancel();
                Err(Status::draining())
            }
        }
    }

    /// Waits until the connection has to be closed once its requests have ended.
    fn closing(&self, drain: &Drain) -> impl Future<Output = ()> + Send + use<> {
        let (told, drain) = (self.turned_away.clone(), drain.clone());
        async move {
            match told {
                Some(told) => told.cancelled().await,
                None => drain.closing().await,
            }
        }
    }
}
