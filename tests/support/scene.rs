//! A stub and an agent before a scripted API server.

use super::http1::{Answer, Head};
use super::scripted_upstream::{Next, ScriptedUpstream, UpstreamConnection};
use super::tunnel::{Agent, AgentOptions, CLUSTER, Stub, StubOptions};
use super::user::User;

/// All of it, working together.
pub struct Scene {
    /// The API server.
    pub upstream: ScriptedUpstream,
    /// The public side.
    pub stub: Stub,
    /// The private side.
    pub agent: Agent,
    /// A user with a certificate.
    pub user: User,
}

/// The user of a [`Scene`].
pub const USER: &str = "alice";

/// Connections to the API server that the agent may keep for later: one for its health checks, and one more where a
/// request met a health check.
const KEPT_CONNECTIONS: usize = 2;

impl Scene {
    /// Starts all of it and waits until requests can pass to `handler`.
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Head, UpstreamConnection) -> F + Send + Sync + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        Self::start_with(StubOptions::default(), &[], handler).await
    }

    /// The same with settings of the stub and arguments for the agent.
    pub async fn start_with<H, F>(stub: StubOptions, agent: &[&str], handler: H) -> Self
    where
        H: Fn(Head, UpstreamConnection) -> F + Send + Sync + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        let upstream = ScriptedUpstream::start(handler).await;
        let stub = Stub::start(stub);
        let arguments = agent.iter().map(|argument| (*argument).to_owned()).collect();
        let options = AgentOptions { arguments, ..AgentOptions::default() };
        let agent = Agent::start(&stub, CLUSTER, &upstream.upstream(), options);
        stub.wait_for_agents(CLUSTER, 1);
        let user = User::of(&stub.kubeconfig(CLUSTER, USER, &["devs"]), stub.address);
        Self { upstream, stub, agent, user }
    }

    /// Waits until nothing is left of the requests so far: no open stream, and no connection to the API server but those
    /// that are kept for later.
    #[track_caller]
    pub fn wait_until_settled(&self) {
        self.stub.wait_until_idle(CLUSTER);
        self.upstream.wait_for_connections(KEPT_CONNECTIONS);
        self.upstream.check();
    }
}

impl UpstreamConnection {
    /// Sends a whole answer with a length, and is ready for the next request.
    pub async fn answer(mut self, status: &str, headers: &[(&str, &str)], body: &str) -> Next {
        let length = body.len().to_string();
        let headers = [headers, &[("Content-Length", length.as_str())]].concat();
        let mut bytes = Head::new(&format!("HTTP/1.1 {status}"), &headers).to_bytes();
        bytes.extend_from_slice(body.as_bytes());
        self.wire.write(&bytes).await.expect("an answer is sent");
        Some(self)
    }

    /// Sends bytes as they are.
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.write(bytes.as_ref()).await.expect("bytes are sent");
    }
}

impl Answer {
    /// Checks that this is a failure in the tunnel's own words, and gives its message.
    #[track_caller]
    pub fn expect_status(&self, code: u16, reason: Option<&str>) -> String {
        assert_eq!(self.head.status(), code, "{}", self.text());
        assert!(self.complete, "the answer is whole");
        let status = self.json();
        assert_eq!((&status["kind"], &status["status"]), (&"Status".into(), &"Failure".into()));
        assert_eq!(status["code"], code);
        assert_eq!(status["reason"].as_str(), reason);
        status["message"].as_str().expect("a message").to_owned()
    }

    /// Checks that clients send the request again by themselves, or that they do not.
    #[track_caller]
    pub fn expect_retry_after(&self, expected: Option<&str>) {
        assert_eq!(self.head.header("retry-after"), expected, "Retry-After of {}", self.text());
    }
}
