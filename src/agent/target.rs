//! One place where a stub may be found.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::address::{AddressError, StubAddress};

/// A stub's name, and which of its addresses is meant where the name has several: behind each may be another stub.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    name: StubAddress,
    address: Option<SocketAddr>,
}

impl Target {
    /// Whatever address the name has when it is dialled.
    pub fn any(name: StubAddress) -> Self {
        Self { name, address: None }
    }

    /// One of the addresses that the name has.
    pub fn one(name: StubAddress, address: SocketAddr) -> Self {
        Self { name, address: Some(address) }
    }

    /// The name, which the stub's certificate has to be for.
    pub fn name(&self) -> &StubAddress {
        &self.name
    }

    /// The host that a proxy is asked for: it looks names up by itself, but must not choose another of the addresses.
    pub fn host_for_proxy(&self) -> String {
        self.address.map_or_else(|| self.name.host().to_owned(), |address| address.ip().to_string())
    }

    /// The addresses to dial, at least one.
    pub async fn addresses(&self, patience: Duration) -> Result<Vec<SocketAddr>, AddressError> {
        match self.address {
            Some(address) => Ok(vec![address]),
            None => self.name.resolve(patience).await,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} at {}", self.name, address.ip()),
            None => self.name.fmt(f),
        }
    }
}
