//! Audit events in a file, a line of JSON for each, rotated by size.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;

use super::{AuditEvent, AuditSink, SinkError, Writing};

/// Appends to a file. Before it grows past its bound it becomes `<file>.1`, the `<file>.1` before it `<file>.2`, and so
/// on; the oldest is removed. New files belong to their owner alone (0600).
///
/// Events are with the operating system when a write succeeds; they are not forced to the disk.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    /// Bytes that a file may have.
    max_length: u64,
    /// Rotated files that are kept.
    keep: u32,
    /// `None` after a failure, so that the next write begins anew.
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Where its last whole line ends.
    length: u64,
}

impl FileSink {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub async fn open(path: &Path, max_length: u64, keep: u32) -> io::Result<Self> {
        let open = Some(OpenFile::open(path).await?);
        Ok(Self { path: path.to_owned(), max_length, keep, open })
    }

    async fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenFile::open(&self.path).await?,
        };
        if open.length > 0 && open.length.saturating_add(lines.len() as u64) > self.max_length {
            self.rotate().await?;
            open = OpenFile::open(&self.path).await?;
        }
        open.append(lines).await?;
        self.open = Some(open);
        Ok(())
    }

    async fn rotate(&self) -> io::Result<()> {
        for number in (1..=self.keep).rev() {
            let from = if number == 1 { self.path.clone() } else { self.numbered(number - 1) };
            existing(tokio::fs::rename(from, self.numbered(number)).await)?;
        }
        // It is still there when none is kept.
        existing(tokio::fs::remove_file(&self.path).await)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl AuditSink for FileSink {
    fn write<'a>(&'a mut self, events: &'a [AuditEvent]) -> Writing<'a> {
        Box::pin(async move {
            let lines = lines(events);
            self.append(lines.as_bytes()).await.map_err(|error| SinkError(format!("{}: {error}", self.path.display())))
        })
    }
}

impl OpenFile {
    async fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
        let length = file.metadata().await?.len();
        Ok(Self { file, length })
    }

    /// Appends whole lines or, where that fails, as good as nothing.
    async fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let result = async {
            self.file.write_all(lines).await?;
            self.file.flush().await
        };
        if let Err(error) = result.await {
            // On a full disk half a line may be there; a reader would take it and the next one for one line.
            let _ = self.file.set_len(self.length).await;
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }
}

/// Success also where there was no file.
fn existing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A line of JSON for each event.
pub(super) fn lines(events: &[AuditEvent]) -> String {
    events.iter().flat_map(|event| [event.as_json(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn sink(folder: &Path, keep: u32) -> FileSink {
        FileSink::open(&folder.join("audit.log"), 10, keep).await.unwrap()
    }

    fn read(folder: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(folder.join(name)).ok()
    }

    #[tokio::test]
    async fn a_file_is_rotated_before_it_grows_past_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut sink = sink(folder, 2).await;
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "a line longer than that\n", "eeee\n"] {
            sink.append(line.as_bytes()).await.unwrap();
        }
        assert_eq!(read(folder, "audit.log").unwrap(), "eeee\n");
        assert_eq!(read(folder, "audit.log.1").unwrap(), "a line longer than that\n");
        assert_eq!(read(folder, "audit.log.2").unwrap(), "cccc\n");
        assert_eq!(read(folder, "audit.log.3"), None);
        for name in ["audit.log", "audit.log.1"] {
            let mode = std::fs::metadata(folder.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[tokio::test]
    async fn without_rotated_files_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path(), 0).await;
        sink.append(b"aaaa\nbbbb\n").await.unwrap();
        sink.append(b"cccc\n").await.unwrap();
        assert_eq!(read(folder.path(), "audit.log").unwrap(), "cccc\n");
    }

    #[tokio::test]
    async fn a_restart_goes_on_with_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        sink(folder.path(), 1).await.append(b"aaaa\n").await.unwrap();
        sink(folder.path(), 1).await.append(b"bbbb\n").await.unwrap();
        assert_eq!(read(folder.path(), "audit.log").unwrap(), "aaaa\nbbbb\n");
    }

    #[tokio::test]
    async fn a_failure_is_told_and_the_next_write_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mut sink = sink(&inner, 1).await;
        sink.append(b"aaaa\nbbbb\n").await.unwrap();
        // Rotation makes a file; without the folder there is no place for it.
        std::fs::remove_dir_all(&inner).unwrap();
        assert!(sink.append(b"cccc\n").await.is_err());
        std::fs::create_dir(&inner).unwrap();
        sink.append(b"dddd\n").await.unwrap();
        assert_eq!(read(&inner, "audit.log").unwrap(), "dddd\n");
    }
}
