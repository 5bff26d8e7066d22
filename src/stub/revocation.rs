//! Agents that must not come back, although their certificates are valid: the list `revoked-agents` of the store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::registry::Registry;
use super::reload::{Followed, Reload, Source};
use crate::pki::store::{Key, Store, StoreError};
use crate::pki::{AgentIdentity, InvalidAgentIdentity};
use crate::wire::ErrorCode;

/// How often the list is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The agents that every stub of a store turns away, new connections and resumed sessions alike.
///
/// A line of the list is `CLUSTER/AGENT`, as `qtunnel status` names them; empty lines and those that begin with `#` count for
/// nothing. The list is read again all the time, and may be missing. One that cannot be read changes nothing.
#[derive(Debug, Clone)]
pub struct RevokedAgents(Arc<Followed<StoredList>>);

/// Why it is not known who is revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The list cannot be read.
    #[error("cannot read the list of revoked agents: {0}")]
    Store(#[from] StoreError),
    /// The list is no text.
    #[error("{}: it is not UTF-8; write CLUSTER/AGENT on a line for each agent", place.display())]
    NoText {
        /// The list.
        place: PathBuf,
    },
    /// A line names nobody.
    #[error("{}, line {line}: {source}; write CLUSTER/AGENT, as `qtunnel status` names them", place.display())]
    Line {
        /// The list.
        place: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        source: InvalidAgentIdentity,
    },
    /// There is a list that nobody would look at.
    #[error("{} counts for nothing, because [store] keeps the list: move it to {}", path.display(), place.display())]
    Misplaced {
        /// Where it is.
        path: PathBuf,
        /// Where it has to be.
        place: PathBuf,
    },
}

impl RevokedAgents {
    /// Reads the list in `store`. It blocks.
    ///
    /// # Errors
    /// It cannot be used, or there is one in `state_dir` that does not count. Nobody is let in then, because it might be the one
    /// who must not.
    pub fn load(store: Arc<dyn Store>, state_dir: &Path) -> Result<Self, RevocationError> {
        let list = StoredList(store);
        let (path, place) = (state_dir.join("revoked-agents"), list.place());
        if path.exists() && !is_same_file(&path, &place) {
            return Err(RevocationError::Misplaced { path, place });
        }
        Ok(Self(Arc::new(Followed::load(list)?)))
    }

    /// Whether the agent is to be turned away.
    pub fn contains(&self, agent: &AgentIdentity) -> bool {
        self.0.current().contains(agent)
    }

    /// Follows the list for ever, and closes the connections of those who are revoked, within three seconds.
    pub async fn follow(&self, registry: &Registry) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let list = self.0.clone();
            // It fails only when the runtime is stopping.
            let Ok(()) = tokio::task::spawn_blocking(move || list.check(false)).await else { return };
            self.close_connections(registry);
        }
    }

    fn close_connections(&self, registry: &Registry) {
        let revoked = self.0.current();
        if revoked.is_empty() {
            return;
        }
        for link in registry.all().iter().filter(|link| revoked.contains(&link.identity)) {
            link.connection.close(ErrorCode::IdentityRejected, "this agent has been revoked");
        }
    }
}

/// The list in a store.
#[derive(Debug)]
struct StoredList(Arc<dyn Store>);

impl StoredList {
    fn place(&self) -> PathBuf {
        self.0.place(&Key::revoked_agents())
    }
}

impl Source for StoredList {
    type Content = Vec<u8>;
    type Value = HashSet<AgentIdentity>;
    type Error = RevocationError;

    fn name(&self) -> &'static str {
        "revoked-agents"
    }

    fn read(&self) -> Result<Vec<u8>, RevocationError> {
        Ok(self.0.get(&Key::revoked_agents())?.unwrap_or_default())
    }

    fn build(&self, text: &Vec<u8>) -> Result<HashSet<AgentIdentity>, RevocationError> {
        let text = std::str::from_utf8(text).map_err(|_| RevocationError::NoText { place: self.place() })?;
        let lines = (1..).zip(text.lines().map(str::trim));
        lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(line, name)| {
                agent(name).map_err(|source| RevocationError::Line { place: self.place(), line, source })
            })
            .collect()
    }
}

fn agent(line: &str) -> Result<AgentIdentity, InvalidAgentIdentity> {
    let (cluster, agent) = line.split_once('/').ok_or(InvalidAgentIdentity::Form)?;
    AgentIdentity::from_str(&format!("qtunnel://{cluster}/agent/{agent}"))
}

/// Whether both paths lead to one file that is there.
fn is_same_file(path: &Path, other: &Path) -> bool {
    path.canonicalize().ok().is_some_and(|path| other.canonicalize().is_ok_and(|other| path == other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::DirectoryStore;

    fn identity(text: &str) -> AgentIdentity {
        text.parse().unwrap()
    }

    fn load(directory: &Path) -> Result<RevokedAgents, RevocationError> {
        RevokedAgents::load(Arc::new(DirectoryStore::new(directory)), directory)
    }

    #[test]
    fn the_listed_agents_are_revoked_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!load(directory.path()).unwrap().contains(&identity("qtunnel://eu/agent/a1")));
        std::fs::write(directory.path().join("revoked-agents"), "# stolen\n\n eu/a1 \nus/a2\n").unwrap();
        let revoked = load(directory.path()).unwrap();
        assert!(revoked.contains(&identity("qtunnel://eu/agent/a1")));
        assert!(revoked.contains(&identity("qtunnel://us/agent/a2")));
        assert!(!revoked.contains(&identity("qtunnel://us/agent/a1")));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_that_names_the_line() {
        let directory = tempfile::tempdir().unwrap();
        for bad in ["eu", "eu/", "eu/a1/x", "EU/a1"] {
            std::fs::write(directory.path().join("revoked-agents"), format!("us/a2\n{bad}\n")).unwrap();
            let error = load(directory.path()).unwrap_err().to_string();
            assert!(error.contains("revoked-agents, line 2: "), "{error}");
        }
    }

    #[test]
    fn a_change_counts_when_it_is_found_twice_and_a_bad_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let (list, agent) = (directory.path().join("revoked-agents"), identity("qtunnel://eu/agent/a1"));
        let revoked = load(directory.path()).unwrap();
        std::fs::write(&list, "eu/a1").unwrap();
        revoked.0.check(false);
        assert!(!revoked.contains(&agent));
        revoked.0.check(false);
        assert!(revoked.contains(&agent));
        std::fs::write(&list, "nobody").unwrap();
        revoked.0.check(false);
        revoked.0.check(false);
        assert!(revoked.contains(&agent));
    }

    #[test]
    fn a_list_beside_the_store_is_refused_and_not_passed_over() {
        let (store, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(state_dir.path().join("revoked-agents"), "eu/a1").unwrap();
        let load = || RevokedAgents::load(Arc::new(DirectoryStore::new(store.path())), state_dir.path());
        let error = load().unwrap_err().to_string();
        assert!(error.contains("move it to"), "{error}");
        std::fs::rename(state_dir.path().join("revoked-agents"), store.path().join("revoked-agents")).unwrap();
        assert!(load().unwrap().contains(&identity("qtunnel://eu/agent/a1")));
    }
}
