//! Which sessions there are and where: no more than so many, for each agent and in all.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

use super::{Session, SessionId};
use crate::pki::AgentIdentity;

/// Sessions in numbered places.
#[derive(Debug)]
pub struct Table {
    bounds: Bounds,
    entries: HashMap<SessionId, Entry>,
    /// Each agent's, oldest first.
    agents: HashMap<AgentIdentity, VecDeque<SessionId>>,
    /// All of them, oldest first.
    order: BTreeMap<u64, SessionId>,
    next: u64,
    /// Places that are free below `used`.
    free: Vec<u32>,
    used: u32,
}

/// How many sessions are kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In all.
    pub total: u32,
    /// For one agent.
    pub per_agent: usize,
}

#[derive(Debug)]
struct Entry {
    session: Session,
    place: u32,
    age: u64,
}

impl Table {
    /// Without a session.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: HashMap::new(),
            agents: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            free: Vec::new(),
            used: 0,
        }
    }

    /// Finds a place for a session; tells which, and which places have become free for good. Sessions that have expired at
    /// `now` go on the way.
    pub fn insert(&mut self, id: SessionId, session: Session, now: SystemTime) -> (u32, Vec<u32>) {
        let mut freed: Vec<u32> = self.remove(&id).into_iter().map(|(place, _)| place).collect();
        while let Some(oldest) = self.surplus(&session.agent, now) {
            freed.extend(self.remove(&oldest).map(|(place, _)| place));
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        freed.retain(|other| *other != place);
        let age = self.next;
        self.next += 1;
        self.order.insert(age, id);
        self.agents.entry(session.agent.clone()).or_default().push_back(id);
        self.entries.insert(id, Entry { session, place, age });
        (place, freed)
    }

    /// Takes a session out, and tells where it was.
    pub fn remove(&mut self, id: &SessionId) -> Option<(u32, Session)> {
        let Entry { session, place, age } = self.entries.remove(id)?;
        self.order.remove(&age);
        if let Some(ids) = self.agents.get_mut(&session.agent) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.agents.remove(&session.agent);
            }
        }
        self.free.push(place);
        Some((place, session))
    }

    /// Sessions that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// What has to go before one more session of `agent` may come.
    fn surplus(&self, agent: &AgentIdentity, now: SystemTime) -> Option<SessionId> {
        let of_agent = self.agents.get(agent).filter(|ids| ids.len() >= self.bounds.per_agent);
        if let Some(oldest) = of_agent.and_then(VecDeque::front) {
            return Some(*oldest);
        }
        let (_, oldest) = self.order.first_key_value()?;
        let is_full = self.entries.len() >= self.bounds.total as usize;
        let has_expired = self.entries.get(oldest).is_some_and(|entry| entry.session.expires < now);
        (is_full || has_expired).then_some(*oldest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUNDS: Bounds = Bounds { total: 5, per_agent: 2 };

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn id(number: u8) -> SessionId {
        SessionId::new([number; SessionId::LENGTH])
    }

    fn session(agent: &str) -> Session {
        let agent = format!("qtunnel://prod/agent/{agent}").parse().unwrap();
        Session { agent, expires: NOW, secret: vec![] }
    }

    #[test]
    fn an_agent_keeps_its_latest_sessions_and_drives_out_nobody_elses() {
        let mut table = Table::new(BOUNDS);
        table.insert(id(1), session("a"), NOW);
        for number in 10..20 {
            table.insert(id(number), session("b"), NOW);
        }
        let kept: Vec<u8> = (0..30).filter(|number| table.remove(&id(*number)).is_some()).collect();
        assert_eq!(kept, [1, 18, 19]);
    }

    #[test]
    fn the_oldest_session_of_all_goes_when_the_table_is_full() {
        let mut table = Table::new(BOUNDS);
        for number in 0..7 {
            let (place, freed) = table.insert(id(number), session(&format!("a{number}")), NOW);
            assert!(place < BOUNDS.total);
            assert_eq!(freed, Vec::<u32>::new(), "a place that is taken again is not free");
        }
        assert_eq!(table.len(), 5);
        assert!(table.remove(&id(1)).is_none() && table.remove(&id(2)).is_some());
    }

    #[test]
    fn a_session_is_removed_once() {
        let mut table = Table::new(BOUNDS);
        let (place, _) = table.insert(id(1), session("a"), NOW);
        assert_eq!(table.remove(&id(1)), Some((place, session("a"))));
        assert_eq!(table.remove(&id(1)), None);
        assert_eq!((table.len(), table.agents.len(), table.order.len()), (0, 0, 0));
    }

    #[test]
    fn what_has_expired_makes_room() {
        let mut table = Table::new(BOUNDS);
        let (first, _) = table.insert(id(1), session("a"), NOW);
        let (second, _) = table.insert(id(2), session("b"), NOW);
        let later = Session { expires: NOW + Duration::from_secs(9), ..session("c") };
        let (third, freed) = table.insert(id(3), later, NOW + Duration::from_secs(5));
        assert_eq!((third, freed), (second, vec![first]));
        assert_eq!(table.len(), 1);
    }
}
