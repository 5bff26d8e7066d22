//! To which stubs an agent's process is connected, so that two addresses of one stub make one connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::address::StubAddress;
use super::target::Target;
use crate::wire::Welcome;
use crate::wire::limits::MAX_LIST_ENTRIES;

/// How long a connection may be away before another address of the same stub is tried in its place: longer than most
/// reconnects take.
const STAND_IN_AFTER: Duration = Duration::from_secs(5);

/// How often it is looked whether an address still leads to the stub that it led to.
const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);

/// The links that are connected. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Presence(Arc<watch::Sender<BTreeMap<Target, Connected>>>);

#[derive(Debug)]
struct Connected {
    instance: Option<u64>,
    others: Vec<StubAddress>,
}

impl Presence {
    /// What to tell a stub at `target` in the hello: the other stubs that are connected.
    pub fn beside(&self, target: &Target) -> Vec<u64> {
        let links = self.0.borrow();
        let others = links.iter().filter(|(other, _)| *other != target);
        others.filter_map(|(_, connected)| connected.instance).take(MAX_LIST_ENTRIES).collect()
    }

    /// Notes that the stub at `target` has said welcome to a hello with `told`.
    ///
    /// # Errors
    ///
    /// It is a stub to which another link is connected, and it knew of that. That link is given. A stub that was not told
    /// closes the connection that it took first. Which of the two that was only the stub knows, so that both count until then.
    pub fn enter(&self, target: &Target, told: &[u64], welcome: &Welcome) -> Result<(), Target> {
        let mut result = Ok(());
        self.0.send_if_modified(|links| {
            let same = |connected: &Connected| connected.instance.is_some() && connected.instance == welcome.instance;
            let holder = links.iter().find(|(other, connected)| *other != target && same(connected));
            if let Some((holder, _)) = holder
                && welcome.instance.is_some_and(|instance| told.contains(&instance))
            {
                result = Err(holder.clone());
                return false;
            }
            // What is no address is of no use to anybody.
            let others = welcome.other_stubs.iter().filter_map(|other| other.parse().ok()).collect();
            links.insert(target.clone(), Connected { instance: welcome.instance, others });
            true
        });
        result
    }

    /// Notes that the link to `target` is not connected any more. Gives which stub it led to, if that stub had said so.
    pub fn leave(&self, target: &Target) -> Option<u64> {
        let mut left = None;
        self.0.send_if_modified(|links| {
            left = links.remove(target);
            left.is_some()
        });
        left.and_then(|connected| connected.instance)
    }

    /// Waits until a link is connected to the stub `instance`, and gives it.
    pub async fn holder_of(&self, instance: u64) -> Target {
        let mut links = self.0.subscribe();
        loop {
            let found =
                |(target, link): (&Target, &Connected)| (link.instance == Some(instance)).then(|| target.clone());
            if let Some(holder) = links.borrow_and_update().iter().find_map(found) {
                return holder;
            }
            // The sender lives as long as `self`, so that this does not fail.
            let _ = links.changed().await;
        }
    }

    /// Another link that is connected under the same name.
    pub fn under_the_name_of(&self, target: &Target) -> Option<Target> {
        let links = self.0.borrow();
        links.keys().find(|other| *other != target && other.name() == target.name()).cloned()
    }

    /// Whether there is a connection to `target`.
    pub fn is_connected(&self, target: &Target) -> bool {
        self.0.borrow().contains_key(target)
    }

    /// What each stub that is connected says of others.
    pub fn heard(&self) -> BTreeMap<Target, Vec<StubAddress>> {
        self.0.borrow().iter().map(|(target, connected)| (target.clone(), connected.others.clone())).collect()
    }

