//! What every carrier promises, over real sockets on loopback.

mod contract;
mod quic_peers;
mod tcp_peers;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Connection, QuicDialer, QuicListener, QuicSettings, TcpDialer, TcpSettings, accepted_over_tcp};
use crate::pki::{
    AgentCredentials, CertificateAuthority, ServerCredentials, tcp_tunnel_client_config, tcp_tunnel_server_config,
    tunnel_client_config, tunnel_server_config,
};
use crate::wire::Carrier;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

const HOST: &str = "localhost";

/// A connection's two ends.
struct Pair {
    agent: Connection,
    stub: Connection,
    /// Kept so that it listens.
    _listener: Option<QuicListener>,
}

/// Keys of both sides.
struct Keys {
    server: ServerCredentials,
    agents: CertificateAuthority,
    agent: AgentCredentials,
}

impl Keys {
    fn new() -> Self {
        let now = SystemTime::now();
        let [servers, agents] = ["servers", "agents"].map(|name| CertificateAuthority::create(name, now).unwrap());
        let key = KeyPair::generate().unwrap();
        let leaf = servers.issue_server(&[HOST.parse().unwrap()], &key, now).unwrap();
        let chain = vec![leaf, servers.certificate_der().clone()];
        let server = ServerCredentials::new(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let identity = "qtunnel://prod/agent/a1".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let certificate = agents.issue_agent(request.der(), &identity, hour, now).unwrap();
        let agent = AgentCredentials::new(vec![certificate], key.into(), servers.certificate_der().clone()).unwrap();
        Self { server, agents, agent }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let authorities = std::slice::from_ref(self.agents.certificate_der());
        TlsAcceptor::from(Arc::new(tcp_tunnel_server_config(&self.server, authorities).unwrap()))
    }

    fn tcp_dialer(&self, settings: &TcpSettings) -> TcpDialer {
        TcpDialer::new(Arc::new(tcp_tunnel_client_config(&self.agent).unwrap()), settings.clone())
    }
}

async fn pair(carrier: Carrier) -> Pair {
    pair_with(carrier, &QuicSettings::default()).await
}

async fn pair_with(carrier: Carrier, settings: &QuicSettings) -> Pair {
    let connecting = async {
        match carrier {
            Carrier::Quic => quic_pair(settings).await,
            Carrier::Tcp => tcp_pair(&TcpSettings::from(settings)).await,
        }
    };
    let pair = timeout(PATIENCE, connecting).await.expect("a connection in time");
    pair.stub.trust();
    pair
}

async fn quic_pair(settings: &QuicSettings) -> Pair {
    let keys = Keys::new();
    let authorities = std::slice::from_ref(keys.agents.certificate_der());
    let tls = Arc::new(tunnel_server_config(&keys.server, authorities).unwrap());
    let listener = QuicListener::bind(any_port(), tls, settings).unwrap();
    let address = listener.local_address().unwrap();
    let dialer = QuicDialer::new(Arc::new(tunnel_client_config(&keys.agent).unwrap()), settings.clone()).unwrap();
    let accepting = async { listener.accept().await.unwrap().handshake().await.unwrap().into_tunnel() };
    let (agent, stub) = tokio::join!(dialer.dial(address, HOST), accepting);
    Pair { agent: agent.unwrap(), stub, _listener: Some(listener) }
}

async fn tcp_pair(settings: &TcpSettings) -> Pair {
    let keys = Keys::new();
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialer = keys.tcp_dialer(settings);
    let accepting = async {
        let (socket, _) = listener.accept().await.unwrap();
        accepted_over_tcp(keys.acceptor().accept(socket).await.unwrap(), settings).unwrap()
    };
    let (agent, stub) = tokio::join!(dialer.dial(address, HOST), accepting);
    Pair { agent: agent.unwrap(), stub, _listener: None }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
