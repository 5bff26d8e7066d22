//! The TLS sessions that agents may resume, which is what makes a reconnect cost no round trip.
//!
//! A resumed session lets an agent speak with its first packet (0-RTT, RFC 9001, section 4.6), and whoever records that
//! packet can send it again. What protects against that is that every session is given out once (RFC 8446, section 8.1):
//! see [`SessionStore`]. [`FileSessions`] is the one that stubs have unless they are given another.

mod file;
mod record;
mod table;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::server::StoresServerSessions;

pub use file::{FileSessions, SessionFileError};

use crate::pki::AgentIdentity;

/// Keeps sessions between an agent's connections.
///
/// An implementation must give each session to one caller only: what [`take`](Self::take) has returned is never returned
/// again, to no thread and no process, not after a crash of the process or the machine, and not out of a backup. A replayed
/// packet would otherwise be taken for the agent. It may lose whatever it is given: a session that is gone costs its agent one round
/// trip at the next reconnect, so whatever fails inside, forgetting is the right answer. It has to bound what it keeps, in
/// number (for each agent, too, because agents reconnect as often as they like) and in time ([`Session::expires`]).
///
/// A store belongs to one stub. Stubs do not share sessions: giving one out once among all of them would take an atomic change in
/// a place that they share, within the handshake. In a Kubernetes Secret that is two calls of an API server for each connection, more
/// than the round trip that a session saves. A stub that is offered the session of another one does not know it and makes a whole
/// handshake. Agents keep those of each stub apart, so it happens only where several stubs answer at one address.
///
/// Agents have their halves of sessions in memory alone: TLS here (rustls 0.23) has no way to write a client's session to a disk. An
/// agent that was started again begins with a whole handshake.
///
/// Both methods are called on threads that serve connections: they must not wait for a network, and for a disk only as long as it
/// takes to hand it some bytes. What sessions hold is secret.
pub trait SessionStore: fmt::Debug + Send + Sync {
    /// Keeps a session that a handshake with an agent has made at `now`.
    fn put(&self, id: SessionId, session: Session, now: SystemTime);

    /// Gives out the session and forgets it. `None` when it is unknown, has expired at `now`, was taken before, or when it is
    /// not certain that it will never be given out again.
    fn take(&self, id: &SessionId, now: SystemTime) -> Option<Session>;
}

/// Names a session on the wire, where everybody on the path can read it. Random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; SessionId::LENGTH]);

impl SessionId {
    /// Bytes in an id.
    pub const LENGTH: usize = 32;

    /// The id of these bytes.
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The id in a ClientHello; `None` for what is none of this stub.
    fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// One session of an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub agent: AgentIdentity,
    /// The last moment at which it is good for anything.
    pub expires: SystemTime,
    /// What TLS made of it, the agent's certificate and the secret among it. About 1 KiB.
    pub secret: Vec<u8>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("agent", &self.agent).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// How long agents are told that a session is good for (rustls, `ExpectFinished::emit_ticket`).
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Sessions that wait for one connection's agent to be known. TLS makes as many with each handshake.
const MAX_WAITING: usize = 4;

/// The sessions of one connection, between TLS and the store.
///
/// TLS knows sessions and no agents, and it makes sessions for connections that only enrol. Here they wait until the stub knows
/// whose connection it is: strangers, who can open as many connections as they like, never get anything into the store.
#[derive(Debug)]
pub struct ConnectionSessions {
    store: Arc<dyn SessionStore>,
    owner: Mutex<Owner>,
    has_resumed: AtomicBool,
}

enum Owner {
    /// Not known yet: what was made meanwhile.
    Stranger(Vec<(SessionId, Vec<u8>)>),
    Agent(AgentIdentity),
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(waiting) => write!(f, "Stranger({} sessions)", waiting.len()),
            Self::Agent(agent) => write!(f, "Agent({agent})"),
        }
    }
}

impl ConnectionSessions {
    /// Those of a connection of which nothing is known.
    pub fn new(store: Arc<dyn SessionStore>) -> Arc<Self> {
        Arc::new(Self { store, owner: Mutex::new(Owner::Stranger(Vec::new())), has_resumed: AtomicBool::new(false) })
    }

