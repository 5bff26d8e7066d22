//! An agent's tie to one stub: one connection, or several while it moves from one to a better one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::dial::{CarrierChoice, DialError, DialTls, Dialer, Dialled};
use super::presence::Presence;
use super::session::{Session, SessionEnd, greeting};
use super::target::Target;
use super::upstream::Health;
use super::{Agent, AgentError, is_expired, network};
use crate::carrier::Connection;
use crate::pki::{AgentCredentials, tcp_tunnel_client_config, tunnel_client_config};
use crate::wire::{Carrier, ErrorCode, Hello, Welcome};

/// How long a stub has to be suspect before the agent tries whether it answers on another connection.
const SUSPECT_FOR: Duration = Duration::from_secs(2);

/// Between such tries.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// How long an old connection has to answer once a new one does, before it is given up: several heartbeats.
const ANSWER_AGAIN: Duration = Duration::from_secs(3);

/// The same before new requests go elsewhere, which costs nothing that is open.
const ANSWER_BEFORE_MOVE: Duration = Duration::from_secs(1);

/// Between attempts to leave a stub that is about to stop: at most a second at first, so that its agents do not come as one
/// herd.
const FIRST_LEAVING_WAIT: Duration = Duration::from_secs(1);
const LONGEST_LEAVING_WAIT: Duration = Duration::from_secs(10);

/// How long sessions are used before new ones are fetched, give or take a quarter. Stubs keep them for a day.
const SESSION_AGE: Duration = Duration::from_secs(12 * 60 * 60);

/// What the links to all stubs share.
#[derive(Debug, Clone)]
pub struct LinkContext<'a> {
    /// The agent.
    pub agent: &'a Agent,
    /// To which stubs it is connected.
    pub presence: Presence,
    /// When it is time to stop.
    pub shutdown: CancellationToken,
    credentials: Arc<AgentCredentials>,
    /// Made once for the process, so that a stub tells a reconnect from another process.
    instance: u64,
    health: watch::Receiver<Health>,
}

impl<'a> LinkContext<'a> {
    /// Connects `agent` with `credentials`, or what they are renewed to.
    pub fn new(
        agent: &'a Agent,
        credentials: AgentCredentials,
        health: watch::Receiver<Health>,
        shutdown: CancellationToken,
    ) -> Self {
        let credentials = Arc::new(credentials);
        Self { agent, presence: Presence::default(), shutdown, credentials, instance: rand::random(), health }
    }

    /// The same for one link, which `stop` ends.
    pub fn for_link(&self, stop: CancellationToken) -> Self {
        Self { shutdown: stop, ..self.clone() }
    }
}

/// Connects an agent to one stub, again and again.
#[derive(Debug)]
pub struct Link<'a> {
    agent: &'a Agent,
    target: Target,
    presence: Presence,
    credentials: Arc<AgentCredentials>,
    /// Dials with these credentials. It has the sessions that were made with them, which others must not resume.
    dialer: Option<Arc<Dialer>>,
    instance: u64,
    health: watch::Receiver<Health>,
    shutdown: CancellationToken,
    /// Sessions on connections that a better one has replaced, while their last requests go on.
    replaced: JoinSet<SessionEnd>,
}

/// A session in a task of its own.
#[derive(Debug)]
struct Running {
    task: JoinHandle<SessionEnd>,
    tie: Tie,
    welcomed: oneshot::Receiver<()>,
}

/// What is known of a session from outside.
#[derive(Debug)]
struct Tie {
    connection: Connection,
    /// To be cancelled when another connection takes the new requests.
    replaced: CancellationToken,
    /// Cancelled when the stub is about to stop.
    told_to_leave: CancellationToken,
}

/// What is said first on a connection.
#[derive(Debug, Clone)]
struct Greeting {
    words: Bytes,
    /// The stubs it names.
    told: Vec<u64>,
}

/// A connection, and what has been said on it or is to be.
type Greeted = (Dialled, Greeting);

/// What takes the place of a connection.
enum Successor {
    /// A better connection to the same stub, and why it is better.
    Better(Greeted, &'static str),
    /// A connection to another stub, as this one is about to stop.
    Elsewhere(Greeted),
    /// None: the stub knows nothing of the old connection any more.
    Nothing,
}

impl<'a> Link<'a> {
    /// Connects to the stub at `target`.
    pub fn new(target: Target, context: LinkContext<'a>) -> Self {
        let LinkContext { agent, presence, shutdown, credentials, instance, health } = context;
        let (dialer, replaced) = (None, JoinSet::new());
        Self { agent, target, presence, credentials, dialer, instance, health, shutdown, replaced }
    }

