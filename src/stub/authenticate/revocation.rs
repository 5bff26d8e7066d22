//! Users and certificates that are not accepted any more.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Credentials, NotVouched, Vouched};
use crate::stub::reload::{Followed, Reload};
use crate::stub::text_file::{TextFile, TextFileError};

/// A file that takes users and certificates back, read again when it changes: a line `user NAME` for each user, however they
/// authenticate, and `certificate SERIAL` for each client certificate, its serial number in hexadecimal as `openssl x509
/// -serial` prints it, colons or not. Lines that begin with `#` say nothing.
#[derive(Debug, Clone)]
pub struct RevocationList(Arc<Followed<TextFile<Revoked>>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Revoked {
    users: HashSet<String>,
    serials: HashSet<Vec<u8>>,
}

impl RevocationList {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or a line of it means nothing.
    pub fn load(path: &Path) -> Result<Self, TextFileError> {
        Followed::load(TextFile::new(path, "revocation", Revoked::parse)).map(|file| Self(Arc::new(file)))
    }

    /// Whether the credentials still count.
    ///
    /// # Errors
    /// [`NotVouched::Refused`] if they do not.
    pub fn check(&self, credentials: &Credentials, vouched: &Vouched) -> Result<(), NotVouched> {
        let revoked = self.0.current();
        if revoked.users.contains(&vouched.identity.user) {
            return Err(NotVouched::Refused(format!("the user {:?} is revoked", vouched.identity.user)));
        }
        match credentials.certificate().is_some_and(|certificate| revoked.serials.contains(&certificate.serial)) {
            true => Err(NotVouched::Refused(format!("the certificate of {:?} is revoked", vouched.identity.user))),
            false => Ok(()),
        }
    }

    /// Counts up whenever another list has come into force.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.0.clone()
    }
}

impl Revoked {
    fn parse(text: &str) -> Result<Self, String> {
        let mut revoked = Self::default();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (kind, name) = line.split_once(' ').unwrap_or((line, ""));
            match (kind, name.trim()) {
                ("user", name) if !name.is_empty() => drop(revoked.users.insert(name.to_owned())),
                ("certificate", serial) => {
                    let serial = serial_number(serial).ok_or_else(|| {
                        format!("line {number}: {serial:?} is not a serial number in hexadecimal such as 4A:0F:33")
                    })?;
                    revoked.serials.insert(serial);
                }
                _ => return Err(format!("line {number} is neither `user NAME` nor `certificate SERIAL`")),
            }
        }
        Ok(revoked)
    }
}

/// The bytes of a serial number without leading zeros.
fn serial_number(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|character| *character != ':')
        .map(|character| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let digits: Vec<u8> = digits.into_iter().skip_while(|digit| *digit == 0).collect();
    // An odd number of digits lacks the leading zero.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let bytes =
        first.iter().copied().chain(rest.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)));
    let bytes: Vec<u8> = bytes.collect();
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_certificates_are_revoked_line_by_line() {
        let revoked = Revoked::parse("# gone\nuser alice\n\n  user  o'neil of it \ncertificate 0A:ff\n").unwrap();
        let users = ["alice", "o'neil of it"].map(str::to_owned);
        assert_eq!(revoked, Revoked { users: users.into(), serials: [vec![0x0a, 0xff]].into() });
    }

    #[test]
    fn a_line_that_means_nothing_is_an_error() {
        for line in ["alice", "user", "user ", "group devs", "certificate", "certificate xyz", "certificate 00"] {
            let error = Revoked::parse(&format!("user bob\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 2"), "{line}: {error}");
        }
    }

    #[test]
    fn a_serial_number_is_read_however_it_is_written() {
        for text in ["0aff", "AFF", "00:0a:FF"] {
            assert_eq!(serial_number(text), Some(vec![0x0a, 0xff]), "{text}");
        }
    }
}
