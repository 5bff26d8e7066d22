//! Sessions in one file of the stub's state directory.
//!
//! The single use of a session rests on this: before a session is given out, its place in the file is overwritten. The
//! system has that write even if the process dies right after it. It may lose it only together with everything else that was not
//! on the disk yet, when it goes down itself; so a file from before the last boot is not used at all, and nothing here has to
//! wait for the disk. A copy of the file is not used either, nor by two processes at once. What a restored backup of the very same file
//! could still give back is older than the minute within which TLS accepts early data (RFC 8446, section 8.3).

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::record::{self, Header, PLACE};
use super::table::{Bounds, Table};
use super::{LIFETIME, Session, SessionId, SessionStore};
use crate::pki::CertificateFingerprint;

/// All that 10,000 agents may have, who get four with each connection. At most 128 MiB of disk and half of that of memory. One
/// agent may have those of three connections: when a stub is about to stop it looks whether another one answers, and the
/// sessions of such attempts must not take the place of those that it keeps.
const BOUNDS: Bounds = Bounds { total: 64 * 1024, per_agent: 12 };

/// The sessions of a stub, in memory and in a file (0600) that outlives the process.
///
/// At most 65,536 sessions are kept, twelve for each agent, for a day. A system that cannot tell its boots apart (other than
/// Linux) has none that outlive the process.
#[derive(Debug)]
pub struct FileSessions {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    table: Table,
    file: Option<Places>,
    failing: bool,
}

/// Why sessions cannot be kept in a file.
#[derive(Debug, thiserror::Error)]
pub enum SessionFileError {
    /// Another process uses it.
    #[error("{} is in use by another process: each stub needs a state directory of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl FileSessions {
    /// Sessions that end with the process.
    pub fn in_memory() -> Self {
        Self { state: Mutex::new(State { table: Table::new(BOUNDS), file: None, failing: false }) }
    }

    /// Takes up the sessions in the file at `path`, which is created if it is missing. If agents and stub proved themselves by
    /// other `authorities` then, they are forgotten. A file that holds anything else is set aside with the extension `damaged`.
    ///
    /// # Errors
    /// The file is in use, or cannot be read or written.
    pub fn open(
        path: &Path,
        authorities: [CertificateFingerprint; 2],
        now: SystemTime,
    ) -> Result<Self, SessionFileError> {
        let Some(boot) = boot() else { return Ok(Self::in_memory()) };
        let (file, found) = Places::open(path, &boot, authorities)?;
        let mut state = State { table: Table::new(BOUNDS), file: Some(file), failing: false };
        let sessions = found.into_iter().filter(|(_, session)| is_current(session, now));
        // The old places are all free again, so the table may give each session another one.
        for (id, session) in sessions {
            state.put(id, session, now);
        }
        Ok(Self { state: Mutex::new(state) })
    }

