//! A small HTTPS server that answers JSON with JSON: a webhook, or an issuer of tokens.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A running server. Dropping it ends it.
pub struct HttpsService {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that it has to be verified with, PEM.
    pub certificate: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: AbortHandle,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The path.
    pub path: String,
    /// The body; null for none.
    pub body: Value,
}

type Handler = dyn Fn(&Asked) -> (u16, Value) + Send + Sync;

impl HttpsService {
    /// Starts one that answers with a status and a body.
    pub async fn start(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, acceptor) = (Arc::<Mutex<Vec<Asked>>>::default(), TlsAcceptor::from(Arc::new(config)));
        let (seen, answer) = (asked.clone(), Arc::<Handler>::from(Box::new(answer) as Box<Handler>));
        let accepting = tokio::spawn(async move {
            // Dropped with this task, it ends every connection.
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, acceptor.clone(), seen.clone(), answer.clone()));
            }
        });
        Self { address, certificate: certificate.pem(), asked, accepting: accepting.abort_handle() }
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Writes a kubeconfig that leads to `path` of it.
    pub fn kubeconfig(&self, folder: &Path, path: &str) -> PathBuf {
        let name = format!("webhook-{}.yaml", self.address.port());
        let authority = folder.join(format!("webhook-{}.pem", self.address.port()));
        std::fs::write(&authority, &self.certificate).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: webhook\n\
             contexts: [{{name: webhook, context: {{cluster: webhook, user: stub}}}}]\n\
             clusters: [{{name: webhook, cluster: {{server: '{}{path}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: stub, user: {{token: the-stubs-own}}}}]\n",
            self.url(),
            authority.display(),
        );
        std::fs::write(folder.join(&name), text).unwrap();
        folder.join(name)
    }
}

impl Drop for HttpsService {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, asked: Arc<Mutex<Vec<Asked>>>, answer: Arc<Handler>) {
    let Ok(socket) = acceptor.accept(socket).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let (asked, answer) = (asked.clone(), answer.clone());
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let request = Asked { path, body: serde_json::from_slice(&body).unwrap_or_default() };
            asked.lock().unwrap().push(request.clone());
            let (status, body) = answer(&request);
            let response = Response::builder().status(status).body(Full::new(Bytes::from(body.to_string())));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}
