//! Files that are followed while the stub runs: read again when they change, and at once when somebody says so.
//!
//! A [`Source`] says how its files are read and understood, [`Followed`] keeps what is in force, and [`follow`] looks after
//! all of them. Whatever cannot be used changes nothing: what was in force stays, one line in the log says what is wrong, and
//! the metrics count it.

use std::fmt::{Debug, Display};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Files that say something together.
pub trait Source: Debug + Send + Sync + 'static {
    /// What the files hold. A change is seen by comparing it.
    type Content: Clone + PartialEq + Send + Sync;
    /// What is made of it.
    type Value: Send + Sync;
    /// Why they cannot be used. It may not hold a secret, because it is logged.
    type Error: Display;

    /// What the content is called: `policy`, for example. It stands in the log and is a label of the metrics.
    fn name(&self) -> &'static str;

    /// Reads the files. It may block.
    ///
    /// # Errors
    /// A file is missing or unreadable.
    fn read(&self) -> Result<Self::Content, Self::Error>;

    /// Understands what they hold.
    ///
    /// # Errors
    /// It cannot be used.
    fn build(&self, content: &Self::Content) -> Result<Self::Value, Self::Error>;
}

/// What files say, at any moment the last that could be used.
pub struct Followed<S: Source> {
    source: S,
    current: ArcSwap<Loaded<S>>,
    /// What the last look found that is not in force.
    pending: Mutex<Option<Look<S::Content>>>,
    changes: watch::Sender<u64>,
    reloads: AtomicU64,
    failures: AtomicU64,
    /// Seconds since the epoch.
    last_success: AtomicI64,
}

struct Loaded<S: Source> {
    content: S::Content,
    value: S::Value,
}

/// How often something was read again, and when it last could be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadStatus {
    /// See [`Source::name`].
    pub name: &'static str,
    /// Changes that came into force.
    pub reloads: u64,
    /// Changes that could not be used.
    pub failures: u64,
    /// When what is in force was read, in seconds since the epoch.
    pub last_success: i64,
}

impl<S: Source> Followed<S> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// They cannot be used, and there is nothing to go on with.
    pub fn load(source: S) -> Result<Self, S::Error> {
        let content = source.read()?;
        let value = source.build(&content)?;
        Ok(Self {
            source,
            current: ArcSwap::from_pointee(Loaded { content, value }),
            pending: Mutex::default(),
            changes: watch::Sender::new(0),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_success: AtomicI64::new(Timestamp::now().as_second()),
        })
    }

    /// What is in force. Hold it briefly.
    pub fn current(&self) -> Current<S> {
        Current(self.current.load())
    }

    /// How many times something else has come into force: part of the key of whatever is remembered under it.
    pub fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Counts up whenever something else has come into force.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts what was found in the files in force if it is another; gives what the next look has to know.
    ///
    /// Without `at_once` it counts only when the look before found the same: half a file that somebody is writing may
    /// well be a valid one that takes rights away.
    fn look(
        &self,
        found: Result<S::Content, S::Error>,
        last: Option<Look<S::Content>>,
        at_once: bool,
    ) -> Option<Look<S::Content>> {
        let found = match found {
            Ok(content) if content == self.current.load().content => return None,
            Ok(content) => Ok(content),
            Err(error) => Err(error.to_string()),
        };
        let last = last.filter(|look| look.found == found);
        match last {
            Some(look) if look.refused && !at_once => return Some(look),
            None if !at_once => return Some(Look { found, refused: false }),
            _ => {}
        }
        let built = found.clone().and_then(|content| {
            let value = self.source.build(&content).map_err(|error| error.to_string())?;
            Ok(Loaded { content, value })
        });
        match built {
            Ok(loaded) => {
                tracing::info!("the {} file has changed and is in force", self.source.name());
                self.current.store(Arc::new(loaded));
                self.reloads.fetch_add(1, Ordering::Relaxed);
                self.last_success.store(Timestamp::now().as_second(), Ordering::Relaxed);
                self.changes.send_modify(|count| *count += 1);
                None
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!("the {} stays as it was: {error}", self.source.name());
                Some(Look { found, refused: true })
            }
        }
    }
}

