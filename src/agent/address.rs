//! Where a stub is.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

/// A stub's address: a host name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StubAddress {
    host: String,
    port: u16,
}

/// Why a stub's address leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The text is no address.
    #[error(
        "{0:?} is not an address of a stub: write HOST:PORT, for example stub.example.com:8443 or [2001:db8::1]:8443"
    )]
    Invalid(String),
    /// The name is not known.
    #[error("cannot find the address of {host}: {source}")]
    Unknown {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// The name has no address.
    #[error("{0} has no address")]
    Empty(String),
}

impl FromStr for StubAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let invalid = || AddressError::Invalid(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let plausible = !host.is_empty() && (bracketed.is_some() || !host.contains(':')) && !host.contains(['/', '@']);
        if plausible { Ok(Self { host: host.to_owned(), port }) } else { Err(invalid()) }
    }
}

impl fmt::Display for StubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl StubAddress {
    /// The host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every address that the name has, at least one.
    pub async fn resolve(&self, patience: Duration) -> Result<Vec<SocketAddr>, AddressError> {
        let addresses = timeout(patience, lookup_host((self.host.as_str(), self.port)))
            .await
            .unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| AddressError::Unknown { host: self.host.clone(), source })?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.is_empty() { Err(AddressError::Empty(self.host.clone())) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_stubs_are_read_and_written() {
        for text in ["stub.example.com:8443", "127.0.0.1:1", "[2001:db8::1]:8443"] {
            assert_eq!(text.parse::<StubAddress>().unwrap().to_string(), text);
        }
        for text in ["", "stub", ":8443", "stub:", "stub:99999", "2001:db8::1:8443", "https://stub:8443", "a@stub:1"] {
            assert!(text.parse::<StubAddress>().is_err(), "{text:?}");
        }
    }
}
