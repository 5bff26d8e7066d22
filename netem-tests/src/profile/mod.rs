//! Networks by name: what `profiles.toml` and the user's own files say.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::link::PathSettings;

/// The largest packet a link carries unless its profile says otherwise, in bytes: Ethernet's.
pub const DEFAULT_MTU: usize = 1500;

/// One network.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What people call it.
    pub name: String,
    /// What it stands for, in one line.
    pub about: String,
    /// From the agent to the stub.
    pub up: PathSettings,
    /// From the stub to the agent.
    pub down: PathSettings,
    /// The largest IP packet, in bytes; from 1280 to 65535.
    pub mtu: usize,
    /// Whether a firewall drops all UDP.
    pub udp_blocked: bool,
    /// What happens while it is used, in order of time.
    pub events: Vec<Event>,
}

/// Something that happens to a network while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// How long after the script was started.
    pub at: Duration,
    /// What happens.
    pub action: Action,
}

/// What can happen to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing passes in either direction for this long.
    Blackout(Duration),
    /// The NAT in front of the agent forgets its mappings: from now on the stub sees other ports.
    NatRebind,
    /// The agent's side gets another address and loses the one it had.
    AddressChange,
}

/// All profiles known to a run.
#[derive(Debug, Clone)]
pub struct Profiles {
    by_name: BTreeMap<String, Profile>,
}

/// A profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("cannot read profiles from {}", .file.display())]
    Read {
        /// The file asked for.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what `profiles.toml` shows.
    #[error("profiles in {} are not understood: {reason}", .file.display())]
    Syntax {
        /// The file asked for.
        file: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// The file is well-formed, but this profile makes no sense.
    #[error("profile `{name}`: {reason}")]
    Meaning {
        /// The profile.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such profile.
    #[error("there is no profile `{name}`; choose one of: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
}

impl Profiles {
    /// The profiles that come with this package.
    ///
    /// # Errors
    /// When `profiles.toml` of this package is wrong, which its tests rule out.
    pub fn built_in() -> Result<Self, ProfileError> {
        let text = include_str!("../../profiles.toml");
        Ok(Self { by_name: file::parse(Path::new("profiles.toml"), text)? })
    }

    /// The profiles that come with this package and those of `file`, which win where names are equal.
    ///
    /// # Errors
    /// When `file` cannot be read or one of its profiles is wrong.
    pub fn with_file(file: &Path) -> Result<Self, ProfileError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| ProfileError::Read { file: file.to_owned(), source })?;
        let mut profiles = Self::built_in()?;
        profiles.by_name.extend(file::parse(file, &text)?);
        Ok(profiles)
    }

    /// The profile of this name. A percent sign at its end is ignored: `lossy-2%` is `lossy-2`.
    ///
    /// # Errors
    /// When there is none; the message lists the names there are.
    pub fn get(&self, name: &str) -> Result<&Profile, ProfileError> {
        self.by_name.get(name.trim_end_matches('%')).ok_or_else(|| ProfileError::Unknown {
            name: name.to_owned(),
            known: self.by_name.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// All profiles, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Loss;
    use crate::units::Rate;

    fn parse(text: &str) -> Result<BTreeMap<String, Profile>, ProfileError> {
        file::parse(Path::new("mine.toml"), text)
    }

    #[test]
    fn every_built_in_profile_is_understood() {
        let profiles = Profiles::built_in().unwrap();
        let names: Vec<_> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        for name in [
            "clean",
            "lan",
            "wan-50ms",
            "wifi-1%",
            "lossy-2%",
            "lossy-5%",
            "burst",
            "lte",
            "satellite",
            "bufferbloat-10mbit",
            "blackout-5s",
            "blackout-30s",
            "blackout-60s",
            "nat-rebind",
            "address-change",
            "udp-blocked",
        ] {
            assert!(profiles.get(name).is_ok(), "{name} is missing among {names:?}");
        }
    }

    #[test]
    fn the_burst_profile_loses_as_much_as_it_says() {
        let profiles = Profiles::built_in().unwrap();
        let long_run = profiles.get("burst").unwrap().up.loss.long_run();
        assert!((0.0195..0.0205).contains(&long_run), "{long_run}");
    }

    #[test]
    fn one_direction_overrides_single_keys_of_both() {
        let text = r#"
            [mine]
            about = "slower up"
            both = { delay = "10ms", rate = "10mbit", queue = { packets = 10 } }
            up = { rate = "1mbit" }
        "#;
        let mine = parse(text).unwrap().remove("mine").unwrap();
        assert_eq!(mine.up.rate, Rate::new(1_000_000));
        assert_eq!(mine.down.rate, Rate::new(10_000_000));
        assert_eq!(mine.up.delay, Duration::from_millis(10));
        assert_eq!((mine.up.queue.packets, mine.up.queue.bytes), (10, usize::MAX));
    }

    #[test]
    fn loss_is_independent_or_in_bursts() {
        let text = r#"
            [mine]
            about = "both"
            up = { loss = "5%" }
            down = { loss = { enter = "1%", leave = "9%", loss = "100%" } }
        "#;
        let mine = parse(text).unwrap().remove("mine").unwrap();
        assert!(matches!(mine.up.loss, Loss::Independent(share) if share.share() == 0.05));
        assert!((mine.down.loss.long_run() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn events_are_sorted_by_time() {
        let text = r#"
            [mine]
            about = "two events"
            events = [{ at = "2s", what = "nat-rebind" }, { at = "1s", what = "blackout", lasts = "500ms" }]
        "#;
        let mine = parse(text).unwrap().remove("mine").unwrap();
        let blackout = Action::Blackout(Duration::from_millis(500));
        assert_eq!(mine.events[0], Event { at: Duration::from_secs(1), action: blackout });
        assert_eq!(mine.events[1].action, Action::NatRebind);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for (text, named) in [
            ("[mine]\nabout = ''\ncolour = 'red'", "colour"),
            ("[mine]\nabout = ''\nboth = { delya = '1ms' }", "delya"),
            ("[mine]\nabout = ''\nboth = { delay = '1' }", "`1`"),
            ("[mine]\nabout = ''\nboth = { loss = { enter = '1%', leave = '1%', loss = '1%', more = '1%' } }", "more"),
            ("[mine]\nabout = ''\nboth = { loss = '2' }", "`2`"),
            ("[mine]\nabout = ''\nevents = [{ at = '1s', what = 'flood' }]", "flood"),
            ("[mine]\nabout = ''\nevents = [{ at = '1s', what = 'blackout' }]", "lasts"),
            ("[mine]\nabout = ''\nevents = [{ at = '1s', what = 'nat-rebind', lasts = '1s' }]", "lasts"),
            ("[mine]\nabout = ''\nboth = { delay = '1ms', jitter = '2ms' }", "jitter"),
            ("[mine]\nabout = ''\nmtu = 1279", "mtu"),
            ("[mine]", "about"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }
}
