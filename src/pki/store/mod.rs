//! What all stubs of one address share: keys, join tokens, the list of clusters and that of revoked agents.

mod directory;
mod kubernetes;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use directory::DirectoryStore;
pub use kubernetes::{KubernetesStore, SecretNames};

use super::join_token::TokenId;
use super::private_file::FileError;
use crate::kube::ClusterAccessError;
use crate::wire::ClusterId;

/// Small named values that several processes read and change at once: four tables of them. There is a [`DirectoryStore`] and a
/// [`KubernetesStore`].
///
/// # What an implementation has to do
///
/// - [`swap`](Self::swap) is atomic among everybody who uses the same store: of several that take the same `old`, at most one
///   succeeds. That nobody spends a join token twice rests on it.
/// - What `swap` has written is durable when it returns, and whoever reads later gets it. [`Table::Clusters`] alone may be a
///   few seconds old, because it is read for every request.
/// - Values are secrets: they belong to the stub alone, and never into a log or an error.
/// - Every call ends in seconds, with an error if need be. Calls block: make them from a thread that may.
pub trait Store: fmt::Debug + Send + Sync {
    /// The value of `key`; `None` if there is none.
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError>;

    /// The names in a table that have a value, in any order.
    fn names(&self, table: Table) -> Result<Vec<String>, StoreError>;

    /// Puts `new` in the place of `old`, and says whether it did: it does not if `key` has another value than `old`. `None` is
    /// no value.
    fn swap(&self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, StoreError>;

    /// Where the value of `key` is kept, for people.
    fn place(&self, key: &Key) -> PathBuf;
}

/// What belongs together in a [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Authorities, the server certificate, and their private keys, as PEM files.
    Keys,
    /// Join tokens.
    Tokens,
    /// The clusters that exist: names without content.
    Clusters,
    /// The list of revoked agents, which people write. Stubs read it every second.
    Revoked,
}

/// The name of a value. It holds letters, digits, `-` and `.` only, so that it is a file name and a key of a Secret too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    table: Table,
    name: String,
}

impl Key {
    /// A PEM file.
    pub(super) fn pem(name: impl Into<String>) -> Self {
        Self { table: Table::Keys, name: name.into() }
    }

    /// The record of a join token.
    pub fn token(id: TokenId) -> Self {
        Self { table: Table::Tokens, name: format!("{id}{TOKEN_EXTENSION}") }
    }

    /// The note that a cluster exists.
    pub fn cluster(id: &ClusterId) -> Self {
        Self { table: Table::Clusters, name: id.as_str().to_owned() }
    }

    /// The list of revoked agents, a text.
    pub fn revoked_agents() -> Self {
        Self { table: Table::Revoked, name: "revoked-agents".to_owned() }
    }

    /// A name out of [`Store::names`].
    pub(super) fn listed(table: Table, name: String) -> Self {
        Self { table, name }
    }

    /// The table it is in.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Its name there.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The value of `key`, which has to be there.
pub(super) fn require(store: &dyn Store, key: &Key) -> Result<Vec<u8>, StoreError> {
    let missing = || FileError::Missing { path: store.place(key) };
    Ok(store.get(key)?.ok_or_else(missing)?)
}

/// Gives `key` its first value.
pub(super) fn create(store: &dyn Store, key: &Key, value: &[u8]) -> Result<(), StoreError> {
    match store.swap(key, None, Some(value))? {
        true => Ok(()),
        false => Err(FileError::Exists { path: store.place(key) }.into()),
    }
}

/// What follows the id in the name of a token's record.
pub(super) const TOKEN_EXTENSION: &str = ".json";

/// Why a store cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory or its lock.
    #[error("cannot use {}: {error}", path.display())]
    Directory {
        /// The directory or the lock file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: std::io::Error,
    },
    /// Others change the same values all the time, or somebody holds the lock.
    #[error("{} is being changed by others for more than {} seconds", path.display(), PATIENCE.as_secs())]
    Busy {
        /// What is.
        path: PathBuf,
    },
    /// The cluster that keeps the Secrets cannot be reached at all.
    #[error(transparent)]
    Access(#[from] ClusterAccessError),
    /// The API server refuses, or does not answer.
    #[error("the Secret {secret}: {error}")]
    Secret {
        /// Its namespace and name.
        secret: String,
        /// What the API server or the connection said.
        #[source]
        error: Box<::kube::Error>,
    },
    /// The API server does not answer in time.
    #[error("the Kubernetes API server that keeps the stub's Secrets does not answer within {} seconds", PATIENCE.as_secs())]
    NoAnswer,
    /// The store's own thread is not there.
    #[error("the store has stopped, or the system gives it no thread")]
    Stopped,
}

/// How long a call may take. Far longer than reading and writing something small takes.
const PATIENCE: Duration = Duration::from_secs(10);