    /// Connects once, and stays so for as long as it goes well. When there is a better connection to be had it moves there:
    /// new requests first, and those that are open end where they are.
    pub async fn run(&mut self) -> Result<SessionEnd, AgentError> {
        let dialer = self.dialer()?;
        if is_expired(&self.credentials) {
            return Err(AgentError::Expired);
        }
        let greeting = self.greeting()?;
        let mut current = match self.shutdown.clone().run_until_cancelled(dialer.dial(&greeting.words)).await {
            None => return Ok(SessionEnd::Stopped),
            // What is wrong now, a name that is unknown for instance, may be right later.
            Some(Err(error)) => return Ok(error.into()),
            Some(Ok(dialled)) => self.start((dialled, greeting), dialer),
        };
        loop {
            let successor = tokio::select! {
                end = &mut current.task => return Ok(ended(end)),
                successor = self.successor(&current.tie) => successor?,
            };
            let (greeted, why) = match successor {
                Successor::Better(greeted, why) => (greeted, Some(why)),
                Successor::Elsewhere(greeted) => (greeted, None),
                Successor::Nothing => {
                    current.tie.connection.close(ErrorCode::NoError, "the agent has given the connection up");
                    return Ok(SessionEnd::Abandoned);
                }
            };
            let dialer = self.dialer()?;
            let mut next = self.start(greeted, dialer);
            if (&mut next.welcomed).await.is_err() {
                tracing::debug!("the stub did not take a new connection: {}", ended((&mut next.task).await));
                continue;
            }
            match why {
                Some(why) => {
                    tracing::info!(stub = %self.target, "{why}; open requests end where they are");
                    current.tie.replaced.cancel();
                }
                // It is the stub that ends the old connection: until then it may still have requests.
                None => tracing::info!(stub = %self.target, "connected to another stub before this one stops"),
            }
            while self.replaced.try_join_next().is_some() {}
            let mut left = std::mem::replace(&mut current, next);
            self.replaced.spawn(async move { ended((&mut left.task).await) });
        }
    }

    /// Waits for the last requests on connections that have been replaced. They end in time only at a shutdown.
    pub async fn wait_for_replaced(mut self) {
        while self.replaced.join_next().await.is_some() {}
    }

    /// Waits until there is something better than the connection of `tie`.
    async fn successor(&mut self, tie: &Tie) -> Result<Successor, AgentError> {
        let carrier = self.agent.config.carrier.clone();
        let may_move_to_quic = tie.connection.carrier() == Carrier::Tcp && carrier.choice == CarrierChoice::Auto;
        let mut leaving = Backoff::new(FIRST_LEAVING_WAIT, LONGEST_LEAVING_WAIT);
        let mut silence = SUSPECT_FOR;
        loop {
            let leave = async {
                tie.told_to_leave.cancelled().await;
                tokio::time::sleep(leaving.next_wait(rand::random())).await;
            };
            let probe = tokio::time::sleep(carrier.probe_interval.mul_f64(0.75 + rand::random::<f64>() / 2.0));
            let (attempt, what) = tokio::select! {
                () = leave => {
                    let (dialer, greeting) = (self.dialer()?, self.greeting()?);
                    let attempt = answered(&dialer, &greeting).await;
                    (attempt.map(|dialled| Successor::Elsewhere((dialled, greeting))), "no other stub answers")
                }
                () = probe, if may_move_to_quic => {
                    let (dialer, greeting) = (self.dialer()?, self.greeting()?);
                    let attempt = dialer.dial_quic(&greeting.words).await;
                    let better = |dialled| Successor::Better((dialled, greeting), "moved from TCP to QUIC");
                    (attempt.map(better), "QUIC does still not get through")
                }
                () = tie.connection.silent_for(silence) => {
                    silence += TRY_AGAIN;
                    let (dialer, greeting) = (self.dialer()?, self.greeting()?);
                    match answered_elsewhere(&tie.connection, &dialer, greeting).await {
                        Ok(None) => continue,
                        Ok(Some(successor)) => (Ok(successor), ""),
                        Err(error) => (Err(error), "the stub answers on no other connection"),
                    }
                }
            };
            match attempt {
                Ok(successor) => return Ok(successor),
                Err(error) => tracing::debug!("{what}: {error}"),
            }
        }
    }

    /// A dialer with the latest credentials; the same one for as long as they are the same, because of its sessions.
    fn dialer(&mut self) -> Result<Arc<Dialer>, AgentError> {
        let latest = self.agent.state.load()?;
        if let Some(latest) = latest.filter(|latest| !latest.are(&self.credentials)) {
            self.credentials = Arc::new(latest);
            self.dialer = None;
        }
        if let Some(dialer) = &self.dialer {
            return Ok(dialer.clone());
        }
        let tls = DialTls {
            quic: tunnel_client_config(&self.credentials)?,
            tcp: tcp_tunnel_client_config(&self.credentials)?,
        };
        let config = &self.agent.config;
        let dialer = Arc::new(Dialer::new(&self.target, &config.carrier, tls, &config.quic)?);
        self.dialer = Some(dialer.clone());
        Ok(dialer)
    }

