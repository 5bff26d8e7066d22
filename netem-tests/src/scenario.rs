//! What goes on while a network is bad: who uses the tunnel for what, and what happens meanwhile.

use std::time::Duration;

use crate::profile::{Action, Profile};

/// A use of the tunnel, by its name.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What people call it.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Who does what.
    pub loads: Loads,
    /// What happens while it goes on, where the profile has no events of its own.
    event: Option<Event>,
}

/// Who does what, all at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loads {
    /// Small GETs at a steady rate, whether or not earlier ones have been answered.
    pub gets: Option<Gets>,
    /// Those who follow a log.
    pub followers: Option<Followers>,
    /// Whether somebody types into a `kubectl exec`, 20 keys a second.
    pub exec: bool,
    /// One transfer without an end, from the cluster to the client.
    pub bulk: Option<Bulk>,
    /// Whether another such transfer shares the link: plain TCP with Cubic, past the tunnel.
    pub beside_tcp: bool,
}

/// Those who follow a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followers {
    /// How many.
    pub count: usize,
    /// Lines that each of them is sent, per second; with none of them nothing is ever written.
    pub lines_per_second: u32,
    /// How many share a connection to the stub: those of one dashboard do, those of kubectl do not.
    pub on_one_connection: usize,
}

/// On what connections of the client to the stub small GETs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// One HTTP/2 connection for all, as kubectl and controllers have.
    Kept,
    /// A new one for each, TLS handshake included, as a `kubectl get` by itself.
    Fresh,
}

/// How bulk comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// As the body of an answer.
    Download,
    /// Through `kubectl port-forward`.
    PortForward,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// From the start of what is measured.
    pub at: Duration,
    /// What.
    pub what: Happening,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// To the network.
    Network(Action),
    /// The stub is killed and started again.
    StubRestart,
}

const NOTHING: Loads = Loads { gets: None, followers: None, exec: false, bulk: None, beside_tcp: false };

const fn followers(count: usize, lines_per_second: u32) -> Option<Followers> {
    Some(Followers { count, lines_per_second, on_one_connection: 50 })
}

const AFTER_5_S: Duration = Duration::from_secs(5);

/// What goes on after the last event at least, so that a recovery is seen.
const AFTERMATH: Duration = Duration::from_secs(10);

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "gets",
        about: "small GETs alone, 50 a second",
        loads: Loads { gets: Some(Gets::Kept), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "fresh",
        about: "small GETs alone, each on a new connection to the stub",
        loads: Loads { gets: Some(Gets::Fresh), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "bulk",
        about: "one download alone",
        loads: Loads { bulk: Some(Bulk::Download), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "mixed",
        about: "small GETs beside one download and 50 `logs -f` of 10 lines a second",
        loads: Loads { gets: Some(Gets::Kept), followers: followers(50, 10), bulk: Some(Bulk::Download), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "exec",
        about: "keystrokes in `kubectl exec` beside one download",
        loads: Loads { exec: true, bulk: Some(Bulk::Download), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "logs-1000",
        about: "1,000 `logs -f` of a line a second, and small GETs",
        loads: Loads { gets: Some(Gets::Kept), followers: followers(1000, 1), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "port-forward",
        about: "bulk through `kubectl port-forward`, and small GETs",
        loads: Loads { gets: Some(Gets::Kept), bulk: Some(Bulk::PortForward), ..NOTHING },
        event: None,
    },
    Scenario {
        name: "beside-tcp",
        about: "one download that shares the link with plain TCP (Cubic)",
        loads: Loads { bulk: Some(Bulk::Download), beside_tcp: true, ..NOTHING },
        event: None,
    },
    Scenario {
        name: "address-change",
        about: "keystrokes in `kubectl exec`, small GETs and 10 `logs -f` while the agent's address changes",
        loads: Loads { gets: Some(Gets::Kept), followers: followers(10, 10), exec: true, ..NOTHING },
        event: Some(Event { at: AFTER_5_S, what: Happening::Network(Action::AddressChange) }),
    },
    Scenario {
        name: "blackout",
        about: "`mixed` and keystrokes in `kubectl exec`, while the network is gone for 5 s",
        loads: Loads {
            gets: Some(Gets::Kept),
            followers: followers(50, 10),
            exec: true,
            bulk: Some(Bulk::Download),
            ..NOTHING
        },
        event: Some(Event { at: AFTER_5_S, what: Happening::Network(Action::Blackout(AFTER_5_S)) }),
    },
    Scenario {
        name: "stub-restart",
        about: "small GETs while the stub is killed and started again",
        loads: Loads { gets: Some(Gets::Kept), ..NOTHING },
        event: Some(Event { at: AFTER_5_S, what: Happening::StubRestart }),
    },
];

impl Scenario {
    /// All of them.
    pub fn all() -> &'static [Self] {
        SCENARIOS
    }

    /// The scenario of this name.
    ///
    /// # Errors
    /// When there is none; the message lists the names there are.
    pub fn get(name: &str) -> Result<Self, UnknownScenario> {
        let known = || SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name).copied();
        found.ok_or_else(|| UnknownScenario { name: name.to_owned(), known: known() })
    }

    /// What happens while it goes on: what the profile says, or else what the scenario is about.
    pub fn events(&self, profile: &Profile) -> Vec<Event> {
        // A restarted stub is not the network's matter.
        let of_scenario = self.event.filter(|event| profile.events.is_empty() || event.what == Happening::StubRestart);
        let of_profile =
            profile.events.iter().map(|event| Event { at: event.at, what: Happening::Network(event.action) });
        of_profile.chain(of_scenario).collect()
    }

    /// How long to measure so that the end of the last event and what follows is part of it, and at least `asked`.
    pub fn length(&self, profile: &Profile, asked: Duration) -> Duration {
        let ends = self.events(profile).into_iter().map(|event| event.end() + AFTERMATH);
        ends.max().unwrap_or_default().max(asked)
    }
}

impl Event {
    /// When it is over.
    pub fn end(&self) -> Duration {
        self.at + self.duration()
    }

    /// How long nothing can pass, whatever the carrier.
    pub fn duration(&self) -> Duration {
        match self.what {
            Happening::Network(Action::Blackout(lasts)) => lasts,
            Happening::Network(_) | Happening::StubRestart => Duration::ZERO,
        }
    }
}

/// There is no such scenario.
#[derive(Debug, thiserror::Error)]
#[error("there is no scenario `{name}`; choose one of: {known}")]
pub struct UnknownScenario {
    name: String,
    known: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profiles;

    #[test]
    fn the_events_of_the_profile_come_before_those_of_the_scenario() {
        let profiles = Profiles::built_in().unwrap();
        let blackout = Scenario::get("blackout").unwrap();
        let long = profiles.get("blackout-60s").unwrap();
        assert_eq!(blackout.events(long).len(), 1);
        assert_eq!(blackout.length(long, Duration::ZERO), Duration::from_secs(75));
        let short = profiles.get("wan-50ms").unwrap();
        assert_eq!(blackout.length(short, Duration::ZERO), Duration::from_secs(20));
    }

    #[test]
    fn an_unknown_scenario_is_an_error_that_lists_the_known_ones() {
        let error = Scenario::get("calm").unwrap_err().to_string();
        assert!(error.contains("`calm`") && error.contains("stub-restart"), "{error}");
    }
}
