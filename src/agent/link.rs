//! An agent's tie to one stub: one connection, or two while it moves from TCP to QUIC.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dial::{CarrierChoice, DialTls, Dialer};
use super::presence::Presence;
use super::session::{Session, SessionEnd};
use super::target::Target;
use super::upstream::Health;
use super::{Agent, AgentError, is_expired, network};
use crate::carrier::Connection;
use crate::pki::{AgentCredentials, tcp_tunnel_client_config, tunnel_client_config};
use crate::wire::{Carrier, Hello, Welcome};

/// How long a stub does not answer before the agent tries whether it answers on another connection, and between tries.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// How long an old connection has to answer once a new one does: several heartbeats.
const ANSWER_AGAIN: Duration = Duration::from_secs(3);

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
    carrier: Carrier,
    replaced: CancellationToken,
    welcomed: oneshot::Receiver<()>,
}

impl<'a> Link<'a> {
    /// Connects to the stub at `target`.
    pub fn new(target: Target, context: LinkContext<'a>) -> Self {
        let LinkContext { agent, presence, shutdown, credentials, instance, health } = context;
        Self { agent, target, presence, credentials, instance, health, shutdown, replaced: JoinSet::new() }
    }

    /// Connects once, and stays so for as long as it goes well. An agent that has to do with TCP moves to QUIC as soon as
    /// that gets through: new requests first, and those that are open end where they are.
    pub async fn run(&mut self) -> Result<SessionEnd, AgentError> {
        let dialer = self.dialer()?;
        if is_expired(&self.credentials) {
            return Err(AgentError::Expired);
        }
        let mut current = match self.shutdown.clone().run_until_cancelled(dialer.dial()).await {
            None => return Ok(SessionEnd::Stopped),
            // What is wrong now, a name that is unknown for instance, may be right later.
            Some(Err(error)) => return Ok(error.into()),
            Some(Ok(connection)) => self.start(connection, dialer),
        };
        while current.carrier == Carrier::Tcp && self.agent.config.carrier.choice == CarrierChoice::Auto {
            let (better, dialer) = tokio::select! {
                end = &mut current.task => return Ok(ended(end)),
                better = self.next_over_quic() => better?,
            };
            let mut next = self.start(better, dialer);
            if (&mut next.welcomed).await.is_err() {
                tracing::debug!(
                    "QUIC got through, but the stub did not take the connection: {}",
                    ended((&mut next.task).await)
                );
                continue;
            }
            tracing::info!(stub = %self.target, "moved from TCP to QUIC; open requests end where they are");
            current.replaced.cancel();
            while self.replaced.try_join_next().is_some() {}
            let mut left = std::mem::replace(&mut current, next);
            self.replaced.spawn(async move { ended((&mut left.task).await) });
        }
        Ok(ended((&mut current.task).await))
    }

    /// Waits for the last requests on connections that have been replaced. They end in time only at a shutdown.
    pub async fn wait_for_replaced(mut self) {
        while self.replaced.join_next().await.is_some() {}
    }

    /// Tries QUIC now and then until it gets through.
    async fn next_over_quic(&mut self) -> Result<(Connection, Dialer), AgentError> {
        loop {
            tokio::time::sleep(self.agent.config.carrier.probe_interval.mul_f64(0.75 + rand::random::<f64>() / 2.0))
                .await;
            let dialer = self.dialer()?;
            match dialer.dial_quic().await {
                Ok(connection) => return Ok((connection, dialer)),
                Err(error) => tracing::debug!("QUIC does still not get through: {error}"),
            }
        }
    }

    /// A dialer with the latest credentials.
    fn dialer(&mut self) -> Result<Dialer, AgentError> {
        if let Some(latest) = self.agent.state.load()? {
            self.credentials = Arc::new(latest);
        }
        let tls = DialTls {
            quic: tunnel_client_config(&self.credentials)?,
            tcp: tcp_tunnel_client_config(&self.credentials)?,
        };
        let config = &self.agent.config;
        Ok(Dialer::new(&self.target, &config.carrier, tls, &config.quic)?)
    }

    fn start(&self, connection: Connection, dialer: Dialer) -> Running {
        let identity = self.credentials.identity().clone();
        let told = self.presence.beside(&self.target);
        let hello = Hello {
            cluster: identity.cluster.clone(),
            instance: self.instance,
            software: concat!("qtunnel/", env!("CARGO_PKG_VERSION")).to_owned(),
            auth_mode: self.agent.config.auth_mode,
            connected_stubs: told.clone(),
        };
        let replaced = CancellationToken::new();
        let session = Session {
            shared: self.agent.shared.clone(),
            state: self.agent.state.clone(),
            credentials: self.credentials.clone(),
            hello,
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
            replaced: replaced.clone(),
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
                "connected"
            );
            // Nobody waits for it on the first connection.
            let _ = tell.send(());
            Ok(())
        };
        let task = tokio::spawn(async move {
            let session = session.run(connection.clone(), on_welcome);
            match carrier {
                Carrier::Tcp => session.await,
                Carrier::Quic => tokio::select! {
                    end = session => end,
                    never = network::follow(&connection) => match never {},
                    end = abandoned(&connection, &dialer) => end,
                },
            }
        });
        Running { task, carrier, replaced, welcomed }
    }
}

/// Waits until the stub does not answer on `connection`, and does answer on a new one: then it knows nothing of
/// `connection` any more, and no patience brings it back.
async fn abandoned(connection: &Connection, dialer: &Dialer) -> SessionEnd {
    let mut silence = ABANDONED_AFTER;
    loop {
        connection.silent_for(silence).await;
        let attempt = dialer.dial_quic().await;
        // The network may have come back only now, for both connections.
        if attempt.is_ok() && timeout(ANSWER_AGAIN, connection.answers()).await.is_err() {
            return SessionEnd::Abandoned;
        }
        silence += ABANDONED_AFTER;
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
