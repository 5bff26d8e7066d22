//! Files that nobody else may read, written so that a crash leaves the old content or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Creates `directory` and its missing parents for the owner alone (0700). One that exists stays as it is.
///
/// # Errors
/// The directory cannot be created.
pub fn create_directory(directory: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| FileError::Write { path: directory.into(), error })
}

/// Writes `contents` to `path` in one step, replacing what was there. The file belongs to its owner alone (0600) from
/// its first moment on, and is on the disk when this returns.
///
/// # Errors
/// The file cannot be written; the previous content is then untouched.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_by(path, contents, |temporary| fs::rename(temporary, path))
}

/// As [`write`](fn@write), but never replaces a file.
///
/// # Errors
/// The file exists already, or cannot be written.
pub fn write_new(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    // link(2), unlike rename(2), refuses a name that is taken.
    write_by(path, contents, |temporary| {
        let linked = fs::hard_link(temporary, path);
        fs::remove_file(temporary)?;
        linked
    })
}

/// Reads a private key, and warns in the log if others than its owner may read it.
///
/// # Errors
/// The file is missing, unreadable, or holds no unencrypted PEM key.
pub fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = read(path)?;
    warn_if_others_may_read(path);
    private_key(path, &text)
}

/// The private key in `text`, which comes from `path`.
///
/// # Errors
/// It holds no unencrypted PEM key.
pub(super) fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(text)
        .map_err(|error| FileError::NotAPrivateKey { path: path.into(), reason: error.to_string() })
}

/// Reads every certificate of a PEM file, in its order; at least one.
///
/// # Errors
/// The file is missing, unreadable, or holds no PEM certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    certificates(path, &read(path)?)
}

/// Every certificate in `text`, which comes from `path`; at least one.
///
/// # Errors
/// It holds no PEM certificate.
pub(super) fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let not_certificates = |reason: String| FileError::NotACertificate { path: path.into(), reason };
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_certificates(error.to_string()))?;
    if certificates.is_empty() { Err(not_certificates("it is empty".to_owned())) } else { Ok(certificates) }
}

/// Warns in the log if others than its owner may read a private key.
pub(super) fn warn_if_others_may_read(path: &Path) {
    if let Ok(mode) = fs::metadata(path).map(|metadata| metadata.permissions().mode())
        && mode & 0o077 != 0
    {
        let mode = format!("{:04o}", mode & 0o7777);
        tracing::warn!(path = %path.display(), mode, "others than the owner may use this private key: set mode 0600");
    }
}

/// Reads a small file whole.
///
/// # Errors
/// The file is missing, unreadable, or longer than 1 MiB.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let read_error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: path.into() },
        _ => FileError::Read { path: path.into(), error },
    };
    let mut contents = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_FILE_LENGTH + 1).read_to_end(&mut contents).map_err(read_error)?;
    if contents.len() as u64 > MAX_FILE_LENGTH {
        return Err(FileError::TooLong { path: path.into() });
    }
    Ok(contents)
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No such file.
    #[error("{} does not exist: check the path, or create the keys first", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {error}; check that the user running this program may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// A file that must not be replaced.
    #[error("{} exists already and is not replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// More than such a file can hold.
    #[error("{} is longer than {MAX_FILE_LENGTH} bytes: it cannot be a key or certificate file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The content is no private key.
    #[error("{} holds no usable private key ({reason}): it must be an unencrypted PEM key", path.display())]
    NotAPrivateKey {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The content is no certificate.
    #[error("{} holds no certificate ({reason}): it must be a PEM file", path.display())]
    NotACertificate {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
}

/// Far above any chain of certificates, far below what would hurt.
const MAX_FILE_LENGTH: u64 = 1 << 20;

fn write_by(path: &Path, contents: &[u8], publish: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), FileError> {
    let temporary = temporary_path(path);
    let written = write_temporary(&temporary, contents).and_then(|()| publish(&temporary));
    match written.and_then(|()| sync_directory(path)) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Nothing more can be done about a leftover, and the first error is the one that explains.
            let _ = fs::remove_file(&temporary);
            Err(match error.kind() {
                io::ErrorKind::AlreadyExists => FileError::Exists { path: path.into() },
                _ => FileError::Write { path: path.into(), error },
            })
        }
    }
}

fn write_temporary(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// A name in the same directory, so that it is on the same file system, that no other writer uses.
fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}.tmp", rand::random::<u64>()))
}

/// Makes the new directory entry survive a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_written_file_belongs_to_its_owner_alone_and_leaves_no_temporary_file() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/state");
        create_directory(&directory).unwrap();
        let path = directory.join("key.pem");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_never_replaces_an_old_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("key.pem");
        write_new(&path, b"first").unwrap();
        assert!(matches!(write_new(&path, b"second"), Err(FileError::Exists { .. })));
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"first".to_vec(), 0o600));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_bad_key_file_is_named_in_the_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("key.pem");
        assert!(matches!(read_private_key(&path), Err(FileError::Missing { .. })));
        write(&path, b"not a key").unwrap();
        let error = read_private_key(&path).unwrap_err();
        assert!(error.to_string().contains("key.pem holds no usable private key"), "{error}");
        write(&path, &vec![b'x'; MAX_FILE_LENGTH as usize + 1]).unwrap();
        assert!(matches!(read_private_key(&path), Err(FileError::TooLong { .. })));
        assert!(matches!(read_private_key(root.path()), Err(FileError::Read { .. })));
    }
}