    fn greeting(&self) -> Result<Greeting, AgentError> {
        let told = self.presence.beside(&self.target);
        let hello = Hello {
            cluster: self.credentials.identity().cluster.clone(),
            instance: self.instance,
            software: concat!("qtunnel/", env!("CARGO_PKG_VERSION")).to_owned(),
            auth_mode: self.agent.config.auth_mode,
            connected_stubs: told.clone(),
        };
        Ok(Greeting { words: greeting(hello)?, told })
    }

    fn start(&self, (dialled, greeting): Greeted, dialer: Arc<Dialer>) -> Running {
        let identity = self.credentials.identity().clone();
        let Greeting { words, told } = greeting;
        let connection = dialled.connection.clone();
        let resumed = if dialled.said.is_some() { ", resumed with 0-RTT" } else { "" };
        let tie = Tie {
            connection: connection.clone(),
            replaced: CancellationToken::new(),
            told_to_leave: CancellationToken::new(),
        };
        let session = Session {
            shared: self.agent.shared.clone(),
            state: self.agent.state.clone(),
            credentials: self.credentials.clone(),
            greeting: words,
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
            replaced: tie.replaced.clone(),
            told_to_leave: tie.told_to_leave.clone(),
            drain_timeout: self.agent.config.drain_timeout,
        };
        let (tell, welcomed) = oneshot::channel();
        let carrier = connection.carrier();
        let address = connection.remote_address();
        let (presence, target) = (self.presence.clone(), self.target.clone());
        let on_welcome = move |welcome: &Welcome| {
            presence.enter(&target, &told, welcome).map_err(SessionEnd::SameStub)?;
            tracing::info!(
                stub = %welcome.stub,
                %address,
                %carrier,
                cluster = %identity.cluster,
                agent = %identity.agent,
                "connected{resumed}"
            );
            // Nobody waits for it on the first connection.
            let _ = tell.send(());
            Ok(())
        };
        let task = tokio::spawn(async move {
            let session = session.run(dialled, on_welcome);
            match carrier {
                Carrier::Tcp => session.await,
                Carrier::Quic => tokio::select! {
                    end = session => end,
                    never = network::follow(&connection) => match never {},
                    never = keep_sessions(&dialer) => match never {},
                },
            }
        });
        Running { task, tie, welcomed }
    }
}

/// Seeks a connection on which the stub answers while it does not on `silent`; `None` when it answers there again.
///
/// Over QUIC it would answer on both, if it knew both: then it has forgotten the silent one, and no patience brings that
/// back. Over TCP it may be the network that lets no UDP pass for the moment: what is open on the silent one waits.
async fn answered_elsewhere(
    silent: &Connection,
    dialer: &Dialer,
    greeting: Greeting,
) -> Result<Option<Successor>, DialError> {
    let connection = tokio::select! {
        () = silent.answers() => return Ok(None),
        attempt = dialer.probe() => attempt?,
    };
    let patience = match connection.carrier() {
        Carrier::Quic => ANSWER_AGAIN,
        Carrier::Tcp => ANSWER_BEFORE_MOVE,
    };
    // The network may have come back only now, for both connections.
    if timeout(patience, silent.answers()).await.is_ok() {
        connection.close(ErrorCode::NoError, "the other connection answers again");
        return Ok(None);
    }
    Ok(Some(match connection.carrier() {
        Carrier::Quic => Successor::Nothing,
        Carrier::Tcp => {
            Successor::Better((connection.into(), greeting), "QUIC does not get through any more; moved to TCP")
        }
    }))
}

/// Dials where somebody answers: an attempt that the old stub refuses, because it is about to stop, must not cost a session
/// that its successor could resume.
async fn answered(dialer: &Dialer, greeting: &Greeting) -> Result<Dialled, DialError> {
    dialer.probe().await?.close(ErrorCode::NoError, "somebody answers");
    dialer.dial(&greeting.words).await
}

/// Has sessions to resume although the connection lives for longer than they do: TLS gives them out with a handshake alone.
async fn keep_sessions(dialer: &Dialer) -> Infallible {
    loop {
        tokio::time::sleep(SESSION_AGE.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        match dialer.fetch_sessions().await {
            Ok(()) => tracing::debug!("fetched sessions to resume"),
            Err(error) => tracing::debug!("could not fetch sessions to resume: {error}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is left behind when the agent itself is dropped.
        self.task.abort();
    }
}

fn ended(end: Result<SessionEnd, tokio::task::JoinError>) -> SessionEnd {
    end.unwrap_or(SessionEnd::ControlStreamEnded)
}
