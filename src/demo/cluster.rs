//! The sample API as a cluster: with TLS, an administrator, and an agent's ServiceAccount.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::api::{Rule, SampleApi};
use crate::kube::kubeconfig::{Credentials, KubeconfigSpec, Upstream, UserCredentials, render};
use crate::pki::{AuthorityError, CertificateAuthority, FileError, HostName, private_file};
use crate::wire::BearerToken;

/// The user that an agent in the sample cluster is.
const AGENT: &str = "system:serviceaccount:qtunnel:agent";

/// The group whose members may do everything in the namespaces of the sample cluster, as `kubectl` users are expected to.
pub(super) const USERS: &str = "qtunnel:users";

/// The group whose members may act as other users and groups (`kubectl --as`), where the agent's own policy lets them.
const IMPERSONATORS: &str = "qtunnel:impersonators";

/// A sample cluster on one address.
pub struct SampleCluster {
    api: SampleApi,
    authority: CertificateAuthority,
    tls: Arc<ServerConfig>,
    server: String,
    agent_token: String,
    admin_token: String,
}

/// Why there is no sample cluster.
#[derive(Debug, thiserror::Error)]
pub enum SampleClusterError {
    /// Its certificates.
    #[error("the sample cluster's certificates: {0}")]
    Authority(#[from] AuthorityError),
    /// Its key.
    #[error("the sample cluster's key: {0}")]
    Key(#[from] rcgen::Error),
    /// Its TLS.
    #[error("the sample cluster's TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Its files.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SampleCluster {
    /// A cluster that will be served at `address`.
    pub fn new(address: SocketAddr) -> Result<Self, SampleClusterError> {
        let now = SystemTime::now();
        let authority = CertificateAuthority::create("qtunnel sample cluster", now)?;
        let key = KeyPair::generate()?;
        let hosts = [HostName::Ip(address.ip())];
        let certificate = authority.issue_server(&hosts, &key, now)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (agent_token, admin_token) = (random_token(), random_token());
        let api = SampleApi::builder()
            .token(&agent_token, AGENT, &["system:serviceaccounts", "system:authenticated"])
            .impersonator(AGENT)
            .rule(Rule::for_user(AGENT).verbs(&["get"]).resources(&["namespaces"]).resource_names(&["kube-system"]))
            .token(&admin_token, "sample-admin", &["system:masters"])
            .rule(everything_for(USERS))
            .rule(Rule::for_group(IMPERSONATORS).verbs(&["impersonate"]).resources(&["users", "groups"]))
            .build();
        Ok(Self { api, authority, tls: Arc::new(tls), server: format!("https://{address}"), agent_token, admin_token })
    }

    /// The sample API itself.
    pub fn api(&self) -> &SampleApi {
        &self.api
    }

    /// How an agent reaches it.
    pub fn upstream(&self) -> Upstream {
        Upstream {
            // Made of an address above.
            server: self.server.parse().unwrap_or_default(),
            certificate_authority: Some(self.authority.certificate_pem().into_bytes()),
            server_name: None,
            credentials: BearerToken::new(&self.agent_token).map_or(Credentials::Anonymous, Credentials::Token),
            insecure: false,
        }
    }

    /// The token of an administrator of the cluster itself.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Writes `ca.pem`, `agent-token` and an administrator's `kubeconfig.yaml` into `directory`.
    pub fn write(&self, directory: &Path) -> Result<(), FileError> {
        private_file::create_directory(directory)?;
        private_file::write(&directory.join("ca.pem"), self.authority.certificate_pem().as_bytes())?;
        private_file::write(&directory.join("agent-token"), self.agent_token.as_bytes())?;
        private_file::write(&directory.join("kubeconfig.yaml"), self.kubeconfig().as_bytes())
    }

    /// Serves until `shutdown`.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        self.api.clone().serve(listener, Some(self.tls.clone()), shutdown).await
    }

    fn kubeconfig(&self) -> String {
        render(&KubeconfigSpec {
            cluster: "sample",
            server: &self.server,
            certificate_authority: Some(&self.authority.certificate_pem()),
            tls_server_name: None,
            user: "sample-admin",
            credentials: UserCredentials::Token(&self.admin_token),
            namespace: None,
        })
    }
}

fn everything_for(group: &str) -> Rule {
    Rule::for_group(group)
        .verbs(&["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"])
        .resources(&["*"])
        .paths(&["*"])
}

fn random_token() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}
