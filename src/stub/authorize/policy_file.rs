//! A policy that follows its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::policy::{self, PolicyError};
use super::{Attributes, Authorizer, Deciding, Policy, decided};
use crate::stub::reload::{Followed, Reload, Source};

/// A policy from a file, read again when the file changes.
///
/// A file that cannot be used changes nothing: the policy before it stays, and one line in the log says what is wrong.
#[derive(Debug, Clone)]
pub struct PolicyFile(Arc<Followed<File>>);

#[derive(Debug)]
struct File(PathBuf);

impl PolicyFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// See [`PolicyError`]. Without a policy there is nothing to go on with.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        Followed::load(File(path.to_owned())).map(|file| Self(Arc::new(file)))
    }

    /// How often the file was found to have changed into something that cannot be used.
    pub fn failures(&self) -> u64 {
        self.0.status().failures
    }

    /// How many rules are in force.
    pub fn rule_count(&self) -> usize {
        self.0.current().rule_count()
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.0.clone()
    }
}

impl Source for File {
    type Content = String;
    type Value = Policy;
    type Error = PolicyError;

    fn name(&self) -> &'static str {
        "policy"
    }

    fn read(&self) -> Result<String, PolicyError> {
        policy::read(&self.0)
    }

    fn build(&self, text: &String) -> Result<Policy, PolicyError> {
        Policy::parse(text).map_err(|why| PolicyError::Invalid { path: self.0.clone(), why })
    }
}

impl Authorizer for PolicyFile {
    fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
        decided(self.0.current().decide(&attributes))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.changes())
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
    async fn what_the_file_says_now_decides() {
        let (folder, file) = file(&policy_for("alice"));
        let changes = file.changes().unwrap();
        assert!(allows(&file, "alice").await && !allows(&file, "bob").await);
        let path = folder.path().join("policy.yaml");
        std::fs::write(&path, "rules: 5").unwrap();
        file.file().check(true);
        assert!(allows(&file, "alice").await);
        assert_eq!(file.failures(), 1);
        assert!(!changes.has_changed().unwrap());
        std::fs::write(&path, policy_for("bob")).unwrap();
        file.file().check(true);
        assert!(allows(&file, "bob").await && !allows(&file, "alice").await);
        assert!(changes.has_changed().unwrap());
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