/// A look at what is in force.
pub struct Current<S: Source>(Guard<Arc<Loaded<S>>>);

impl<S: Source> std::ops::Deref for Current<S> {
    type Target = S::Value;

    fn deref(&self) -> &S::Value {
        &self.0.value
    }
}

/// What was found at a look and is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look<C> {
    /// The content, or why there was none.
    found: Result<C, String>,
    /// Whether that has been complained about.
    refused: bool,
}

impl<S: Source> Debug for Followed<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followed").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Any [`Followed`].
pub trait Reload: Debug + Send + Sync {
    /// Looks at the files. It may block. With `at_once` a change counts even if nobody has seen it twice.
    fn check(&self, at_once: bool);

    /// What came of it so far.
    fn status(&self) -> ReloadStatus;
}

impl<S: Source> Reload for Followed<S> {
    fn check(&self, at_once: bool) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = self.look(self.source.read(), pending.take(), at_once);
    }

    fn status(&self) -> ReloadStatus {
        ReloadStatus {
            name: self.source.name(),
            reloads: self.reloads.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            last_success: self.last_success.load(Ordering::Relaxed),
        }
    }
}

/// Follows all of these for ever. They are read again at `now`, and within three seconds after they have changed.
pub async fn follow(files: Vec<Arc<dyn Reload>>, now: &Notify) {
    let files: Arc<[_]> = files.into();
    loop {
        let at_once = tokio::select! {
            () = now.notified() => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        let files = files.clone();
        let checked = tokio::task::spawn_blocking(move || files.iter().for_each(|file| file.check(at_once)));
        // It fails only when the runtime is stopping.
        if checked.await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A number in a file.
    #[derive(Debug)]
    struct Number(PathBuf);

    impl Source for Number {
        type Content = String;
        type Value = u32;
        type Error = String;

        fn name(&self) -> &'static str {
            "number"
        }

        fn read(&self) -> Result<String, String> {
            std::fs::read_to_string(&self.0).map_err(|error| error.to_string())
        }

        fn build(&self, content: &String) -> Result<u32, String> {
            content.parse().map_err(|_| format!("{content:?} is not a number"))
        }
    }

    fn file() -> (tempfile::TempDir, Arc<Followed<Number>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        (folder, Arc::new(Followed::load(Number(path)).unwrap()))
    }

    #[test]
    fn a_change_is_in_force_once_it_has_been_seen_twice() {
        let (_folder, file) = file();
        let changes = file.changes();
        let look = file.look(Ok("2".to_owned()), None, false);
        assert_eq!(*file.current(), 1, "seen once it may be half written");
        let look = file.look(Ok("3".to_owned()), look, false);
        assert_eq!(*file.current(), 1);
        assert_eq!(file.look(Ok("3".to_owned()), look, false), None);
        assert_eq!(*file.current(), 3);
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn a_change_is_in_force_at_once_where_somebody_says_so() {
        let (_folder, file) = file();
        assert_eq!(file.look(Ok("2".to_owned()), None, true), None);
        assert_eq!(*file.current(), 2);
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_complained_about_once() {
        let (_folder, file) = file();
        let changes = file.changes();
        let mut look = None;
        for _ in 0..5 {
            look = file.look(Ok("x".to_owned()), look, false);
        }
        assert_eq!((file.status().failures, file.status().reloads), (1, 0));
        assert_eq!(*file.current(), 1);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(file.look(Ok("1".to_owned()), look, false), None, "and back it is as before");
    }

    #[tokio::test]
    async fn files_are_followed() {
        let (folder, file) = file();
        let mut changes = file.changes();
        let now = Notify::new();
        let changed = async {
            std::fs::write(folder.path().join("number"), "2").unwrap();
            tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
        };
        tokio::select! {
            () = follow(vec![file.clone()], &now) => unreachable!("it follows for ever"),
            () = changed => {}
        }
        assert_eq!(*file.current(), 2);
    }
}
