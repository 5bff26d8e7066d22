//! Real TLS handshakes: who is let in where.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, Error, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    ServerConnection, SideData, SupportedProtocolVersion,
};

use super::certificate::{self, AgentIdentity};
use super::credentials::{AgentCredentials, ServerCredentials};
use super::tls::{
    client_verifier, enrollment_client_config, front_server_config, provider, roots, tunnel_client_config,
    tunnel_server_config,
};
use super::{AgentKey, CertificateAuthority, CertificateFingerprint, UserCertificate, find_pinned};
use crate::wire::{ALPN_ENROLLMENT, ALPN_TUNNEL};

const HOUR: Duration = Duration::from_secs(3600);
const HOST: &str = "stub.example.com";
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A stub with its three authorities.
struct Stub {
    servers: CertificateAuthority,
    agents: CertificateAuthority,
    users: CertificateAuthority,
    credentials: ServerCredentials,
    now: SystemTime,
}

impl Stub {
    fn new() -> Self {
        let now = SystemTime::now();
        let [servers, agents, users] =
            ["servers", "agents", "users"].map(|name| CertificateAuthority::create(name, now).unwrap());
        let (chain, key) = server_certificate(&servers, now);
        let credentials = ServerCredentials::new(chain, key).unwrap();
        Self { servers, agents, users, credentials, now }
    }

    fn front(&self) -> ServerConfig {
        front_server_config(
            &self.credentials,
            client_verifier(&[self.users.certificate_der().clone()], Vec::new()).unwrap(),
        )
        .unwrap()
    }

    fn tunnel(&self) -> ServerConfig {
        tunnel_server_config(&self.credentials, &[self.agents.certificate_der().clone()]).unwrap()
    }

    /// An agent's credentials from `authority`, valid for an hour from `from` on.
    fn agent_of(&self, authority: &CertificateAuthority, from: SystemTime) -> AgentCredentials {
        let key = KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let certificate = authority.issue_agent(request.der(), &identity(), HOUR, from).unwrap();
        AgentCredentials::new(vec![certificate], private_key(&key), self.servers.certificate_der().clone()).unwrap()
    }

    fn agent(&self) -> AgentCredentials {
        self.agent_of(&self.agents, self.now)
    }

    fn user_from(&self, from: SystemTime) -> UserCertificate {
        self.users.issue_user("eve", &["dev".to_owned(), "ops".to_owned()], HOUR, from).unwrap()
    }

