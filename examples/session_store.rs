//! Agents' TLS sessions where an organisation wants them: here in memory, so that nothing of them is ever on a disk.
//!
//! `cargo run --example session_store`

mod support;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use qtunnel::pki::AgentIdentity;
use qtunnel::stub::Stub;
use qtunnel::stub::sessions::{Session, SessionId, SessionStore};

/// Sessions for each agent. More than these are superseded: an agent uses its newest ones.
const PER_AGENT: usize = 8;

/// Agents. Those beyond them reconnect a round trip slower.
const AGENTS: usize = 10_000;

/// The sessions of each agent, the oldest first.
type Sessions = HashMap<AgentIdentity, VecDeque<(SessionId, Session)>>;

/// After a restart there are none, which no agent minds much; two stubs with such a store share none, so no session can be used
/// at both.
#[derive(Debug, Clone, Default)]
struct InMemory(Arc<Mutex<Sessions>>);

impl InMemory {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().values().map(VecDeque::len).sum()
    }
}

impl SessionStore for InMemory {
    fn put(&self, id: SessionId, session: Session, now: SystemTime) {
        let mut agents = self.lock();
        if agents.len() >= AGENTS {
            agents.retain(|_, sessions| sessions.iter().any(|(_, session)| session.expires > now));
        }
        if agents.len() >= AGENTS && !agents.contains_key(&session.agent) {
            return;
        }
        println!("sessions: one more of {}", session.agent);
        let sessions = agents.entry(session.agent.clone()).or_default();
        sessions.push_back((id, session));
        if sessions.len() > PER_AGENT {
            sessions.pop_front();
        }
    }

    fn take(&self, id: &SessionId, now: SystemTime) -> Option<Session> {
        let mut agents = self.lock();
        // Taken out before anything else is looked at: nobody gets it a second time.
        let (_, session) = agents.values_mut().find_map(|sessions| {
            let position = sessions.iter().position(|(other, _)| other == id)?;
            sessions.remove(position)
        })?;
        (session.expires > now).then_some(session)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sessions = InMemory::default();
    let site = support::Site::new()?;
    let stub = Stub::builder(site.config()?).session_store(sessions.clone()).bind().await?;
    let tunnel = site.run(stub).await?;

    tunnel.client_of("alice").await?.get(support::PODS).await?;
    anyhow::ensure!(sessions.count() > 0, "the agent can resume nothing");
    println!("there are {} sessions that an agent can resume", sessions.count());
    tunnel.stop().await
}