    /// Whether the connection has resumed a session.
    pub fn has_resumed(&self) -> bool {
        self.has_resumed.load(Ordering::Relaxed)
    }

    /// From now on sessions of this connection are kept: it is `agent`'s, whose certificate is good.
    pub fn belong_to(&self, agent: &AgentIdentity) {
        let before = std::mem::replace(&mut *self.owner(), Owner::Agent(agent.clone()));
        if let Owner::Stranger(waiting) = before {
            waiting.into_iter().for_each(|(id, secret)| self.keep(id, secret, agent.clone()));
        }
    }

    fn keep(&self, id: SessionId, secret: Vec<u8>, agent: AgentIdentity) {
        let now = SystemTime::now();
        self.store.put(id, Session { agent, expires: now + LIFETIME, secret }, now);
    }

    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoresServerSessions for ConnectionSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let Some(id) = SessionId::from_slice(&key) else { return false };
        let agent = match &mut *self.owner() {
            Owner::Stranger(waiting) => {
                let has_room = waiting.len() < MAX_WAITING;
                if has_room {
                    waiting.push((id, value));
                }
                return has_room;
            }
            Owner::Agent(agent) => agent.clone(),
        };
        self.keep(id, value, agent);
        true
    }

    /// For sessions of TLS 1.2, which agents do not speak.
    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.store.take(&SessionId::from_slice(key)?, SystemTime::now())?;
        self.has_resumed.store(true, Ordering::Relaxed);
        Some(session.secret)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<(SessionId, Session)>>);

    impl SessionStore for Kept {
        fn put(&self, id: SessionId, session: Session, _now: SystemTime) {
            self.0.lock().unwrap().push((id, session));
        }

        fn take(&self, id: &SessionId, _now: SystemTime) -> Option<Session> {
            let mut kept = self.0.lock().unwrap();
            let position = kept.iter().position(|(other, _)| other == id)?;
            Some(kept.swap_remove(position).1)
        }
    }

    fn agent() -> AgentIdentity {
        "qtunnel://prod/agent/a1".parse().unwrap()
    }

    #[test]
    fn a_stranger_gets_nothing_into_the_store() {
        let store = Arc::new(Kept::default());
        let sessions = ConnectionSessions::new(store.clone());
        let stored: Vec<_> = (0..6).map(|number| sessions.put(vec![number; 32], vec![])).collect();
        assert_eq!(stored, [true, true, true, true, false, false]);
        assert!(store.0.lock().unwrap().is_empty());
    }

    #[test]
    fn sessions_are_kept_once_it_is_known_whose_they_are() {
        let store = Arc::new(Kept::default());
        let sessions = ConnectionSessions::new(store.clone());
        assert!(sessions.put(vec![1; 32], b"before".to_vec()));
        sessions.belong_to(&agent());
        assert!(sessions.put(vec![2; 32], b"after".to_vec()));
        assert_eq!(sessions.take(&[1; 32]), Some(b"before".to_vec()));
        assert_eq!(sessions.take(&[2; 32]), Some(b"after".to_vec()));
        assert_eq!(sessions.take(&[2; 32]), None);
    }

    #[test]
    fn what_is_no_id_of_a_session_is_unknown() {
        let sessions = ConnectionSessions::new(Arc::new(Kept::default()));
        assert!(!sessions.put(vec![1; 31], vec![]));
        assert_eq!(sessions.take(&[]), None);
        assert_eq!(sessions.get(&[1; 32]), None);
    }

    #[test]
    fn secrets_do_not_appear_in_debug_output() {
        let store = Arc::new(Kept::default());
        let sessions = ConnectionSessions::new(store.clone());
        sessions.put(vec![1; 32], b"sesame".to_vec());
        assert!(!format!("{sessions:?}").contains(&format!("{:?}", b"sesame")[1..20]));
        sessions.belong_to(&agent());
        let session = store.take(&SessionId::new([1; 32]), SystemTime::now()).unwrap();
        assert!(!format!("{session:?}").contains("115, 101"));
    }
}
