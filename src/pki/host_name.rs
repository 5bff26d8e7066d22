//! The names under which clients reach the stub.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rustls::pki_types::DnsName;
use x509_parser::extensions::GeneralName;

/// A DNS name, a wildcard such as `*.example.com`, or an IP address: a name that a server certificate can carry.
///
/// ```
/// use qtunnel::pki::HostName;
/// assert!("*.k8s.example.com".parse::<HostName>().is_ok());
/// assert!("https://example.com".parse::<HostName>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostName {
    /// A DNS name in lower case, perhaps with `*` as its first label (RFC 9525, section 6.3).
    Dns(String),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
}

impl HostName {
    /// The name as a certificate carries it; `None` for every other kind of name.
    pub(super) fn from_general_name(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(name) => name.parse().ok(),
            GeneralName::IPAddress(octets) => ip_from_octets(octets).map(Self::Ip),
            _ => None,
        }
    }

    /// Every name directly below this one; `None` for an address and for a wildcard.
    pub fn wildcard_below(&self) -> Option<Self> {
        match self {
            Self::Dns(name) if !name.starts_with("*.") => Some(Self::Dns(format!("*.{name}"))),
            _ => None,
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<Self, InvalidHostName> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let without_wildcard = text.strip_prefix("*.").unwrap_or(text);
        match DnsName::try_from(without_wildcard) {
            // A name of digits and dots alone is a mistyped address, never a host (RFC 1123, section 2.1).
            Ok(_) if !without_wildcard.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
                Ok(Self::Dns(text.to_ascii_lowercase()))
            }
            _ => Err(InvalidHostName(text.chars().take(MAX_DNS_NAME_LENGTH).collect())),
        }
    }
}

/// A text that is neither a DNS name nor an IP address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a DNS name nor an IP address: give the bare name, without scheme, port or path")]
pub struct InvalidHostName(String);

/// RFC 1035, section 2.3.4.
const MAX_DNS_NAME_LENGTH: usize = 253;

fn ip_from_octets(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_wildcards_and_addresses_are_told_apart() {
        assert_eq!("Stub.Example.com".parse(), Ok(HostName::Dns("stub.example.com".to_owned())));
        assert_eq!("*.example.com".parse(), Ok(HostName::Dns("*.example.com".to_owned())));
        assert_eq!("::1".parse(), Ok(HostName::Ip(Ipv6Addr::LOCALHOST.into())));
        for bad in ["", "*", "*.", "a:443", "https://a", "a/b", "a.*.b", "300.1.1.1", "a b", "-a"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?} must be refused");
        }
    }
}
