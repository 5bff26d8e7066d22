//! The requests that went wrong lately.

use std::collections::VecDeque;
use std::fmt;

use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::target::{Target, cut};
use crate::stub::authorize::Decision;
use crate::stub::record::{End, GivenAnswer, RequestFacts};
use crate::wire::ClusterId;

/// How many are kept of people who are known. The oldest gives way.
const OF_USERS: usize = 200;

/// How many are kept of callers who are not: a flood of them must not wash away the others.
const OF_STRANGERS: usize = 50;

/// A request that went wrong, and those right after it that went wrong in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// When the latest of them ended.
    pub at: Timestamp,
    /// How many they are.
    pub count: u64,
    /// What went wrong.
    pub kind: IncidentKind,
    /// Who made it; empty where nobody could be recognized.
    pub user: String,
    /// In whose name (`kubectl --as`), if in another's.
    pub requested_user: Option<String>,
    /// Where it came from.
    pub source: String,
    /// The cluster that it names, which may not exist; empty without one.
    pub cluster: String,
    /// What it was about.
    #[serde(flatten)]
    pub target: Target,
    /// The code of the answer; 0 without one.
    pub code: u16,
    /// Why, as far as the stub knows.
    pub message: String,
    /// The latest one's name in every log.
    pub audit_id: String,
}

/// What went wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentKind {
    /// Who makes it could not be recognized.
    Unauthenticated,
    /// The stub does not allow it, or the agent.
    Denied,
    /// The cluster does not allow it.
    ForbiddenByCluster,
    /// The right to it was taken away while it was open.
    Revoked,
    /// It was answered with an error.
    Failed,
    /// Its answer broke off.
    BrokenOff,
}

impl fmt::Display for IncidentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::ForbiddenByCluster => "forbidden by cluster",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
            Self::BrokenOff => "broken off",
        })
    }
}

impl Incident {
    /// What is to be told of a request that has ended, if anything went wrong.
    pub fn of(facts: &RequestFacts) -> Option<Self> {
        let kind = kind_of(facts)?;
        let message = match &facts.answer {
            _ if kind == IncidentKind::BrokenOff => "the answer broke off on its way through the tunnel".to_owned(),
            _ if kind == IncidentKind::Revoked => "the right to it was taken away".to_owned(),
            Some(GivenAnswer::Own(status)) => cut(status.message()),
            Some(GivenAnswer::Passed(code)) => format!("the cluster answered {code}"),
            None => String::new(),
        };
        let requested = facts.attributes.as_ref().and_then(|attributes| attributes.requested.as_ref());
        Some(Self {
            at: Timestamp::now(),
            count: 1,
            kind,
            user: facts.user.as_ref().map(|identity| cut(&identity.user)).unwrap_or_default(),
            requested_user: requested.map(|identity| cut(&identity.user)),
            source: facts.source.to_string(),
            cluster: facts.cluster.as_ref().map(ClusterId::to_string).unwrap_or_default(),
            target: Target::of_facts(facts),
            code: facts.code().map_or(0, |code| code.as_u16()),
            message,
            audit_id: facts.audit_id.clone(),
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        let key = |incident: &Self| (incident.kind, incident.code, incident.source.clone(), incident.message.clone());
        key(self) == key(other)
            && (&self.user, &self.cluster, &self.target) == (&other.user, &other.cluster, &other.target)
    }
}

fn kind_of(facts: &RequestFacts) -> Option<IncidentKind> {
    match facts.end {
        End::Revoked => return Some(IncidentKind::Revoked),
        End::BrokenOff => return Some(IncidentKind::BrokenOff),
        End::Panicked => return Some(IncidentKind::Failed),
        End::Complete | End::ClientGone | End::Stopped | End::HandedOver => {}
    }
    match facts.answer.as_ref()? {
        GivenAnswer::Own(status) => Some(match (status.code(), &facts.decision) {
            (StatusCode::UNAUTHORIZED, _) => IncidentKind::Unauthenticated,
            (StatusCode::FORBIDDEN, _) | (_, Some(Decision::Deny(_))) => IncidentKind::Denied,
            _ => IncidentKind::Failed,
        }),
        // Other answers below 500 are everyday life: `kubectl get` of an object that is not there.
        GivenAnswer::Passed(StatusCode::FORBIDDEN) => Some(IncidentKind::ForbiddenByCluster),
        GivenAnswer::Passed(code) => code.is_server_error().then_some(IncidentKind::Failed),
    }
}

/// The incidents that are kept, oldest first.
#[derive(Debug, Default)]
pub struct Incidents {
    of_users: VecDeque<Incident>,
    of_strangers: VecDeque<Incident>,
}

impl Incidents {
    /// Adds one; one that is like the newest is counted with it.
    pub fn add(&mut self, incident: Incident, user_is_known: bool) {
        let (kept, limit) =
            if user_is_known { (&mut self.of_users, OF_USERS) } else { (&mut self.of_strangers, OF_STRANGERS) };
        match kept.back_mut() {
            Some(newest) if newest.is_like(&incident) => {
                *newest = Incident { count: newest.count.saturating_add(1), ..incident };
            }
            _ => {
                if kept.len() == limit {
                    kept.pop_front();
                }
                kept.push_back(incident);
            }
        }
    }

    /// All of them, newest first.
    pub fn newest_first(&self) -> Vec<Incident> {
        let mut all: Vec<Incident> = self.of_users.iter().chain(&self.of_strangers).cloned().collect();
        all.sort_by_key(|incident| std::cmp::Reverse(incident.at));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(user: &str, message: &str) -> Incident {
        Incident {
            at: Timestamp::now(),
            count: 1,
            kind: IncidentKind::Denied,
            user: user.to_owned(),
            requested_user: None,
            source: "192.0.2.1".to_owned(),
            cluster: "eu".to_owned(),
            target: Target::default(),
            code: 403,
            message: message.to_owned(),
            audit_id: "1".to_owned(),
        }
    }

    #[test]
    fn the_same_again_is_counted() {
        let mut incidents = Incidents::default();
        for _ in 0..3 {
            incidents.add(incident("alice", "no"), true);
        }
        incidents.add(incident("bob", "no"), true);
        let counts: Vec<(String, u64)> =
            incidents.newest_first().into_iter().map(|incident| (incident.user, incident.count)).collect();
        assert_eq!(counts, [("bob".to_owned(), 1), ("alice".to_owned(), 3)]);
    }

    #[test]
    fn a_flood_of_strangers_leaves_what_users_did() {
        let mut incidents = Incidents::default();
        incidents.add(incident("alice", "no"), true);
        for number in 0..1000 {
            incidents.add(incident("", &number.to_string()), false);
        }
        let all = incidents.newest_first();
        assert_eq!(all.len(), OF_STRANGERS + 1);
        assert!(all.iter().any(|incident| incident.user == "alice"));
        assert!(all.iter().any(|incident| incident.message == "999"), "the newest stays");
    }
}
