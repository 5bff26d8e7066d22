//! How to reach an API server: kubeconfig files and the service account of a pod.
//!
//! The agent reads them ([`Kubeconfig`], [`Upstream::in_cluster`]), and the stub for its webhooks; the stub's operator
//! hands them out ([`render`]).

use std::fmt;
use std::path::{Path, PathBuf};

use http::Uri;

use crate::wire::BearerToken;

mod credential;
mod error;
mod read;
mod tls;
mod write;

pub use credential::{Credential, CredentialError, bearer};
pub use error::KubeconfigError;
pub use read::Kubeconfig;
pub use tls::{TlsConfigError, client_config};
pub use write::{KubeconfigSpec, UserCredentials, render};

/// Where an API server is and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The base of every request: `https` or `http`, a host, and maybe a path that goes before each request's own.
    pub server: Uri,
    /// Certificates, in PEM, that the server's must chain to. `None`: those of the operating system.
    pub certificate_authority: Option<Vec<u8>>,
    /// The name to expect in the server's certificate, where it is not the host.
    pub server_name: Option<String>,
    /// Whom to be.
    pub credentials: Credentials,
    /// Whether to accept any certificate. There is no `certificate_authority` then.
    pub insecure: bool,
}

/// How to prove whom to be to an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    Anonymous,
    /// By a token.
    Token(BearerToken),
    /// By a token in a file, which is to be read again from time to time: Kubernetes renews the token of a service account about
    /// every hour.
    TokenFile(PathBuf),
    /// By a client certificate. It goes before a token where a user has both, as at the API server.
    ClientCertificate(ClientCertificate),
}

/// A client certificate with its key. The key is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and any intermediates, in PEM.
    pub chain: Vec<u8>,
    /// The private key, in PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(..)")
    }
}

impl Upstream {
    /// The API server of the cluster this process runs in, as the service account of its pod
    /// (`InClusterConfig` in `client-go/rest/config.go`).
    pub fn in_cluster() -> Result<Self, KubeconfigError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST").ok_or(KubeconfigError::NotInCluster)?;
        let port = variable("KUBERNETES_SERVICE_PORT").ok_or(KubeconfigError::NotInCluster)?;
        in_cluster(&host, &port, Path::new("/var/run/secrets/kubernetes.io/serviceaccount"))
    }
}

fn in_cluster(host: &str, port: &str, service_account: &Path) -> Result<Upstream, KubeconfigError> {
    let token = service_account.join("token");
    // It is read again whenever it is needed; that it can be read at all is better known now.
    read_file(&token)?;
    Ok(Upstream {
        server: in_cluster_server(host, port)?,
        certificate_authority: Some(read_file(&service_account.join("ca.crt"))?),
        server_name: None,
        credentials: Credentials::TokenFile(token),
        insecure: false,
    })
}

fn in_cluster_server(host: &str, port: &str) -> Result<Uri, KubeconfigError> {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let uri = format!("https://{authority}/").parse::<Uri>();
    uri.map_err(|_| KubeconfigError::InvalidServiceAddress { host: host.to_owned(), port: port.to_owned() })
}

fn read_file(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    std::fs::read(path).map_err(|source| KubeconfigError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_service_account_leads_to_its_api_server() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "t").unwrap();
        std::fs::write(folder.path().join("ca.crt"), "ca").unwrap();
        let upstream = in_cluster("10.96.0.1", "443", folder.path()).unwrap();
        assert_eq!(upstream.server.to_string(), "https://10.96.0.1:443/");
        assert_eq!(upstream.certificate_authority.as_deref(), Some(b"ca".as_slice()));
        assert_eq!(upstream.credentials, Credentials::TokenFile(folder.path().join("token")));
        let ipv6 = in_cluster("fd00::1", "443", folder.path()).unwrap();
        assert_eq!(ipv6.server.host(), Some("[fd00::1]"));
        assert!(in_cluster("a b", "443", folder.path()).is_err());
    }

    #[test]
    fn a_missing_token_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = in_cluster("10.96.0.1", "443", folder.path()).unwrap_err();
        assert!(error.to_string().contains("token"), "{error}");
    }
}
