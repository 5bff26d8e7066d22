//! A policy that follows its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::policy::{self, PolicyError};
use super::{Attributes, Authorizer, Deciding, Policy, decided};

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// A policy from a file, read again when the file changes.
///
/// A file that cannot be used changes nothing: the policy before it stays, one line in the log says what is wrong, and
/// [`PolicyFile::failures`] counts it.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    current: ArcSwap<Loaded>,
    changes: watch::Sender<u64>,
    failures: AtomicU64,
}

#[derive(Debug)]
struct Loaded {
    text: String,
    policy: Policy,
}

impl PolicyFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// See [`PolicyError`]. Without a policy there is nothing to go on with.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        Ok(Self {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(load(path, policy::read(path)?)?),
            changes: watch::Sender::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// How often the file was found to have changed into something that cannot be used.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How many rules are in force.
    pub fn rule_count(&self) -> usize {
        self.current.load().policy.rule_count()
    }

    /// Follows the file for ever. It is read again at `now`, and within three seconds after it has changed.
    pub async fn follow(&self, now: &Notify) {
        let mut last = None;
        loop {
            let at_once = tokio::select! {
                () = now.notified() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            let path = self.path.clone();
            // It fails only when the runtime is stopping.
            let Ok(content) = tokio::task::spawn_blocking(move || policy::read(&path)).await else { return };
            last = self.look(content, last, at_once);
        }
    }

    /// Puts the content of the file in force if it is another; gives what the next look has to know.
    ///
    /// Without `at_once` it counts only when the look before found the same: half a file that somebody is writing may
    /// well be a valid policy that takes rights away.
    fn look(&self, content: Result<String, PolicyError>, last: Option<Look>, at_once: bool) -> Option<Look> {
        let found = match &content {
            Ok(text) if *text == self.current.load().text => return None,
            Ok(text) => text.clone(),
            Err(error) => error.to_string(),
        };
        let last = last.filter(|look| look.found == found);
        match last {
            Some(look) if look.refused && !at_once => return Some(look),
            None if !at_once => return Some(Look { found, refused: false }),
            _ => {}
        }
        match content.and_then(|text| load(&self.path, text)) {
            Ok(loaded) => {
                tracing::info!(rules = loaded.policy.rule_count(), "the policy file has changed and is in force");
                self.current.store(Arc::new(loaded));
                self.changes.send_modify(|count| *count += 1);
                None
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!("the policy stays as it was: {error}");
                Some(Look { found, refused: true })
            }
        }
    }
}

/// What was found in the file at a look and is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// The text, or why there was none.
    found: String,
    /// Whether that has been complained about.
    refused: bool,
}

fn load(path: &Path, text: String) -> Result<Loaded, PolicyError> {
    let policy = Policy::parse(&text).map_err(|why| PolicyError::Invalid { path: path.to_owned(), why })?;
    Ok(Loaded { text, policy })
}

impl Authorizer for PolicyFile {
    fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
        decided(self.current.load().policy.decide(&attributes))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::{RequestInfo, RequestPath};
    use crate::wire::{ClusterId, Identity};

    fn policy_for(user: &str) -> String {
        format!(
            "apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n- {{name: all, clusters: ['*'], users: [{user}], \
             verbs: ['*'], apiGroups: ['*'], resources: ['*']}}\n"
        )
    }

    async fn allows(file: &PolicyFile, user: &str) -> bool {
        let (user, cluster): (_, ClusterId) = (Identity::named(user), "eu".parse().unwrap());
        let path = RequestPath::parse("/api/v1/pods").unwrap();
        let request = RequestInfo::new(&http::Method::GET, &path).unwrap();
        let attributes = Attributes { user: &user, requested: None, cluster: &cluster, request: &request };
        file.authorize(attributes).await.unwrap().is_allowed()
    }

    fn file(text: &str) -> (tempfile::TempDir, PolicyFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        let file = PolicyFile::load(&path).unwrap();
        (folder, file)
    }

    #[tokio::test]
    async fn a_change_is_in_force_once_it_has_settled() {
        let (_folder, file) = file(&policy_for("alice"));
        let changes = file.changes().unwrap();
        let look = file.look(Ok(policy_for("bob")), None, false);
        assert!(allows(&file, "alice").await, "seen once it may be half written");
        let look = file.look(Ok(policy_for("carol")), look, false);
        assert!(allows(&file, "alice").await);
        assert_eq!(file.look(Ok(policy_for("carol")), look, false), None);
        assert!(allows(&file, "carol").await && !allows(&file, "alice").await);
        assert!(changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_change_is_in_force_at_once_where_somebody_says_so() {
        let (_folder, file) = file(&policy_for("alice"));
        assert_eq!(file.look(Ok(policy_for("bob")), None, true), None);
        assert!(allows(&file, "bob").await);
    }

    #[tokio::test]
    async fn a_bad_file_changes_nothing_and_is_complained_about_once() {
        let (_folder, file) = file(&policy_for("alice"));
        let changes = file.changes().unwrap();
        let mut look = None;
        for _ in 0..5 {
            look = file.look(Ok("rules: 5".to_owned()), look, false);
        }
        assert_eq!(file.failures(), 1);
        assert!(allows(&file, "alice").await);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(file.look(Ok(policy_for("alice")), look, false), None, "and back it is as before");
    }

    #[tokio::test]
    async fn the_file_is_followed() {
        let (folder, file) = file(&policy_for("alice"));
        let mut changes = file.changes().unwrap();
        let path = folder.path().join("policy.yaml");
        let now = Notify::new();
        let following = file.follow(&now);
        let changed = async {
            std::fs::write(&path, policy_for("bob")).unwrap();
            tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
        };
        tokio::select! {
            () = following => unreachable!("it follows for ever"),
            () = changed => {}
        }
        assert!(allows(&file, "bob").await);
    }

    #[test]
    fn a_stub_does_not_start_with_a_bad_policy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        assert!(matches!(PolicyFile::load(&path), Err(PolicyError::Unreadable { .. })));
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(PolicyFile::load(&path), Err(PolicyError::Invalid { .. })));
    }
}
