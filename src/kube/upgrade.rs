//! Whether a request asks to become a raw stream.

use http::Version;
use http::header::{CONNECTION, HeaderMap, UPGRADE};

use super::headers::list_items;
use crate::wire::UpgradeProtocol;

/// The upgrade that the headers ask for; `None` for a plain request.
///
/// The API server takes any `Connection` value that *contains* "upgrade" for an upgrade (`IsUpgradeRequest` in
/// `apimachinery/pkg/util/httpstream/httpstream.go`), RFC 9110, section 7.6.1 only the token. What the two read differently
/// is refused, so that a request is never an upgrade for one end of the tunnel and plain for the other.
pub fn requested_upgrade(headers: &HeaderMap, version: Version) -> Result<Option<UpgradeProtocol>, BadUpgrade> {
    if !connection_asks_for_upgrade(headers)? {
        return Ok(None);
    }
    if version != Version::HTTP_11 {
        return Err(BadUpgrade::WrongVersion(version));
    }
    let mut protocols = list_items(headers, &UPGRADE);
    match (protocols.next(), protocols.next()) {
        (None, _) => Err(BadUpgrade::NoProtocol),
        (Some(_), Some(_)) => Err(BadUpgrade::SeveralProtocols),
        (Some(protocol), None) => UpgradeProtocol::parse(protocol).map(Some).ok_or(BadUpgrade::UnknownProtocol),
    }
}

/// Why a request that may be an upgrade is refused. It becomes a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUpgrade {
    /// "upgrade" as a part of another token of `Connection`.
    #[error("the Connection header holds \"upgrade\" within another token, which servers read differently")]
    Ambiguous,
    /// An upgrade outside HTTP/1.1 (RFC 9113, section 8.2.2; RFC 9110, section 7.8).
    #[error("an upgrade needs HTTP/1.1, and this request came by {0:?}")]
    WrongVersion(Version),
    /// `Connection: upgrade` alone.
    #[error("the Connection header asks for an upgrade, but there is no Upgrade header")]
    NoProtocol,
    /// More than one protocol to choose from.
    #[error("the Upgrade header names several protocols; name one")]
    SeveralProtocols,
    /// Neither SPDY/3.1 nor WebSocket.
    #[error("the Upgrade header names an unknown protocol; use SPDY/3.1 or websocket")]
    UnknownProtocol,
}

fn connection_asks_for_upgrade(headers: &HeaderMap) -> Result<bool, BadUpgrade> {
    let mut asks = false;
    for token in list_items(headers, &CONNECTION) {
        let token = token.to_ascii_lowercase();
        if token == b"upgrade" {
            asks = true;
        } else if token.windows(b"upgrade".len()).any(|part| part == b"upgrade") {
            return Err(BadUpgrade::Ambiguous);
        }
    }
    Ok(asks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(
        lines: &[(&'static str, &'static str)],
        version: Version,
    ) -> Result<Option<UpgradeProtocol>, BadUpgrade> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        requested_upgrade(&headers, version)
    }

    #[test]
    fn the_upgrades_of_kubectl_are_recognized() {
        for (lines, expected) in [
            (vec![("connection", "Upgrade"), ("upgrade", "websocket")], UpgradeProtocol::WebSocket),
            (vec![("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], UpgradeProtocol::Spdy),
            (vec![("connection", "keep-alive, UPGRADE"), ("upgrade", "WebSocket")], UpgradeProtocol::WebSocket),
            (
                vec![("connection", "keep-alive"), ("connection", " ,upgrade"), ("upgrade", "spdy/3.1")],
                UpgradeProtocol::Spdy,
            ),
        ] {
            assert_eq!(upgrade(&lines, Version::HTTP_11), Ok(Some(expected)), "{lines:?}");
        }
    }

    #[test]
    fn a_plain_request_is_no_upgrade() {
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(upgrade(&[], version), Ok(None));
            assert_eq!(upgrade(&[("connection", "keep-alive"), ("upgrade", "websocket")], version), Ok(None));
        }
    }

    #[test]
    fn what_two_servers_would_read_differently_is_refused() {
        for (connection, protocol, expected) in [
            ("upgraded", "websocket", BadUpgrade::Ambiguous),
            ("close, x-Upgrade", "websocket", BadUpgrade::Ambiguous),
            ("upgrade, no upgrade", "websocket", BadUpgrade::Ambiguous),
            ("\"upgrade\"", "websocket", BadUpgrade::Ambiguous),
            ("upgrade;q=1", "websocket", BadUpgrade::Ambiguous),
            ("upgrade", "", BadUpgrade::NoProtocol),
            ("upgrade", "websocket, SPDY/3.1", BadUpgrade::SeveralProtocols),
            ("upgrade", "h2c", BadUpgrade::UnknownProtocol),
            ("upgrade", "websocket/13", BadUpgrade::UnknownProtocol),
        ] {
            let lines = [("connection", connection), ("upgrade", protocol)];
            assert_eq!(upgrade(&lines, Version::HTTP_11), Err(expected), "{lines:?}");
        }
        let lines = [("connection", "upgrade"), ("upgrade", "websocket")];
        for version in [Version::HTTP_10, Version::HTTP_2, Version::HTTP_3] {
            assert_eq!(upgrade(&lines, version), Err(BadUpgrade::WrongVersion(version)));
        }
    }
}