    /// Sessions that are kept.
    pub fn len(&self) -> usize {
        self.state().table.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionStore for FileSessions {
    fn put(&self, id: SessionId, session: Session, now: SystemTime) {
        self.state().put(id, session, now);
    }

    fn take(&self, id: &SessionId, now: SystemTime) -> Option<Session> {
        self.state().take(id, now)
    }
}

impl State {
    fn put(&mut self, id: SessionId, session: Session, now: SystemTime) {
        let Some(record) = record::encode(&id, &session) else { return };
        let (place, freed) = self.table.insert(id, session, now);
        let cleared = freed.into_iter().try_for_each(|place| self.write(place, &[0; PLACE]));
        if let Err(error) = cleared.and_then(|()| self.write(place, &record)) {
            self.table.remove(&id);
            self.failed(&error);
        }
    }

    fn take(&mut self, id: &SessionId, now: SystemTime) -> Option<Session> {
        let (place, session) = self.table.remove(id)?;
        // First the file, then the answer. What cannot be marked as given out is not given out.
        match self.write(place, &[0; PLACE]) {
            Ok(()) => is_current(&session, now).then_some(session),
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn write(&mut self, place: u32, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write(place, bytes)?;
        self.failing = false;
        Ok(())
    }

    /// Says it once, not for each of thousands of agents.
    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!("cannot write the file of sessions, so agents reconnect a round trip slower: {error}");
        }
    }
}

/// A clock that was set back must not make a session live for longer.
fn is_current(session: &Session, now: SystemTime) -> bool {
    session.expires.duration_since(now).is_ok_and(|left| left <= LIFETIME)
}

/// An open file of places, locked for this process alone.
#[derive(Debug)]
struct Places(File);

impl Places {
    /// Opens the file and empties it; what it held comes back if this file, this boot and `authorities` are those it was
    /// written for.
    fn open(
        path: &Path,
        boot: &str,
        authorities: [CertificateFingerprint; 2],
    ) -> Result<(Self, Vec<(SessionId, Session)>), SessionFileError> {
        let failed = |source| SessionFileError::Io { path: path.to_owned(), source };
        let mut file = lock(path)?;
        if is_damaged(&file).map_err(failed)? {
            let aside = path.with_extension("damaged");
            fs::rename(path, &aside).map_err(failed)?;
            tracing::warn!("{} is damaged and was set aside as {}", path.display(), aside.display());
            file = lock(path)?;
        }
        let metadata = file.metadata().map_err(failed)?;
        let header = Header { boot: boot.to_owned(), file: (metadata.dev(), metadata.ino()), authorities }.encode();
        let found = sessions(&file, &header).map_err(failed)?;
        // In this order: a process that dies between the two loses sessions and gives none out twice.
        file.set_len(0).map_err(failed)?;
        file.write_all_at(&header, 0).map_err(failed)?;
        Ok((Self(file), found))
    }

    fn write(&self, place: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, (u64::from(place) + 1) * PLACE as u64)
    }
}

fn lock(path: &Path) -> Result<File, SessionFileError> {
    let failed = |source| SessionFileError::Io { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SessionFileError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn is_damaged(file: &File) -> io::Result<bool> {
    let mut beginning = [0; PLACE];
    match file.read_exact_at(&mut beginning, 0) {
        Ok(()) => Ok(!Header::is_one(&beginning)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(file.metadata()?.len() > 0),
        Err(error) => Err(error),
    }
}

/// The sessions of a file, if it begins with `header`. Places that are empty or damaged are passed over.
fn sessions(file: &File, header: &[u8]) -> io::Result<Vec<(SessionId, Session)>> {
    let mut reader = BufReader::new(file);
    let mut place = [0; PLACE];
    let mut found = Vec::new();
    if !fill(&mut reader, &mut place)? || place != header {
        return Ok(found);
    }
    for _ in 0..BOUNDS.total {
        if !fill(&mut reader, &mut place)? {
            break;
        }
        found.extend(record::decode(&place));
    }
    found.sort_by_key(|(_, session)| session.expires);
    Ok(found)
}

/// Reads one place; false at the end of the file.
fn fill(reader: &mut impl Read, place: &mut [u8; PLACE]) -> io::Result<bool> {
    match reader.read_exact(place) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Names this boot of the system (`random(4)`).
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn authorities(number: u8) -> [CertificateFingerprint; 2] {
        [1, number].map(|number| CertificateFingerprint::from_bytes([number; 32]))
    }

    struct Scene {
        directory: tempfile::TempDir,
        now: SystemTime,
    }

    impl Scene {
        fn new() -> Self {
            // Whole seconds, as the file has them.
            Self {
                directory: tempfile::tempdir().unwrap(),
                now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("sessions")
        }

        fn open(&self) -> FileSessions {
            FileSessions::open(&self.path(), authorities(1), self.now).unwrap()
        }

        fn session(&self, secret: &str) -> Session {
            Session {
                agent: "qtunnel://prod/agent/a1".parse().unwrap(),
                expires: self.now + LIFETIME,
                secret: secret.into(),
            }
        }
    }

    fn id(number: u8) -> SessionId {
        SessionId::new([number; SessionId::LENGTH])
    }

    #[test]
    fn sessions_survive_the_process_and_are_private() {
        let scene = Scene::new();
        let store = scene.open();
        store.put(id(1), scene.session("one"), scene.now);
        store.put(id(2), scene.session("two"), scene.now);
        drop(store);
        assert_eq!(fs::metadata(scene.path()).unwrap().mode() & 0o7777, 0o600);
        for _ in 0..2 {
            assert_eq!(scene.open().len(), 2);
        }
        let store = scene.open();
        assert_eq!(store.take(&id(1), scene.now), Some(scene.session("one")));
        assert_eq!(store.take(&id(2), scene.now), Some(scene.session("two")));
    }

    #[test]
    fn a_session_is_given_out_once_and_its_secret_is_gone_from_the_disk() {
        let scene = Scene::new();
        let store = scene.open();
        store.put(id(1), scene.session("open sesame"), scene.now);
        let holds_secret = || fs::read(scene.path()).unwrap().windows(11).any(|bytes| bytes == b"open sesame");
        assert!(holds_secret());
        assert!(store.take(&id(1), scene.now).is_some());
        assert!(!holds_secret());
        assert_eq!(store.take(&id(1), scene.now), None);
        drop(store);
        assert_eq!(scene.open().take(&id(1), scene.now), None);
    }

    #[test]
    fn a_copy_of_the_file_gives_out_nothing() {
        let scene = Scene::new();
        let store = scene.open();
        store.put(id(1), scene.session("one"), scene.now);
        let copy = scene.directory.path().join("copy");
        fs::copy(scene.path(), &copy).unwrap();
        assert!(FileSessions::open(&copy, authorities(1), scene.now).unwrap().is_empty());
        // Also in the place of the one it was copied from.
        drop(store);
        fs::copy(scene.path(), &copy).unwrap();
        fs::rename(&copy, scene.path()).unwrap();
        assert!(scene.open().is_empty());
    }

    #[test]
    fn a_file_from_before_the_last_boot_gives_out_nothing() {
        let scene = Scene::new();
        let (file, _) = Places::open(&scene.path(), "yesterday", authorities(1)).unwrap();
        file.write(0, &record::encode(&id(1), &scene.session("one")).unwrap()).unwrap();
        drop(file);
        assert_eq!(Places::open(&scene.path(), "yesterday", authorities(1)).unwrap().1.len(), 1);
        let (file, _) = Places::open(&scene.path(), "yesterday", authorities(1)).unwrap();
        file.write(0, &record::encode(&id(1), &scene.session("one")).unwrap()).unwrap();
        drop(file);
        assert!(scene.open().is_empty());
    }

    #[test]
    fn sessions_of_other_authorities_are_forgotten() {
        let scene = Scene::new();
        scene.open().put(id(1), scene.session("one"), scene.now);
        assert!(FileSessions::open(&scene.path(), authorities(2), scene.now).unwrap().is_empty());
        assert!(scene.open().is_empty());
    }

    #[test]
    fn a_session_ends_after_a_day_and_not_later_because_the_clock_is_set_back() {
        let scene = Scene::new();
        let minute = Duration::from_secs(60);
        for now in [scene.now + LIFETIME + minute, scene.now - minute] {
            let store = scene.open();
            store.put(id(1), scene.session("one"), scene.now);
            assert_eq!(store.take(&id(1), now), None);
            assert_eq!(store.take(&id(1), scene.now), None);
            store.put(id(2), scene.session("two"), scene.now);
            drop(store);
            assert!(FileSessions::open(&scene.path(), authorities(1), now).unwrap().is_empty());
        }
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_a_damaged_place_passed_over() {
        let scene = Scene::new();
        fs::write(scene.path(), "garbage").unwrap();
        let store = scene.open();
        assert_eq!(fs::read(scene.path().with_extension("damaged")).unwrap(), b"garbage");
        store.put(id(1), scene.session("one"), scene.now);
        store.put(id(2), scene.session("two"), scene.now);
        drop(store);
        let mut bytes = fs::read(scene.path()).unwrap();
        bytes[PLACE + 40] ^= 1;
        fs::write(scene.path(), bytes).unwrap();
        let store = scene.open();
        assert_eq!(store.len(), 1);
        assert!(store.take(&id(2), scene.now).is_some());
    }

    #[test]
    fn a_file_belongs_to_one_process() {
        let scene = Scene::new();
        let _store = scene.open();
        let error = FileSessions::open(&scene.path(), authorities(1), scene.now).unwrap_err();
        assert!(matches!(error, SessionFileError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_session_whose_removal_cannot_be_written_is_not_given_out() {
        let scene = Scene::new();
        let store = scene.open();
        store.put(id(1), scene.session("one"), scene.now);
        store.state().file = Some(Places(File::open(scene.path()).unwrap()));
        assert_eq!(store.take(&id(1), scene.now), None);
        assert_eq!(store.take(&id(1), scene.now), None);
    }

    #[test]
    fn a_session_that_cannot_be_written_is_not_kept() {
        let scene = Scene::new();
        let store = scene.open();
        store.state().file = Some(Places(File::open("/dev/null").unwrap()));
        store.put(id(1), scene.session("one"), scene.now);
        assert!(store.is_empty());
    }

    #[test]
    fn the_file_does_not_grow_without_bound() {
        let scene = Scene::new();
        let store = scene.open();
        for number in 0..200 {
            store.put(id(number), scene.session("secret"), scene.now);
        }
        assert_eq!(store.len(), BOUNDS.per_agent);
        drop(store);
        assert!(fs::metadata(scene.path()).unwrap().len() <= (BOUNDS.per_agent as u64 + 2) * PLACE as u64);
    }
}
