//! Which stubs an agent should be connected to: those it was told of, and those that these name in turn.
//!
//! No IO here: what was looked up and heard comes in, and which targets are wanted comes out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::address::StubAddress;
use super::target::Target;

/// The most stubs that an agent connects to. A stub can name others, so something has to bound them.
pub const MAX_STUBS: usize = 64;

/// How long a stub that is not connected any more is believed about others. Without an end, two dead stubs that name each
/// other would be dialled for ever.
pub const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// What is known of stubs.
#[derive(Debug)]
pub struct KnownStubs {
    configured: Vec<StubAddress>,
    /// The last addresses of each name.
    addresses: HashMap<StubAddress, Vec<SocketAddr>>,
    heard: BTreeMap<Target, Heard>,
}

/// What one stub said of others.
#[derive(Debug)]
struct Heard {
    others: Vec<StubAddress>,
    /// Since when the agent is not connected there any more.
    gone_since: Option<Instant>,
}

impl KnownStubs {
    /// Begins with those of the settings.
    pub fn new(configured: Vec<StubAddress>) -> Self {
        Self { configured, addresses: HashMap::new(), heard: BTreeMap::new() }
    }

    /// Notes what the stubs that are connected now say of others.
    pub fn heard(&mut self, connected: &BTreeMap<Target, Vec<StubAddress>>, now: Instant) {
        for (target, others) in connected {
            self.heard.insert(target.clone(), Heard { others: others.clone(), gone_since: None });
        }
        for (target, heard) in &mut self.heard {
            if !connected.contains_key(target) {
                heard.gone_since.get_or_insert(now);
            }
        }
        self.heard.retain(|_, heard| heard.gone_since.is_none_or(|since| now.duration_since(since) < REMEMBERED));
    }

    /// Notes which addresses a name has now. Where none was found it keeps those it had.
    pub fn looked_up(&mut self, name: StubAddress, addresses: Vec<SocketAddr>) {
        let known = self.addresses.entry(name).or_default();
        if !addresses.is_empty() {
            *known = addresses;
        }
    }

    /// Whether there is a name that has not been looked up yet.
    pub fn has_news(&self) -> bool {
        self.names().iter().any(|name| !self.addresses.contains_key(name))
    }

    /// The names to look up now and then, those of the settings first.
    pub fn names(&self) -> Vec<StubAddress> {
        let mut seen = BTreeSet::new();
        let heard = self.heard.values().flat_map(|heard| &heard.others);
        let names = self.configured.iter().chain(heard).filter(|name| seen.insert((*name).clone()));
        names.take(MAX_STUBS).cloned().collect()
    }

    /// Where to be connected. Names are no places before they have been looked up.
    pub fn wanted(&self) -> BTreeSet<Target> {
        self.names().into_iter().flat_map(|name| self.targets(name)).take(MAX_STUBS).collect()
    }

    /// One for each address. A name with a single one, or with none that is known here, is looked up at each attempt: it may
    /// lead elsewhere by then, or only a proxy may know it.
    fn targets(&self, name: StubAddress) -> Vec<Target> {
        match self.addresses.get(&name).map(Vec::as_slice) {
            None => Vec::new(),
            Some([] | [_]) => vec![Target::any(name)],
            Some(several) => several.iter().map(|address| Target::one(name.clone(), *address)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> StubAddress {
        text.parse().unwrap()
    }

    fn any(text: &str) -> Target {
        Target::any(name(text))
    }

    fn look_up_all(known: &mut KnownStubs) {
        known.names().into_iter().for_each(|name| known.looked_up(name, Vec::new()));
    }

    fn says(target: &Target, others: &[&str]) -> BTreeMap<Target, Vec<StubAddress>> {
        BTreeMap::from([(target.clone(), others.iter().map(|other| name(other)).collect())])
    }

    #[test]
    fn each_address_of_a_name_is_a_stub_of_its_own() {
        let mut known = KnownStubs::new(vec![name("stubs:1")]);
        assert!(known.has_news() && known.wanted().is_empty());
        known.looked_up(name("stubs:1"), Vec::new());
        assert_eq!(known.wanted(), BTreeSet::from([any("stubs:1")]));
        let addresses: Vec<SocketAddr> = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| text.parse().unwrap()).to_vec();
        known.looked_up(name("stubs:1"), addresses.clone());
        known.looked_up(name("stubs:1"), Vec::new());
        let each: BTreeSet<Target> =
            addresses.into_iter().map(|address| Target::one(name("stubs:1"), address)).collect();
        assert_eq!(known.wanted(), each);
        known.looked_up(name("stubs:1"), vec!["192.0.2.2:1".parse().unwrap()]);
        assert_eq!(known.wanted(), BTreeSet::from([any("stubs:1")]));
    }

    #[test]
    fn stubs_name_others_and_those_name_more() {
        let mut known = KnownStubs::new(vec![name("a:1")]);
        let now = Instant::now();
        known.heard(&says(&any("a:1"), &["a:1", "b:1"]), now);
        look_up_all(&mut known);
        assert_eq!(known.wanted(), BTreeSet::from([any("a:1"), any("b:1")]));
        known.heard(&says(&any("b:1"), &["c:1"]), now);
        look_up_all(&mut known);
        assert_eq!(known.wanted(), BTreeSet::from([any("a:1"), any("b:1"), any("c:1")]));
    }

    #[test]
    fn a_stub_that_nobody_names_any_more_is_not_wanted() {
        let mut known = KnownStubs::new(vec![name("a:1")]);
        known.heard(&says(&any("a:1"), &["b:1"]), Instant::now());
        look_up_all(&mut known);
        assert_eq!(known.wanted().len(), 2);
        known.heard(&says(&any("a:1"), &[]), Instant::now());
        assert_eq!(known.wanted(), BTreeSet::from([any("a:1")]));
    }

    #[test]
    fn dead_stubs_that_name_each_other_are_forgotten() {
        let mut known = KnownStubs::new(vec![name("a:1")]);
        let start = Instant::now();
        let mut both = says(&any("b:1"), &["c:1"]);
        both.extend(says(&any("c:1"), &["b:1"]));
        known.heard(&both, start);
        known.heard(&BTreeMap::new(), start);
        look_up_all(&mut known);
        assert_eq!(known.wanted().len(), 3);
        known.heard(&BTreeMap::new(), start + REMEMBERED);
        assert_eq!(known.wanted(), BTreeSet::from([any("a:1")]));
    }

    #[test]
    fn a_stub_cannot_make_the_agent_dial_without_end_nor_push_out_those_of_the_settings() {
        let mut known = KnownStubs::new(vec![name("z:1")]);
        let many: Vec<String> = (1..1000).map(|port| format!("a:{port}")).collect();
        known.heard(&says(&any("z:1"), &many.iter().map(String::as_str).collect::<Vec<_>>()), Instant::now());
        look_up_all(&mut known);
        assert_eq!(known.wanted().len(), MAX_STUBS);
        assert!(known.wanted().contains(&any("z:1")));
    }
}