    /// As kubectl connects: `certificate` is what its kubeconfig has, if anything.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], certificate: Option<Keyed>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots(&[self.servers.certificate_der().clone()]).unwrap());
        let mut config = match certificate {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

type Keyed = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity() -> AgentIdentity {
    "qtunnel://prod/agent/a1".parse().unwrap()
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

fn server_certificate(authority: &CertificateAuthority, from: SystemTime) -> Keyed {
    let key = KeyPair::generate().unwrap();
    let leaf = authority.issue_server(&[HOST.parse().unwrap()], &key, from).unwrap();
    (vec![leaf, authority.certificate_der().clone()], private_key(&key))
}

fn user_keys(user: UserCertificate) -> Keyed {
    (vec![user.certificate], user.key.into())
}

fn agent_keys(agent: &AgentCredentials) -> Keyed {
    (agent.chain().to_vec(), agent.key().clone_key())
}

/// Two ends of a connection in memory, after their handshake.
#[derive(Debug)]
struct Connected {
    server: ServerConnection,
    client: ClientConnection,
}

/// The handshake, or what the side said that broke it off.
fn connect_to(host: &str, server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Connected, Error> {
    let mut server = ServerConnection::new(server.clone())?;
    let mut client = ClientConnection::new(client.clone(), ServerName::try_from(host.to_owned()).unwrap())?;
    while client.wants_write() || server.wants_write() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Connected { server, client })
}

fn connect(server: ServerConfig, client: ClientConfig) -> Result<Connected, Error> {
    connect_to(HOST, &server.into(), &client.into())
}

fn pass<A: SideData, B: SideData>(
    from: &mut impl std::ops::DerefMut<Target = ConnectionCommon<A>>,
    to: &mut impl std::ops::DerefMut<Target = ConnectionCommon<B>>,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn assert_certificate_refused<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
    assert!(format!("{error:?}").contains(expected), "{error:?}");
}

#[test]
fn a_user_is_recognized_at_the_front_with_either_version_of_tls() {
    let stub = Stub::new();
    for (versions, expected) in [(TLS13, ProtocolVersion::TLSv1_3), (TLS12, ProtocolVersion::TLSv1_2)] {
        let client = stub.client(versions, Some(user_keys(stub.user_from(stub.now))));
        let connected = connect(stub.front(), client).unwrap();
        assert_eq!(connected.server.protocol_version(), Some(expected));
        assert_eq!(connected.client.alpn_protocol(), Some(b"h2".as_slice()));
        let user = certificate::user_identity(&connected.server.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!((user.user.as_str(), user.groups), ("eve", vec!["dev".to_owned(), "ops".to_owned()]));
    }
}

#[test]
fn a_client_without_a_certificate_may_authenticate_in_another_way() {
    let stub = Stub::new();
    let connected = connect(stub.front(), stub.client(TLS13, None)).unwrap();
    assert!(connected.server.peer_certificates().is_none());
}

#[test]
fn an_agent_is_no_user() {
    let stub = Stub::new();
    for versions in [TLS13, TLS12] {
        let result = connect(stub.front(), stub.client(versions, Some(agent_keys(&stub.agent()))));
        assert_certificate_refused(result, "UnknownIssuer");
    }
}

#[test]
fn a_user_is_no_agent() {
    let stub = Stub::new();
    let mut client = stub.client(TLS13, Some(user_keys(stub.user_from(stub.now))));
    client.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    assert_certificate_refused(connect(stub.tunnel(), client), "UnknownIssuer");
}

#[test]
fn an_agent_of_another_stub_is_refused() {
    let (stub, other) = (Stub::new(), Stub::new());
    let stranger = stub.agent_of(&other.agents, stub.now);
    // The authorities have the same name, so only the signature tells them apart.
    assert_certificate_refused(connect(stub.tunnel(), tunnel_client_config(&stranger).unwrap()), "BadSignature");
}

#[test]
fn a_server_certificate_opens_no_door_to_a_client() {
    let stub = Stub::new();
    let keys = server_certificate(&stub.users, stub.now);
    assert_certificate_refused(connect(stub.front(), stub.client(TLS13, Some(keys))), "InvalidPurpose");
}

#[test]
fn a_clients_certificate_makes_no_server() {
    let stub = Stub::new();
    let agent = stub.agent_of(&stub.servers, stub.now);
    let (mut chain, key) = agent_keys(&agent);
    chain.push(stub.servers.certificate_der().clone());
    stub.credentials.replace(chain, key).unwrap();
    assert_certificate_refused(connect(stub.front(), stub.client(TLS13, None)), "InvalidPurpose");
    let enrolling = enrollment_client_config(stub.servers.fingerprint()).unwrap();
    assert_certificate_refused(connect(stub.tunnel(), enrolling), "InvalidPurpose");
}

#[test]
fn expired_certificates_are_refused_on_every_side() {
    let stub = Stub::new();
    let past = stub.now - 2 * HOUR;
    let user = stub.client(TLS13, Some(user_keys(stub.user_from(past))));
    assert_certificate_refused(connect(stub.front(), user), "Expired");
    let agent = stub.agent_of(&stub.agents, past);
    assert_certificate_refused(connect(stub.tunnel(), tunnel_client_config(&agent).unwrap()), "Expired");
    let (chain, key) = server_certificate(&stub.servers, stub.now - 400 * 24 * HOUR);
    stub.credentials.replace(chain, key).unwrap();
    assert_certificate_refused(connect(stub.tunnel(), tunnel_client_config(&stub.agent()).unwrap()), "Expired");
    assert_certificate_refused(
        connect(stub.tunnel(), enrollment_client_config(stub.servers.fingerprint()).unwrap()),
        "Expired",
    );
}

#[test]
fn an_agent_is_recognized_at_the_tunnel_with_a_post_quantum_key_exchange() {
    let stub = Stub::new();
    let connected = connect(stub.tunnel(), tunnel_client_config(&stub.agent()).unwrap()).unwrap();
    assert_eq!(connected.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connected.server.alpn_protocol(), Some(ALPN_TUNNEL));
    let presented = &connected.server.peer_certificates().unwrap()[0];
    assert_eq!(AgentIdentity::from_certificate(presented).unwrap(), identity());
    let group = connected.client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connected.client.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn every_configuration_prefers_the_post_quantum_key_exchange() {
    let stub = Stub::new();
    let front = connect(stub.front(), stub.client(TLS13, None)).unwrap();
    let enrolling = enrollment_client_config(stub.servers.fingerprint()).unwrap();
    let enrolled = connect(stub.tunnel(), enrolling).unwrap();
    for connected in [front, enrolled] {
        let group = connected.server.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    }
}

#[test]
fn the_tunnel_speaks_its_own_protocols_over_tls_13_only() {
    let stub = Stub::new();
    let web = connect(stub.tunnel(), stub.client(TLS13, None)).unwrap_err();
    assert_eq!(web, Error::NoApplicationProtocol);
    let mut old = stub.client(TLS12, None);
    old.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    assert!(matches!(connect(stub.tunnel(), old), Err(Error::PeerIncompatible(_))));
}

#[test]
fn an_agent_with_a_join_token_learns_its_authority_from_the_stub() {
    let stub = Stub::new();
    let fingerprint = stub.servers.fingerprint();
    let connected = connect(stub.tunnel(), enrollment_client_config(fingerprint).unwrap()).unwrap();
    assert_eq!(connected.server.alpn_protocol(), Some(ALPN_ENROLLMENT));
    assert!(connected.server.peer_certificates().is_none());
    let chain = connected.client.peer_certificates().unwrap();
    assert_eq!(find_pinned(chain, &fingerprint), Some(stub.servers.certificate_der()));
}

#[test]
fn a_stub_with_another_fingerprint_is_refused_in_clear_words() {
    let stub = Stub::new();
    let wrong = CertificateFingerprint::from_bytes([0; 32]);
    let error = connect(stub.tunnel(), enrollment_client_config(wrong).unwrap()).unwrap_err();
    assert!(error.to_string().contains("does not match the fingerprint 00000000"), "{error}");
}

#[test]
fn an_impostor_that_shows_the_pinned_authority_is_refused() {
    let stub = Stub::new();
    let impostor = CertificateAuthority::create("servers", stub.now).unwrap();
    let (mut chain, key) = server_certificate(&impostor, stub.now);
    chain.push(stub.servers.certificate_der().clone());
    stub.credentials.replace(chain, key).unwrap();
    let enrolling = enrollment_client_config(stub.servers.fingerprint()).unwrap();
    assert!(matches!(connect(stub.tunnel(), enrolling), Err(Error::InvalidCertificate(_))));
}

#[test]
fn an_enrolling_agent_checks_the_name_that_it_dialled() {
    let stub = Stub::new();
    let enrolling = enrollment_client_config(stub.servers.fingerprint()).unwrap();
    let result = connect_to("other.example.com", &stub.tunnel().into(), &enrolling.into());
    assert_certificate_refused(result, "NotValidForName");
}

#[test]
fn a_renewed_server_certificate_is_presented_without_a_restart() {
    let stub = Stub::new();
    let (server, client) = (Arc::new(stub.front()), stub.client(TLS13, None));
    let (chain, key) = server_certificate(&stub.servers, stub.now);
    stub.credentials.replace(chain.clone(), key).unwrap();
    let connected = connect_to(HOST, &server, &client.into()).unwrap();
    assert_eq!(connected.client.peer_certificates().unwrap(), chain);

    let foreign_key = private_key(&KeyPair::generate().unwrap());
    assert!(stub.credentials.replace(chain.clone(), foreign_key).is_err());
    assert_eq!(stub.credentials.chain(), chain);
}

#[test]
fn a_client_of_the_front_resumes_and_is_still_recognized() {
    let stub = Stub::new();
    for versions in [TLS13, TLS12] {
        let server = Arc::new(stub.front());
        let client = Arc::new(stub.client(versions, Some(user_keys(stub.user_from(stub.now)))));
        connect_to(HOST, &server, &client).unwrap();
        let again = connect_to(HOST, &server, &client).unwrap();
        assert_eq!(again.server.handshake_kind(), Some(HandshakeKind::Resumed));
        let user = certificate::user_identity(&again.server.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!(user.user, "eve");
    }
}

#[test]
fn a_session_of_the_front_cannot_be_resumed_at_the_tunnel() {
    let stub = Stub::new();
    let mut client = stub.client(TLS13, None);
    client.alpn_protocols.push(ALPN_TUNNEL.to_vec());
    let client = Arc::new(client);
    connect_to(HOST, &Arc::new(stub.front()), &client).unwrap();
    let at_tunnel = connect_to(HOST, &Arc::new(stub.tunnel()), &client).unwrap();
    assert_ne!(at_tunnel.server.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn an_agent_resumes_its_tunnel_and_an_enrolment_never_does() {
    let stub = Stub::new();
    let server = Arc::new(stub.tunnel());
    let agent = Arc::new(tunnel_client_config(&stub.agent()).unwrap());
    connect_to(HOST, &server, &agent).unwrap();
    let again = connect_to(HOST, &server, &agent).unwrap();
    assert_eq!(again.server.handshake_kind(), Some(HandshakeKind::Resumed));
    let presented = &again.server.peer_certificates().unwrap()[0];
    assert_eq!(AgentIdentity::from_certificate(presented).unwrap(), identity());

    let enrolling = Arc::new(enrollment_client_config(stub.servers.fingerprint()).unwrap());
    connect_to(HOST, &server, &enrolling).unwrap();
    let again = connect_to(HOST, &server, &enrolling).unwrap();
    assert_eq!(again.server.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn early_data_of_an_agent_that_returns_is_accepted_only_once() {
    let stub = Stub::new();
    let server = Arc::new(stub.tunnel());
    let agent = Arc::new(tunnel_client_config(&stub.agent()).unwrap());
    connect_to(HOST, &server, &agent).unwrap();

    let name = ServerName::try_from(HOST).unwrap();
    let mut client = ClientConnection::new(agent, name).unwrap();
    client.early_data().unwrap().write_all(b"hello").unwrap();
    let mut flight = Vec::new();
    client.write_tls(&mut flight).unwrap();
    for expected in ["hello", ""] {
        let mut connection = ServerConnection::new(server.clone()).unwrap();
        connection.read_tls(&mut flight.as_slice()).unwrap();
        connection.process_new_packets().unwrap();
        let mut received = String::new();
        if let Some(mut early) = connection.early_data() {
            early.read_to_string(&mut received).unwrap();
        }
        assert_eq!(received, expected);
    }
}

#[test]
fn a_stub_without_an_authority_for_its_clients_does_not_start() {
    let stub = Stub::new();
    assert!(client_verifier(&[], Vec::new()).is_err());
    assert!(tunnel_server_config(&stub.credentials, &[]).is_err());
}

#[test]
fn a_new_agent_key_gets_a_certificate_that_opens_the_tunnel() {
    let (stub, root) = (Stub::new(), tempfile::tempdir().unwrap());
    let state = super::AgentState::open(root.path()).unwrap();
    let key = AgentKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let certificate = stub.agents.issue_agent(&request, &identity(), HOUR, stub.now).unwrap();
    state.store(&key, vec![certificate], stub.servers.certificate_der().clone()).unwrap();
    let agent = state.load().unwrap().unwrap();
    connect(stub.tunnel(), tunnel_client_config(&agent).unwrap()).unwrap();
}

#[test]
fn user_certificates_with_many_groups_satisfy_rustls() {
    let stub = Stub::new();
    let groups: Vec<_> = (0..100).map(|number| format!("group-{number}")).collect();
    let user = stub.users.issue_user("eve", &groups, HOUR, stub.now).unwrap();
    // Verifies the signature that was made after the subject was replaced.
    connect(stub.front(), stub.client(TLS13, Some(user_keys(user)))).unwrap();
}

/// The same over QUIC, with the library that carries the tunnel.
mod quic {
    use std::net::{Ipv4Addr, SocketAddr};

    use quinn::ConnectionError;
    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    type Chain = Vec<CertificateDer<'static>>;

    fn endpoint(stub: &Stub) -> quinn::Endpoint {
        let crypto = QuicServerConfig::try_from(stub.tunnel()).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        quinn::Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    /// The chain that the client presented to the server, or why the server refused; and what the client was told at the
    /// end. A client is done before the server has seen its certificate, so only the server's goodbye is a success.
    async fn dial(stub: &Stub, client: ClientConfig) -> (Result<Option<Chain>, String>, ConnectionError) {
        let server = endpoint(stub);
        let mut dialler = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let crypto = QuicClientConfig::try_from(client).unwrap();
        dialler.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let accept = async {
            let connection = server.accept().await.unwrap().await.map_err(|error| error.to_string())?;
            connection.close(0_u32.into(), b"goodbye");
            Ok(connection.peer_identity().map(|identity| *identity.downcast::<Chain>().unwrap()))
        };
        let connect = async {
            match dialler.connect(server.local_addr().unwrap(), HOST).unwrap().await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        timeout(DEADLINE, async { tokio::join!(accept, connect) }).await.unwrap()
    }

    #[tokio::test]
    async fn an_agent_connects_and_a_user_does_not() {
        let stub = Stub::new();
        let (server, client) = dial(&stub, tunnel_client_config(&stub.agent()).unwrap()).await;
        let chain = server.unwrap().unwrap();
        assert_eq!(AgentIdentity::from_certificate(&chain[0]).unwrap(), identity());
        assert!(matches!(client, ConnectionError::ApplicationClosed(_)), "{client}");

        let mut user = stub.client(TLS13, Some(user_keys(stub.user_from(stub.now))));
        user.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        let (server, client) = dial(&stub, user).await;
        assert!(server.unwrap_err().contains("UnknownIssuer"));
        assert!(matches!(client, ConnectionError::ConnectionClosed(_)), "{client}");
    }

    #[tokio::test]
    async fn an_enrolling_agent_says_that_the_fingerprint_is_wrong() {
        let stub = Stub::new();
        let right = enrollment_client_config(stub.servers.fingerprint()).unwrap();
        let (server, client) = dial(&stub, right).await;
        assert_eq!(server.unwrap(), None);
        assert!(matches!(client, ConnectionError::ApplicationClosed(_)), "{client}");

        let wrong = enrollment_client_config(CertificateFingerprint::from_bytes([0; 32])).unwrap();
        let (_, client) = dial(&stub, wrong).await;
        assert!(client.to_string().contains("does not match the fingerprint"), "{client}");
    }
}