    /// Waits for as long as `holder` keeps the connection to the stub that another target leads to as well.
    pub async fn while_held_by(&self, holder: &Target) {
        let mut links = self.0.subscribe();
        let away = async {
            // The sender lives as long as `self`, so that no wait fails.
            loop {
                let _ = links.wait_for(|links| !links.contains_key(holder)).await;
                if timeout(STAND_IN_AFTER, links.wait_for(|links| links.contains_key(holder))).await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(LOOK_AGAIN.mul_f64(0.75 + rand::random::<f64>() / 2.0), away).await;
    }

    /// Tells of changes.
    pub fn changes(&self) -> PresenceChanges {
        PresenceChanges(self.0.subscribe())
    }
}

/// Changes of a [`Presence`].
#[derive(Debug)]
pub struct PresenceChanges(watch::Receiver<BTreeMap<Target, Connected>>);

impl PresenceChanges {
    /// Waits for the next one.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::any(text.parse().unwrap())
    }

    fn welcome(instance: Option<u64>) -> Welcome {
        Welcome { stub: String::new(), report_interval: Duration::from_secs(5), other_stubs: Vec::new(), instance }
    }

    #[test]
    fn a_second_address_of_a_stub_that_knew_makes_way() {
        let (presence, a, b) = (Presence::default(), target("a:1"), target("b:1"));
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        assert_eq!(presence.beside(&b), [7]);
        assert_eq!(presence.enter(&b, &[7], &welcome(Some(7))), Err(a.clone()));
        assert!(presence.is_connected(&a) && !presence.is_connected(&b));
        presence.enter(&b, &[7], &welcome(Some(8))).unwrap();
        assert!(presence.is_connected(&b));
    }

    #[test]
    fn two_addresses_of_a_stub_that_did_not_know_both_count_until_it_closes_one() {
        let (presence, a, b) = (Presence::default(), target("a:1"), target("b:1"));
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        presence.enter(&b, &[], &welcome(Some(7))).unwrap();
        assert!(presence.is_connected(&a) && presence.is_connected(&b));
        assert_eq!(presence.leave(&a), Some(7));
        assert!(!presence.is_connected(&a) && presence.is_connected(&b));
    }

    #[test]
    fn stubs_that_do_not_say_who_they_are_count_as_different() {
        let (presence, a, b) = (Presence::default(), target("a:1"), target("b:1"));
        presence.enter(&a, &[], &welcome(None)).unwrap();
        presence.enter(&b, &[], &welcome(None)).unwrap();
        assert!(presence.is_connected(&a) && presence.is_connected(&b));
        assert!(presence.beside(&a).is_empty());
    }

    #[test]
    fn a_link_may_move_to_another_connection() {
        let (presence, a) = (Presence::default(), target("a:1"));
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        assert!(presence.beside(&a).is_empty());
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        assert!(presence.is_connected(&a));
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_lost_its_place_hears_which_other_link_took_it() {
        let (presence, a, b) = (Presence::default(), target("a:1"), target("b:1"));
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        let lost = presence.leave(&a).unwrap();
        let waiting = tokio::spawn({
            let presence = presence.clone();
            async move { presence.holder_of(lost).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        presence.enter(&b, &[], &welcome(Some(7))).unwrap();
        assert_eq!(waiting.await.unwrap(), b);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_stands_in_only_when_the_other_one_stays_away() {
        let (presence, a) = (Presence::default(), target("a:1"));
        presence.enter(&a, &[], &welcome(Some(7))).unwrap();
        let waiting = tokio::spawn({
            let (presence, a) = (presence.clone(), a.clone());
            async move { presence.while_held_by(&a).await }
        });
        tokio::time::sleep(STAND_IN_AFTER).await;
        presence.leave(&a);
        tokio::time::sleep(STAND_IN_AFTER / 2).await;
        presence.enter(&a, &[], &welcome(Some(8))).unwrap();
        tokio::time::sleep(STAND_IN_AFTER * 2).await;
        assert!(!waiting.is_finished());
        presence.leave(&a);
        tokio::time::sleep(STAND_IN_AFTER * 2).await;
        assert!(waiting.is_finished());
    }
}
