//! An agent's tie to its stub: one connection, or two while it moves from TCP to QUIC.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dial::{CarrierChoice, DialTls, Dialer, Dialled};
use super::session::{Session, SessionEnd, greeting};
use super::upstream::Health;
use super::{Agent, AgentError, is_expired, network};
use crate::carrier::Connection;
use crate::pki::{AgentCredentials, tcp_tunnel_client_config, tunnel_client_config};
use crate::wire::{Carrier, Hello, Welcome};

/// How long a stub does not answer before the agent tries whether it answers on another connection, and between tries.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// How long an old connection has to answer once a new one does: several heartbeats.
const ANSWER_AGAIN: Duration = Duration::from_secs(3);

/// How long sessions are used before new ones are fetched, give or take a quarter. Stubs keep them for a day.
const SESSION_AGE: Duration = Duration::from_secs(12 * 60 * 60);

/// Connects an agent to its stub, again and again.
#[derive(Debug)]
pub struct Link<'a> {
    agent: &'a Agent,
    credentials: Arc<AgentCredentials>,
    /// Dials with these credentials. It has the sessions that were made with them, which others must not resume.
    dialer: Option<Arc<Dialer>>,
    /// Made once for the process, so that the stub tells a reconnect from another process.
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
    /// Connects `agent` with `credentials`, or what they are renewed to.
    pub fn new(
        agent: &'a Agent,
        credentials: AgentCredentials,
        health: watch::Receiver<Health>,
        shutdown: CancellationToken,
    ) -> Self {
        let (credentials, replaced) = (Arc::new(credentials), JoinSet::new());
        Self { agent, credentials, dialer: None, instance: rand::random(), health, shutdown, replaced }
    }

    /// Connects once, and stays so for as long as it goes well. An agent that has to do with TCP moves to QUIC as soon as
    /// that gets through: new requests first, and those that are open end where they are.
    pub async fn run(&mut self) -> Result<SessionEnd, AgentError> {
        let dialer = self.dialer()?;
        if is_expired(&self.credentials) {
            return Err(AgentError::Expired);
        }
        let greeting = self.greeting()?;
        let mut current = match self.shutdown.clone().run_until_cancelled(dialer.dial(&greeting)).await {
            None => return Ok(SessionEnd::Stopped),
            // What is wrong now, a name that is unknown for instance, may be right later.
            Some(Err(error)) => return Ok(error.into()),
            Some(Ok(dialled)) => self.start(dialled, dialer, greeting),
        };
        while current.carrier == Carrier::Tcp && self.agent.config.carrier.choice == CarrierChoice::Auto {
            let (better, dialer, greeting) = tokio::select! {
                end = &mut current.task => return Ok(ended(end)),
                better = self.next_over_quic() => better?,
            };
            let mut next = self.start(better, dialer, greeting);
            if (&mut next.welcomed).await.is_err() {
                tracing::debug!(
                    "QUIC got through, but the stub did not take the connection: {}",
                    ended((&mut next.task).await)
                );
                continue;
            }
            tracing::info!(stub = %self.agent.config.stub, "moved from TCP to QUIC; open requests end where they are");
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
    async fn next_over_quic(&mut self) -> Result<(Dialled, Arc<Dialer>, Bytes), AgentError> {
        loop {
            tokio::time::sleep(self.agent.config.carrier.probe_interval.mul_f64(0.75 + rand::random::<f64>() / 2.0))
                .await;
            let (dialer, greeting) = (self.dialer()?, self.greeting()?);
            match dialer.dial_quic(&greeting).await {
                Ok(dialled) => return Ok((dialled, dialer, greeting)),
                Err(error) => tracing::debug!("QUIC does still not get through: {error}"),
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
        let dialer = Arc::new(Dialer::new(&config.stub, &config.carrier, tls, &config.quic)?);
        self.dialer = Some(dialer.clone());
        Ok(dialer)
    }

    fn greeting(&self) -> Result<Bytes, AgentError> {
        let hello = Hello {
            cluster: self.credentials.identity().cluster.clone(),
            instance: self.instance,
            software: concat!("qtunnel/", env!("CARGO_PKG_VERSION")).to_owned(),
            auth_mode: self.agent.config.auth_mode,
        };
        Ok(greeting(hello)?)
    }

    fn start(&self, dialled: Dialled, dialer: Arc<Dialer>, greeting: Bytes) -> Running {
        let identity = self.credentials.identity().clone();
        let replaced = CancellationToken::new();
        let session = Session {
            shared: self.agent.shared.clone(),
            state: self.agent.state.clone(),
            credentials: self.credentials.clone(),
            greeting,
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
            replaced: replaced.clone(),
            drain_timeout: self.agent.config.drain_timeout,
        };
        let (tell, welcomed) = oneshot::channel();
        let connection = dialled.connection.clone();
        let carrier = connection.carrier();
        let address = connection.remote_address();
        let resumed = if dialled.said.is_some() { ", resumed with 0-RTT" } else { "" };
        let on_welcome = move |welcome: &Welcome| {
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
        };
        let task = tokio::spawn(async move {
            let session = session.run(dialled, on_welcome);
            match carrier {
                Carrier::Tcp => session.await,
                Carrier::Quic => tokio::select! {
                    end = session => end,
                    never = network::follow(&connection) => match never {},
                    end = abandoned(&connection, &dialer) => end,
                    never = keep_sessions(&dialer) => match never {},
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
        let attempt = dialer.probe_quic().await;
        // The network may have come back only now, for both connections.
        if attempt.is_ok() && timeout(ANSWER_AGAIN, connection.answers()).await.is_err() {
            return SessionEnd::Abandoned;
        }
        silence += ABANDONED_AFTER;
    }
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
