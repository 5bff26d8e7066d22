//! Where clients come in: HTTPS with HTTP/1.1 and HTTP/2 on a TCP port, and HTTP/3 on the UDP port of the same number.
//! Agents use both ports as well.

pub mod http3;
pub mod tcp;

use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

use crate::kube::Status;
use crate::pki::{CertificateError, Validity, user_identity};
use crate::stub::drain::Drain;
use crate::wire::Identity;

/// What is known of the connection that requests come over.
#[derive(Debug)]
pub struct ClientConnection {
    /// The client's address.
    pub address: SocketAddr,
    /// The host name the client asked TLS for (SNI).
    pub server_name: Option<String>,
    /// The client's certificate, if it presented one; TLS has verified it.
    pub certificate: Option<ClientCertificate>,
    /// Set once a request on the connection was made by somebody known. Until then the client is a stranger.
    pub authenticated: SetOnce<()>,
    /// Of a connection that came too late, because the stub was about to stop: to be cancelled when its client knows.
    turned_away: Option<CancellationToken>,
}

/// A client's certificate, parsed once.
#[derive(Debug)]
pub struct ClientCertificate {
    /// Who it names.
    pub identity: Identity,
    /// When it is valid.
    pub validity: Validity,
}

impl ClientConnection {
    /// A connection on which nobody has authenticated yet. `chain` is what TLS has verified of the client.
    fn new(
        address: SocketAddr,
        server_name: Option<String>,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, CertificateError> {
        let certificate = match chain.first() {
            Some(certificate) => {
                Some(ClientCertificate { identity: user_identity(certificate)?, validity: Validity::of(certificate)? })
            }
            None => None,
        };
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
