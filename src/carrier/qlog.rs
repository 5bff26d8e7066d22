//! Records of what QUIC does, one file for each connection, for whoever looks into a bad network.
//!
//! The files are JSON text sequences (RFC 7464) of qlog events (draft-ietf-quic-qlog-main-schema), which qvis and Wireshark
//! read. They tell of packets and of congestion control, and hold neither keys nor contents.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::{QlogConfig, QlogStream};

/// Files that one process makes at most. Connections beyond are not recorded.
pub const MAX_QLOG_FILES: u64 = 1000;

/// Bytes that one process writes at most, into all files together: 1 GiB. What comes after is not recorded.
pub const MAX_QLOG_BYTES: u64 = 1 << 30;

/// A directory where the connections of this process are recorded. Clones share its bounds.
///
/// Recording is for looking into a problem: each packet costs a line of text, written on the thread that handles it.
#[derive(Debug, Clone)]
pub struct QlogDirectory {
    path: PathBuf,
    bounds: Arc<Bounds>,
}

#[derive(Debug)]
struct Bounds {
    files_left: AtomicU64,
    bytes_left: AtomicU64,
}

/// Who began a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Accepted,
    Dialled,
}

impl QlogDirectory {
    /// Records into the directory `path`, which is made for the owner alone (0700) if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let bounds = Bounds { files_left: MAX_QLOG_FILES.into(), bytes_left: MAX_QLOG_BYTES.into() };
        Ok(Self { path: path.into(), bounds: Arc::new(bounds) })
    }

    /// Records a connection with `peer` from now on. `None`, with a word in the log, if that is not possible: a connection is
    /// worth more than its record.
    pub(super) fn record(&self, origin: Origin, peer: SocketAddr) -> Option<QlogStream> {
        let number = self.bounds.next_file()?;
        let path = self.path.join(file_name(origin, number));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file =
            file.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot record a connection"));
        let mut config = QlogConfig::default();
        config
            .title(Some(format!("qtunnel {}: {} {peer}", env!("CARGO_PKG_VERSION"), origin.verb())))
            .writer(Box::new(Record::new(file.ok()?, self.bounds.clone())));
        config.into_stream()
    }
}

impl PartialEq for QlogDirectory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bounds, &other.bounds)
    }
}

impl Eq for QlogDirectory {}

impl Bounds {
    /// The number of the next file, if there may be one.
    fn next_file(&self) -> Option<u64> {
        let left =
            self.files_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
        if left == 1 {
            tracing::warn!("this is the last of {MAX_QLOG_FILES} connections that are recorded");
        }
        Some(MAX_QLOG_FILES - left)
    }

    /// Takes what has to be written, and says whether there was anything left before.
    fn take(&self, length: usize) -> bool {
        let take = |left: u64| Some(left.saturating_sub(length as u64));
        self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok_and(|left| left > 0)
    }
}

impl Origin {
    fn verb(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Dialled => "dialled",
        }
    }
}

/// Unique even if the directory has files of earlier processes.
fn file_name(origin: Origin, number: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{}-{number:04}.sqlog", origin.verb(), now.as_millis(), std::process::id())
}

/// What begins each event (RFC 7464, section 2.2).
const RECORD_SEPARATOR: u8 = 0x1e;

/// How old what is in the file may be when something is added: whoever looks into a problem wants to see it happen.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The file of one connection. It ends with a whole event.
struct Record {
    file: BufWriter<File>,
    bounds: Arc<Bounds>,
    is_full: bool,
    has_failed: bool,
    flushed_at: Instant,
}

impl Record {
    fn new(file: File, bounds: Arc<Bounds>) -> Self {
        Self { file: BufWriter::new(file), bounds, is_full: false, has_failed: false, flushed_at: Instant::now() }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.first() == Some(&RECORD_SEPARATOR) && self.flushed_at.elapsed() > FLUSH_EVERY {
            self.flushed_at = Instant::now();
            self.file.flush()?;
        }
        self.file.write_all(bytes)
    }
}

impl Write for Record {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let has_room = self.bounds.take(bytes.len());
        if bytes.first() == Some(&RECORD_SEPARATOR) {
            self.is_full = !has_room;
        }
        if !self.is_full
            && !self.has_failed
            && let Err(error) = self.add(bytes)
        {
            // quinn would warn of each event.
            self.has_failed = true;
            tracing::warn!(%error, "the record of a connection ends here");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn peer() -> SocketAddr {
        "192.0.2.1:443".parse().unwrap()
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_record_is_private_and_begins_with_what_it_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/qlog");
        drop(QlogDirectory::new(&path).unwrap().record(Origin::Dialled, peer()).unwrap());
        let [file] = files(&path).try_into().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&file).unwrap();
        let header: serde_json::Value = serde_json::from_str(text.trim_start_matches('\u{1e}')).unwrap();
        assert!(header["title"].as_str().unwrap().ends_with("dialled 192.0.2.1:443"), "{header}");
    }

    #[test]
    fn no_more_connections_are_recorded_than_allowed() {
        let root = tempfile::tempdir().unwrap();
        let directory = QlogDirectory::new(root.path()).unwrap();
        directory.bounds.files_left.store(2, Ordering::Relaxed);
        let recorded = (0..5).filter(|_| directory.record(Origin::Accepted, peer()).is_some()).count();
        assert_eq!((recorded, files(root.path()).len()), (2, 2));
    }

    #[test]
    fn what_goes_past_the_bound_is_left_out_by_whole_events() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("record");
        let bounds = Arc::new(Bounds { files_left: 1.into(), bytes_left: 3.into() });
        let mut record = Record::new(File::create(&path).unwrap(), bounds);
        for part in ["\u{1e}", "one", "\n", "\u{1e}", "two", "\n"] {
            record.write_all(part.as_bytes()).unwrap();
        }
        drop(record);
        assert_eq!(fs::read_to_string(&path).unwrap(), "\u{1e}one\n");
    }
}
