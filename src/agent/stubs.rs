//! Keeps an agent connected to every stub that there is, while stubs come and go.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::address::StubAddress;
use super::backoff::Backoff;
use super::known_stubs::KnownStubs;
use super::link::{Link, LinkContext};
use super::presence::Presence;
use super::session::SessionEnd;
use super::target::Target;
use super::{AgentError, FIRST_WAIT, LONGEST_WAIT};
use crate::wire::ErrorCode;

/// The links to all stubs.
#[derive(Debug)]
pub struct Stubs<'a> {
    context: LinkContext<'a>,
    known: KnownStubs,
    /// What stops each link.
    running: HashMap<Target, CancellationToken>,
}

/// A session that lasted this long was a success: the next attempt comes soon.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The least wait after the stub took another connection for this agent: two processes with one key would otherwise
/// throw each other out again and again.
const SUPERSEDED_WAIT: Duration = Duration::from_secs(60);

/// How long the welcome of another link of this process may take after the stub closed this one for it.
const SUCCESSOR_WELCOME: Duration = Duration::from_secs(2);

/// The least wait after the stub did not accept the agent's certificate; nothing changes that quickly.
const REJECTED_WAIT: Duration = Duration::from_secs(30);

/// How often names are looked up again, give or take a quarter.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

/// How long that may take. What is not known by then, each attempt to connect looks up by itself.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(3);

impl<'a> Stubs<'a> {
    /// Begins with the stubs of the settings.
    pub fn new(context: LinkContext<'a>) -> Self {
        let known = KnownStubs::new(context.agent.config.stubs.clone());
        Self { context, known, running: HashMap::new() }
    }

    /// Stays connected until the shutdown.
    ///
    /// # Errors
    ///
    /// Only what trying again cannot mend.
    pub async fn stay_connected(mut self) -> Result<(), AgentError> {
        let shutdown = self.context.shutdown.clone();
        let mut changes = self.context.presence.changes();
        let mut links = FuturesUnordered::new();
        let mut lookup = pin!(look_up(self.known.names(), Duration::ZERO));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                found = &mut lookup => {
                    found.into_iter().for_each(|(name, addresses)| self.known.looked_up(name, addresses));
                    let wait = LOOK_UP_EVERY.mul_f64(0.75 + rand::random::<f64>() / 2.0);
                    lookup.set(look_up(self.known.names(), wait));
                }
                () = changes.next() => {
                    self.known.heard(&self.context.presence.heard(), Instant::now());
                    if self.known.has_news() {
                        lookup.set(look_up(self.known.names(), Duration::ZERO));
                    }
                }
                Some((target, result)) = links.next() => {
                    self.running.remove(&target);
                    result?;
                }
            }
            for target in self.missing() {
                let stop = self.context.shutdown.child_token();
                self.running.insert(target.clone(), stop.clone());
                links.push(stay_connected_to(target, self.context.for_link(stop)));
            }
        }
        while let Some((_, result)) = links.next().await {
            result?;
        }
        Ok(())
    }

    /// The stubs that are wanted and have no link yet. Links that are not wanted any more end once they are not connected.
    fn missing(&mut self) -> Vec<Target> {
        let wanted = self.known.wanted();
        for (target, stop) in &self.running {
            if !wanted.contains(target) && !self.context.presence.is_connected(target) && !stop.is_cancelled() {
                tracing::info!(stub = %target, "nothing leads to this stub any more, and it does not answer");
                stop.cancel();
            }
        }
        wanted.into_iter().filter(|target| !self.running.contains_key(target)).collect()
    }
}

/// The addresses of each name, after `wait`; none where there was an error.
async fn look_up(names: Vec<StubAddress>, wait: Duration) -> Vec<(StubAddress, Vec<SocketAddr>)> {
    tokio::time::sleep(wait).await;
    let lookups = names.into_iter().map(|name| async {
        let addresses = name.resolve(LOOK_UP_PATIENCE).await.unwrap_or_else(|error| {
            tracing::debug!("{error}");
            Vec::new()
        });
        (name, addresses)
    });
    join_all(lookups).await
}

/// Connects to one stub again and again.
async fn stay_connected_to(target: Target, context: LinkContext<'_>) -> (Target, Result<(), AgentError>) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let (presence, shutdown) = (context.presence.clone(), context.shutdown.clone());
    let mut link = Link::new(target.clone(), context);
    loop {
        let began = Instant::now();
        let end = link.run().await;
        let was_present = presence.is_connected(&target);
        let left = presence.leave(&target);
        let end = match end {
            Ok(SessionEnd::Stopped) => break,
            Ok(end) => with_successor(end, left, &presence).await,
            Err(error) => return (target, Err(error)),
        };
        if let SessionEnd::SameStub(holder) = &end {
            tracing::info!(stub = %target, "leads to the stub that is connected as {holder}");
            match shutdown.run_until_cancelled(presence.while_held_by(holder)).await {
                Some(()) => continue,
                None => break,
            }
        }
        // Of a name's addresses some often lead nowhere, IPv6 ones for instance; one that works is enough.
        match presence.under_the_name_of(&target) {
            Some(other) => tracing::debug!(stub = %target, "disconnected, while {other} is connected: {end}"),
            None => tracing::warn!(stub = %target, "disconnected: {end}"),
        }
        if began.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        let wait = least_wait(&end, was_present) + backoff.next_wait(rand::random());
        tracing::info!(stub = %target, "connecting again in {} ms", wait.as_millis());
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            break;
        }
    }
    link.wait_for_replaced().await;
    (target, Ok(()))
}

/// The end of a session with the stub `left`, told apart: a stub that was not told of a link to another of its addresses
/// takes the second connection for a new one of the same agent and closes the first. The news of that may come before the
/// other link has read its welcome.
async fn with_successor(end: SessionEnd, left: Option<u64>, presence: &Presence) -> SessionEnd {
    let (Some(ErrorCode::Superseded), Some(stub)) = (end.closed_by_stub(), left) else {
        return end;
    };
    match timeout(SUCCESSOR_WELCOME, presence.holder_of(stub)).await {
        Ok(holder) => SessionEnd::SameStub(holder),
        Err(_) => end,
    }
}

fn least_wait(end: &SessionEnd, was_present: bool) -> Duration {
    match end.closed_by_stub() {
        // If it was not, the stub had not said which one it is: it may be one that another link of this process holds.
        Some(ErrorCode::Superseded) if was_present => SUPERSEDED_WAIT,
        Some(ErrorCode::IdentityRejected) => REJECTED_WAIT,
        _ => Duration::ZERO,
    }
}
