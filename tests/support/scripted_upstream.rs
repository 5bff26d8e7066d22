//! An API server that does what a test wants, byte by byte: plain HTTP/1.1 over TCP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::eventually;
use super::http1::{Head, Wire};
use super::tunnel::Upstream;

/// The path of the agent's health checks, which every scripted API server answers by itself.
const READYZ: &str = "/readyz";

/// Where the agent asks which cluster it is. A scripted API server does not tell.
const KUBE_SYSTEM: &str = "/api/v1/namespaces/kube-system";

/// A running scripted API server. Dropping it closes everything.
pub struct ScriptedUpstream {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
    token_file: tempfile::NamedTempFile,
}

/// What the agent has to authenticate with.
pub const AGENT_TOKEN: &str = "the-agents-own-token";

#[derive(Default)]
struct State {
    open: AtomicUsize,
    accepted: AtomicUsize,
    unready: AtomicBool,
    failures: Mutex<Vec<String>>,
}

/// A connection to a scripted API server.
pub struct UpstreamConnection {
    /// The bytes.
    pub wire: Wire<TcpStream>,
    _counted: Counted,
}

impl UpstreamConnection {
    /// Ends it with RST.
    pub fn reset(self) {
        reset_on_drop(&self.wire.socket);
    }
}

/// Makes dropping the socket an RST.
pub fn reset_on_drop(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("a socket option");
}

/// What a handler gives back to have the connection take the next request; `None` if it is used up.
pub type Next = Option<UpstreamConnection>;

impl ScriptedUpstream {
    /// Listens, and lets `handler` take each request with the connection it came over.
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Head, UpstreamConnection) -> F + Send + Sync + 'static,
        F: Future<Output = Next> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let accepting = tokio::spawn(accept(listener, state.clone(), Arc::new(handler))).abort_handle();
        let token_file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token_file.path(), AGENT_TOKEN).expect("a file");
        Self { address, state, accepting, token_file }
    }

    /// How an agent reaches it.
    pub fn upstream(&self) -> Upstream {
        Upstream {
            url: format!("http://{}", self.address),
            ca: None,
            token_file: Some(self.token_file.path().to_owned()),
        }
    }

    /// Connections that are open now, those of health checks among them.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn accepted_connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Waits until no more than `count` connections are open.
    pub fn wait_for_connections(&self, count: usize) {
        eventually(&format!("at most {count} connections to the API server"), || {
            (self.open_connections() <= count).then_some(())
        });
    }

    /// What health checks are told from now on.
    pub fn set_ready(&self, ready: bool) {
        self.state.unready.store(!ready, Ordering::SeqCst);
    }

    /// Panics if a handler has panicked, with its words.
    #[track_caller]
    pub fn check(&self) {
        let failures = self.state.failures.lock().expect("no panic while it is locked");
        assert!(failures.is_empty(), "at the API server: {}", failures.join("; "));
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.accepting.abort();
        if !std::thread::panicking() {
            self.check();
        }
    }
}

async fn accept<H, F>(listener: TcpListener, state: Arc<State>, handler: Arc<H>)
where
    H: Fn(Head, UpstreamConnection) -> F + Send + Sync + 'static,
    F: Future<Output = Next> + Send + 'static,
{
    // Dropped, and everything in it ended, when the server is.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        socket.set_nodelay(true).expect("a socket option");
        state.accepted.fetch_add(1, Ordering::SeqCst);
        let connection = UpstreamConnection { wire: Wire::new(socket), _counted: Counted::new(&state) };
        let (state, handler) = (state.clone(), handler.clone());
        connections.spawn(async move {
            let served = std::panic::AssertUnwindSafe(serve(connection, &state, &*handler)).catch_unwind().await;
            if let Err(panic) = served {
                state.failures.lock().expect("no panic while it is locked").push(words_of(&*panic));
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<H, F>(mut connection: UpstreamConnection, state: &State, handler: &H)
where
    H: Fn(Head, UpstreamConnection) -> F,
    F: Future<Output = Next>,
{
    // A connection that breaks between two requests is nothing to the test.
    while let Ok(Some(head)) = connection.wire.head().await {
        let own = match head.target() {
            READYZ if state.unready.load(Ordering::SeqCst) => Some("503 Service Unavailable"),
            READYZ => Some("200 OK"),
            // No user's request comes without one.
            KUBE_SYSTEM if head.header("impersonate-user").is_none() => Some("403 Forbidden"),
            _ => None,
        };
        if let Some(status) = own {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
            if connection.wire.write(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        match handler(head, connection).await {
            Some(next) => connection = next,
            None => return,
        }
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// Counts an open connection for as long as it lives.
struct Counted(Arc<State>);

impl Counted {
    fn new(state: &Arc<State>) -> Self {
        state.open.fetch_add(1, Ordering::SeqCst);
        Self(state.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
