//! Connections into the agent's network, for programs that build on the tunnel: [`serve`].
//!
//! The API server is not all that is private. What else may be reached is the agent's own decision: [`ForwardPolicy`].

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::carrier::{FrameReceiver, FrameSender, relay};
use crate::wire::{Dial, DialAddress, Dialed, ErrorCode, Failure, FailureReason, Frame};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to where the stub asks, if `policy` allows it, and carries bytes until both directions have ended.
pub async fn serve(policy: &ForwardPolicy, dial: Dial, mut sender: FrameSender, receiver: FrameReceiver) {
    let Dial { address, audit_id, .. } = dial;
    let gone = sender.stopped();
    let connected = tokio::select! {
        connected = connect(policy, &address) => connected,
        _ = gone => return sender.reset(ErrorCode::Cancelled),
    };
    let answer = match &connected {
        Ok(_) => Frame::Dialed(Dialed),
        Err(error) => Frame::Failure(error.failure(&address)),
    };
    let sent = sender.send(&answer).await;
    match (connected, sent) {
        (Ok(socket), Ok(())) => {
            tracing::info!(%audit_id, %address, "connected");
            sender.make_raw();
            relay(socket, sender, receiver, ErrorCode::UpstreamAborted, None).await;
        }
        (Err(error), Ok(())) => {
            tracing::info!(%audit_id, "did not connect to {address}: {error}");
            // Fails only when nobody waits for it any more.
            let _ = sender.finish().await;
        }
        (_, Err(error)) => tracing::debug!(%audit_id, "nobody waits for the connection to {address}: {error}"),
    }
}

async fn connect(policy: &ForwardPolicy, address: &DialAddress) -> Result<TcpStream, ForwardError> {
    if !policy.allows(address) {
        return Err(ForwardError::NotAllowed);
    }
    let connecting = TcpStream::connect((address.host(), address.port()));
    let socket = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_elapsed| ForwardError::TimedOut)??;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("this agent does not connect there; its `--allow-dial` says where it does")]
    NotAllowed,
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl ForwardError {
    fn failure(&self, address: &DialAddress) -> Failure {
        let reason = match self {
            Self::NotAllowed => FailureReason::Forbidden,
            Self::TimedOut | Self::Failed(_) => FailureReason::UpstreamUnreachable,
        };
        Failure { reason, dispatched: false, message: format!("{address}: {self}") }
    }
}

/// Where an agent connects to besides its API server, whatever the stub says. The default is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardPolicy {
    /// An address is allowed where one of these matches it.
    pub allow: Vec<AddressPattern>,
}

impl ForwardPolicy {
    /// Whether the agent connects to this address. A host is compared as it is named: an address that a name resolves to is
    /// not looked at.
    pub fn allows(&self, address: &DialAddress) -> bool {
        self.allow.iter().any(|pattern| pattern.matches(address))
    }
}

/// `HOST:PORT`, where the host may begin with `*.` (every name below that domain) and the port may be `*`.
///
/// ```
/// use qtunnel::agent::AddressPattern;
/// let pattern: AddressPattern = "*.db.internal:5432".parse()?;
/// assert!(pattern.matches(&"main.db.internal:5432".parse()?));
/// assert!(!pattern.matches(&"db.internal:5432".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressPattern {
    host: HostPattern,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Exactly(Box<str>),
    /// With the dot in front.
    Below(Box<str>),
}

/// A text that is not an [`AddressPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address pattern: use HOST:PORT; the host may begin with \"*.\", the port may be \"*\", an IPv6 address stands in brackets"
)]
pub struct InvalidAddressPattern(String);

impl AddressPattern {
    /// Whether this is the address, or one of the addresses.
    pub fn matches(&self, address: &DialAddress) -> bool {
        let host = address.host();
        let is_host = match &self.host {
            HostPattern::Exactly(name) => **name == *host,
            HostPattern::Below(domain) => host.len() > domain.len() && host.ends_with(&**domain),
        };
        is_host && self.port.is_none_or(|port| port == address.port())
    }
}

impl FromStr for AddressPattern {
    type Err = InvalidAddressPattern;

    fn from_str(text: &str) -> Result<Self, InvalidAddressPattern> {
        let invalid = || InvalidAddressPattern(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let below = host.strip_prefix("*.");
        // Any port serves to have the host read as it will be when it is asked for.
        let any_port = if port == "*" { "1" } else { port };
        let address: DialAddress = format!("{}:{any_port}", below.unwrap_or(host)).parse().map_err(|_| invalid())?;
        let host = match below {
            Some(_) => HostPattern::Below(format!(".{}", address.host()).into()),
            None => HostPattern::Exactly(address.host().into()),
        };
        Ok(Self { host, port: (port != "*").then(|| address.port()) })
    }
}

impl TryFrom<String> for AddressPattern {
    type Error = InvalidAddressPattern;

    fn try_from(text: String) -> Result<Self, InvalidAddressPattern> {
        text.parse()
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostPattern::Exactly(host) if host.contains(':') => write!(f, "[{host}]:")?,
            HostPattern::Exactly(host) => write!(f, "{host}:")?,
            HostPattern::Below(domain) => write!(f, "*{domain}:")?,
        }
        match self.port {
            Some(port) => write!(f, "{port}"),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(patterns: &[&str]) -> ForwardPolicy {
        ForwardPolicy { allow: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect() }
    }

    fn allows(policy: &ForwardPolicy, address: &str) -> bool {
        policy.allows(&address.parse().unwrap())
    }

    #[test]
    fn by_default_an_agent_connects_nowhere() {
        assert!(!allows(&ForwardPolicy::default(), "127.0.0.1:80"));
    }

    #[test]
    fn an_address_is_allowed_where_a_pattern_matches_host_and_port() {
        let policy = policy(&["db.internal:5432", "*.cache.internal:*", "[fd00::1]:22"]);
        for allowed in ["db.internal:5432", "DB.internal:5432", "a.cache.internal:1", "[FD00:0::1]:22"] {
            assert!(allows(&policy, allowed), "{allowed}");
        }
        for refused in
            ["db.internal:5433", "x.db.internal:5432", "cache.internal:1", "evilcache.internal:1", "[fd00::2]:22"]
        {
            assert!(!allows(&policy, refused), "{refused}");
        }
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read_and_nonsense_is_refused() {
        for text in ["db.internal:5432", "*.cache.internal:*", "[fd00::1]:22", "10.0.0.1:*"] {
            assert_eq!(text.parse::<AddressPattern>().unwrap().to_string(), text);
        }
        for text in ["", "*", "*:80", "*.:80", "db", "db:0", "a*.db:80", "d*b:80", ":80"] {
            assert!(text.parse::<AddressPattern>().is_err(), "{text}");
        }
    }
}
