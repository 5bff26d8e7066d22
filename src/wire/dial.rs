//! Dialling: a stream that the agent turns into a connection to an address of its own network.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

use super::error::WireError;
use super::fields::{FieldReader, write_field};
use super::head::is_audit_id;

mod field {
    //! The numbers of fields. proto-spec/qtunnel-1.md, section "Messages", lists the same.
    pub const NETWORK: u64 = 0x01;
    pub const ADDRESS: u64 = 0x02;
    pub const AUDIT_ID: u64 = 0x04;
}

/// What a dial stream begins with: where the agent is to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// How.
    pub network: Network,
    /// Where to.
    pub address: DialAddress,
    /// Names the connection in the logs of both sides: 1 to 64 visible ASCII characters.
    pub audit_id: String,
}

/// The transports that an agent dials over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// TCP.
    Tcp,
}

/// A host and a port, as the agent's network knows them.
///
/// ```
/// use qtunnel::wire::DialAddress;
/// let address: DialAddress = "db.internal:5432".parse()?;
/// assert_eq!((address.host(), address.port()), ("db.internal", 5432));
/// assert_eq!("[fd00::1]:22".parse::<DialAddress>()?.host(), "fd00::1");
/// assert!("db.internal".parse::<DialAddress>().is_err());
/// # Ok::<(), qtunnel::wire::InvalidAddress>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DialAddress {
    host: Box<str>,
    port: u16,
}

/// Why a text is not a [`DialAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: use HOST:PORT, with an IPv6 address in brackets")]
pub struct InvalidAddress {
    text: String,
}

impl Dial {
    const NAME: &'static str = "dial";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        if !is_audit_id(&self.audit_id) {
            return Err(WireError::Malformed { message: Self::NAME, field: "audit id" });
        }
        write_field(field::NETWORK, self.network.as_str().as_bytes(), out);
        write_field(field::ADDRESS, self.address.to_string().as_bytes(), out);
        write_field(field::AUDIT_ID, self.audit_id.as_bytes(), out);
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut network, mut address, mut audit_id) = (None, None, None);
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::NETWORK => {
                    let value = field.text("network")?.parse().map_err(|_| field.malformed("network"))?;
                    field.set_once(&mut network, value, "network")?;
                }
                field::ADDRESS => {
                    let value = field.text("address")?.parse().map_err(|_| field.malformed("address"))?;
                    field.set_once(&mut address, value, "address")?;
                }
                field::AUDIT_ID => {
                    let value = field.text("audit id")?;
                    if !is_audit_id(&value) {
                        return Err(field.malformed("audit id"));
                    }
                    field.set_once(&mut audit_id, value, "audit id")?;
                }
                _ => field.unknown()?,
            }
        }
        let missing = |field| WireError::NotExactlyOne { message: Self::NAME, field };
        Ok(Self {
            network: network.ok_or(missing("network"))?,
            address: address.ok_or(missing("address"))?,
            audit_id: audit_id.ok_or(missing("audit id"))?,
        })
    }
}

/// The agent's word that it is connected: both directions are raw bytes from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialed;

impl Dialed {
    const NAME: &'static str = "dialed";

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            field.unknown()?;
        }
        Ok(Self)
    }
}

impl Network {
    /// The name on the wire, and of Go's `net.Dial`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
        }
    }
}

/// Why a text is not a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an agent cannot dial over {0:?}: use \"tcp\"")]
pub struct UnknownNetwork(String);

impl FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        match text {
            "tcp" => Ok(Self::Tcp),
            _ => Err(UnknownNetwork(text.chars().take(MAX_HOST_LENGTH).collect())),
        }
    }
}

/// The longest host name, in bytes (RFC 1035, section 2.3.4, less the length and root bytes).
const MAX_HOST_LENGTH: usize = 253;

impl DialAddress {
    /// The name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for DialAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|&port| port != 0)?;
            let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(literal) => literal.parse::<Ipv6Addr>().ok()?.to_string(),
                None if is_host_name(host) => host.to_ascii_lowercase(),
                None => return None,
            };
            Some(Self { host: host.into(), port })
        };
        // A peer's text is quoted back only as far as a valid one could reach.
        parse().ok_or_else(|| InvalidAddress { text: text.chars().take(MAX_HOST_LENGTH).collect() })
    }
}

impl fmt::Display for DialAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A name that a resolver may be asked for, or an IPv4 address. Underscores are in use, whatever RFC 1123 says.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= MAX_HOST_LENGTH && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_and_is_written_as_it_is_read() {
        for (text, host, port) in [
            ("db.internal:5432", "db.internal", 5432),
            ("DB.Internal:1", "db.internal", 1),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
            ("[fd00::1]:22", "fd00::1", 22),
            ("_srv.x_y.:80", "_srv.x_y.", 80),
        ] {
            let address: DialAddress = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let too_long = format!("{}:80", "a".repeat(MAX_HOST_LENGTH + 1));
        for text in [
            "",
            ":80",
            "db",
            "db:",
            "db:0",
            "db:65536",
            "db:-1",
            "fd00::1:22",
            "[fd00::1]",
            "[db]:1",
            "a..b:1",
            "a..:1",
            ".:1",
            "a b:1",
            "a/b:1",
            &too_long,
        ] {
            assert!(text.parse::<DialAddress>().is_err(), "{text}");
        }
    }
}
