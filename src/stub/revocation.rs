//! Agents that must not come back, although their certificates are valid: the file `revoked-agents` of the state directory.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::registry::Registry;
use crate::pki::{AgentIdentity, InvalidAgentIdentity};
use crate::wire::ErrorCode;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The agents that a stub turns away, new connections and resumed sessions alike.
///
/// A line of the file is `CLUSTER/AGENT`, as `qtunnel status` names them; empty lines and those that begin with `#` count for
/// nothing. The file is read again when it changes, and may be missing. One that cannot be read changes nothing.
#[derive(Debug)]
pub struct RevokedAgents {
    path: PathBuf,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    text: String,
    agents: HashSet<AgentIdentity>,
}

/// Why it is not known who is revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line names nobody.
    #[error("{}, line {line}: {source}; write CLUSTER/AGENT, as `qtunnel status` names them", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        source: InvalidAgentIdentity,
    },
}

impl RevokedAgents {
    /// Reads the file of a state directory.
    ///
    /// # Errors
    /// It cannot be used. Nobody is let in then, because it might be the one who must not.
    pub fn load(state_dir: &Path) -> Result<Self, RevocationError> {
        let path = state_dir.join("revoked-agents");
        let loaded = parse(&path, read(&path)?)?;
        Ok(Self { path, current: ArcSwap::from_pointee(loaded) })
    }

    /// Whether the agent is to be turned away.
    pub fn contains(&self, agent: &AgentIdentity) -> bool {
        self.current.load().agents.contains(agent)
    }

    /// Follows the file for ever, and closes the connections of those who are revoked, within three seconds.
    pub async fn follow(&self, registry: &Registry) {
        let mut last = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let path = self.path.clone();
            // It fails only when the runtime is stopping.
            let Ok(content) = tokio::task::spawn_blocking(move || read(&path)).await else { return };
            last = self.look(content, last);
            self.close_connections(registry);
        }
    }

    /// Puts the content in force when two looks have found the same: half a file that somebody is writing would let agents
    /// in again.
    fn look(&self, content: Result<String, RevocationError>, last: Option<String>) -> Option<String> {
        let found = match &content {
            Ok(text) if *text == self.current.load().text => return None,
            Ok(text) => text.clone(),
            Err(error) => error.to_string(),
        };
        if last.as_ref() == Some(&found) {
            match content.and_then(|text| parse(&self.path, text)) {
                Ok(loaded) => {
                    tracing::info!(agents = loaded.agents.len(), "the list of revoked agents has changed");
                    self.current.store(loaded.into());
                    return None;
                }
                Err(error) => tracing::error!("the list of revoked agents stays as it was: {error}"),
            }
        }
        Some(found)
    }

    fn close_connections(&self, registry: &Registry) {
        let revoked = self.current.load();
        if revoked.agents.is_empty() {
            return;
        }
        for link in registry.all().iter().filter(|link| revoked.agents.contains(&link.identity)) {
            link.connection.close(ErrorCode::IdentityRejected, "this agent has been revoked");
        }
    }
}

fn read(path: &Path) -> Result<String, RevocationError> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result.map_err(|source| RevocationError::Unreadable { path: path.to_owned(), source }),
    }
}

fn parse(path: &Path, text: String) -> Result<Loaded, RevocationError> {
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let agents = lines
        .map(|(line, name)| agent(name).map_err(|source| RevocationError::Line { path: path.to_owned(), line, source }))
        .collect::<Result<_, _>>()?;
    Ok(Loaded { text, agents })
}

fn agent(line: &str) -> Result<AgentIdentity, InvalidAgentIdentity> {
    let (cluster, agent) = line.split_once('/').ok_or(InvalidAgentIdentity::Form)?;
    AgentIdentity::from_str(&format!("qtunnel://{cluster}/agent/{agent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> AgentIdentity {
        text.parse().unwrap()
    }

    #[test]
    fn the_listed_agents_are_revoked_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!RevokedAgents::load(directory.path()).unwrap().contains(&identity("qtunnel://eu/agent/a1")));
        std::fs::write(directory.path().join("revoked-agents"), "# stolen\n\n eu/a1 \nus/a2\n").unwrap();
        let revoked = RevokedAgents::load(directory.path()).unwrap();
        assert!(revoked.contains(&identity("qtunnel://eu/agent/a1")));
        assert!(revoked.contains(&identity("qtunnel://us/agent/a2")));
        assert!(!revoked.contains(&identity("qtunnel://us/agent/a1")));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_that_names_the_line() {
        let directory = tempfile::tempdir().unwrap();
        for bad in ["eu", "eu/", "eu/a1/x", "EU/a1"] {
            std::fs::write(directory.path().join("revoked-agents"), format!("us/a2\n{bad}\n")).unwrap();
            let error = RevokedAgents::load(directory.path()).unwrap_err().to_string();
            assert!(error.contains("revoked-agents, line 2: "), "{error}");
        }
    }

    #[test]
    fn a_change_counts_when_it_is_found_twice_and_a_bad_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let revoked = RevokedAgents::load(directory.path()).unwrap();
        let agent = identity("qtunnel://eu/agent/a1");
        let first = revoked.look(Ok("eu/a1".to_owned()), None);
        assert!(!revoked.contains(&agent));
        let last = revoked.look(Ok("eu/a1".to_owned()), first);
        assert!(revoked.contains(&agent));
        let last = revoked.look(Ok("nobody".to_owned()), last);
        assert!(revoked.look(Ok("nobody".to_owned()), last).is_some());
        assert!(revoked.contains(&agent));
    }
}
