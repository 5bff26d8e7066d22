//! A directory as store: a file for each value.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Key, PATIENCE, Store, StoreError, Table};
use crate::pki::private_file::{self, FileError};

/// A directory (0700, files 0600): PEM files and `revoked-agents` directly in it, join tokens in `tokens/`, and an empty file
/// for each cluster in `clusters/`. Any number of threads and processes may use the same directory at once, on a file system where `flock` works.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    directory: PathBuf,
    turn: Arc<Turn>,
}

/// How often a lock that somebody else has is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// The file to lock in each directory.
const LOCK: &str = ".lock";

impl DirectoryStore {
    /// Uses `directory`, which need not exist before something is written.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.into(), turn: Arc::default() }
    }

    fn table(&self, table: Table) -> PathBuf {
        match table {
            Table::Keys | Table::Revoked => self.directory.clone(),
            Table::Tokens => self.directory.join("tokens"),
            Table::Clusters => self.directory.join("clusters"),
        }
    }

    /// Excludes every other thread and process until the file is dropped. The system releases the lock of a process that
    /// dies.
    fn lock(&self, table: Table) -> Result<Lock, StoreError> {
        let path = self.table(table).join(LOCK);
        let failed = |error| StoreError::Directory { path: path.clone(), error };
        let deadline = Instant::now() + PATIENCE;
        let Some(turn) = self.turn.clone().take() else { return Err(StoreError::Busy { path }) };
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file, _turn: turn }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    fn create(&self, key: &Key, value: &[u8]) -> Result<bool, StoreError> {
        private_file::create_directory(&self.table(key.table()))?;
        match private_file::write_new(&self.place(key), value) {
            Ok(()) => Ok(true),
            Err(FileError::Exists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Excludes others until it is dropped: first the other processes, then the other threads of this one.
#[derive(Debug)]
struct Lock {
    _file: File,
    _turn: TakenTurn,
}

/// Where the threads of this process wait for each other. A file has to be asked again and again whether it is free, which
/// many threads at once cannot afford.
#[derive(Debug, Default)]
struct Turn {
    is_taken: Mutex<bool>,
    free: Condvar,
}

#[derive(Debug)]
struct TakenTurn(Arc<Turn>);

impl Turn {
    /// `None` if others take longer than [`PATIENCE`].
    fn take(self: Arc<Self>) -> Option<TakenTurn> {
        let is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.free.wait_timeout_while(is_taken, PATIENCE, |is_taken| *is_taken);
        let (mut is_taken, waited) = waiting.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *is_taken = true;
        drop(is_taken);
        Some(TakenTurn(self))
    }
}

impl Drop for TakenTurn {
    fn drop(&mut self) {
        *self.0.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

impl Store for DirectoryStore {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.place(key);
        match private_file::read(&path) {
            Ok(value) => {
                if key.table() == Table::Keys && key.name().ends_with("-key.pem") {
                    private_file::warn_if_others_may_read(&path);
                }
                Ok(Some(value))
            }
            Err(FileError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn names(&self, table: Table) -> Result<Vec<String>, StoreError> {
        let path = self.table(table);
        let failed = |error| StoreError::Directory { path: path.clone(), error };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // The lock and files that are being written begin with a dot; no other name is anything but UTF-8.
            let name = entry.map_err(failed)?.file_name().into_string().ok();
            names.extend(name.filter(|name| !name.starts_with('.')));
        }
        Ok(names)
    }

    fn swap(&self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, StoreError> {
        if let (None, Some(value)) = (old, new) {
            // Needs no lock: of two that make a new file the system refuses one.
            return self.create(key, value);
        }
        let _lock = self.lock(key.table())?;
        if self.get(key)?.as_deref() != old {
            return Ok(false);
        }
        let path = self.place(key);
        match new {
            Some(value) => private_file::write(&path, value)?,
            None if old.is_some() => {
                fs::remove_file(&path).map_err(|error| StoreError::Directory { path, error })?;
            }
            None => {}
        }
        Ok(true)
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.table(key.table()).join(key.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::cluster(&"c1".parse().unwrap())
    }

    #[test]
    fn threads_that_change_one_value_lose_no_change() {
        const THREADS: u64 = 32;
        let root = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(root.path());
        assert!(store.swap(&key(), None, Some(b"0")).unwrap());
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let store = store.clone();
                scope.spawn(move || {
                    loop {
                        let old = store.get(&key()).unwrap().unwrap();
                        let number: u64 = std::str::from_utf8(&old).unwrap().parse().unwrap();
                        if store.swap(&key(), Some(&old), Some((number + 1).to_string().as_bytes())).unwrap() {
                            return;
                        }
                    }
                });
            }
        });
        assert_eq!(store.get(&key()).unwrap().unwrap(), THREADS.to_string().as_bytes());
    }

    #[test]
    fn a_value_is_replaced_only_by_those_who_know_it() {
        let root = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(&root.path().join("deep"));
        assert_eq!(store.get(&key()).unwrap(), None);
        assert!(store.swap(&key(), None, Some(b"1")).unwrap());
        assert!(!store.swap(&key(), None, Some(b"2")).unwrap());
        assert!(!store.swap(&key(), Some(b"0"), Some(b"2")).unwrap());
        assert!(store.swap(&key(), Some(b"1"), Some(b"2")).unwrap());
        assert_eq!(store.get(&key()).unwrap().as_deref(), Some(b"2".as_slice()));
        assert_eq!(store.names(Table::Clusters).unwrap(), ["c1"]);
        assert!(!store.swap(&key(), Some(b"1"), None).unwrap());
        assert!(store.swap(&key(), Some(b"2"), None).unwrap());
        assert_eq!(store.names(Table::Clusters).unwrap(), Vec::<String>::new());
        assert!(!store.swap(&key(), Some(b"2"), None).unwrap());
    }
}
