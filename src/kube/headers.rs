//! Which headers end at the tunnel.
//!
//! The order at a proxy: [`strip_hop_by_hop`], then [`strip_identity`], and only then may the proxy write an identity of its own.

use std::borrow::Cow;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};

/// Removes what concerns one connection only (RFC 9110, section 7.6.1): `Connection` and every header it names, `Keep-Alive`,
/// `Proxy-*`, `Transfer-Encoding`, `Upgrade`, and `TE` except for `trailers`.
///
/// For an upgrade, read [`super::requested_upgrade`] first and write `Connection` and `Upgrade` again afterwards.
///
/// # Errors
/// A `Connection` that names a header which carries the identity or the meaning of the message: removing it would change who asks
/// or what is asked (CVE-2021-31999). The headers are untouched then.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Result<(), BadConnection> {
    let named = named_by_connection(headers)?;
    let accepts_trailers = list_items(headers, &TE).any(|item| item.eq_ignore_ascii_case(b"trailers"));
    remove_where(headers, |name| is_hop_by_hop(name) || named.contains(name));
    if accepts_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Removes every header that could claim an identity or an origin: see [`is_identity`].
pub fn strip_identity(headers: &mut HeaderMap) {
    remove_where(headers, is_identity);
}

/// Whether a header claims who is asking or where from: `Authorization`, `Proxy-Authorization`, `Impersonate-*`, `X-Remote-*`,
/// `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.
///
/// `_` counts as `-`, because some servers read `X_Remote_User` as `X-Remote-User`.
pub fn is_identity(name: &HeaderName) -> bool {
    // Nearly every header of every request passes here; only those with a `_` are worth a copy.
    let name = match name.as_str() {
        name if name.contains('_') => Cow::Owned(name.replace('_', "-")),
        name => Cow::Borrowed(name),
    };
    matches!(&*name, "authorization" | "proxy-authorization" | "forwarded" | "x-real-ip")
        || ["impersonate-", "x-remote-", "x-forwarded-"].iter().any(|prefix| name.starts_with(prefix))
}

/// How long the body is that the headers announce; `None` where they do not say.
///
/// # Errors
/// Several lengths, equal or not, or something else than digits: two servers could take the body to end at different places, and one
/// of them the rest for another message (RFC 9112, section 11.2).
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, BadLength> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next().map(HeaderValue::as_bytes), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = str::from_utf8(length).ok().and_then(|length| length.parse().ok());
            length.map(Some).ok_or(BadLength)
        }
        _ => Err(BadLength),
    }
}

/// A `Content-Length` that could be read in several ways. In a request it becomes a 400, in an answer a 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there has to be one Content-Length of digits only, or none")]
pub struct BadLength;

/// A `Connection` header that cannot be obeyed. In a request it becomes a 400, in an answer a 502.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConnection {
    /// It names a header that must reach the other end.
    #[error("the Connection header names {0:?}, which is not a header of one connection only")]
    Protected(String),
    /// It holds something else than header names.
    #[error("the Connection header holds something that is not a header name")]
    NotAToken,
}

/// The items of a comma-separated list header, over all its lines, without empty ones (RFC 9110, section 5.6.1).
pub(super) fn list_items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
}

pub(super) fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Result<Vec<HeaderName>, BadConnection> {
    let name_of = |item: &[u8]| HeaderName::from_bytes(item).map_err(|_| BadConnection::NotAToken);
    let named: Vec<HeaderName> = list_items(headers, &CONNECTION).map(name_of).collect::<Result<_, _>>()?;
    match named.iter().find(|name| is_end_to_end(name)) {
        Some(name) => Err(BadConnection::Protected(name.to_string())),
        None => Ok(named),
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE].contains(name)
        || name == "keep-alive"
        || name.as_str().starts_with("proxy-")
}

/// Headers without which a message means something else.
fn is_end_to_end(name: &HeaderName) -> bool {
    let end_to_end = [
        "accept",
        "audit-id",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "location",
        "x-stream-protocol-version",
    ];
    is_identity(name) || end_to_end.contains(&name.as_str()) || name.as_str().starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn headers_of_one_connection_end_at_the_tunnel() {
        let mut headers = map(&[
            ("Connection", "close, X-One"),
            ("Connection", "x-two"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authenticate", "Basic"),
            ("TE", "gzip"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "websocket"),
            ("X-One", "1"),
            ("X-Two", "2"),
            ("X-Three", "3"),
            ("Trailer", "checksum"),
            ("Accept", "*/*"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut headers), Ok(()));
        assert_eq!(headers, map(&[("X-Three", "3"), ("Trailer", "checksum"), ("Accept", "*/*")]));
    }

    #[test]
    fn a_client_that_accepts_trailers_still_does() {
        let mut headers = map(&[("TE", "gzip, Trailers"), ("Connection", "TE")]);
        assert_eq!(strip_hop_by_hop(&mut headers), Ok(()));
        assert_eq!(headers, map(&[("TE", "trailers")]));
    }

    #[test]
    fn a_length_that_could_be_read_in_two_ways_is_refused() {
        assert_eq!(content_length(&map(&[])), Ok(None));
        assert_eq!(content_length(&map(&[("Content-Length", "0")])), Ok(Some(0)));
        assert_eq!(content_length(&map(&[("Content-Length", "42")])), Ok(Some(42)));
        for bad in ["", "+4", "-4", "0x4", "4, 4", "4 4", "18446744073709551616"] {
            assert_eq!(content_length(&map(&[("Content-Length", bad)])), Err(BadLength), "{bad:?}");
        }
        assert_eq!(content_length(&map(&[("Content-Length", "4"), ("Content-Length", "4")])), Err(BadLength));
    }

    #[test]
    fn connection_cannot_take_the_identity_away() {
        for name in [
            "Authorization",
            "Impersonate-User",
            "impersonate-extra-x",
            "Impersonate_User",
            "Audit-Id",
            "Content-Length",
            "Host",
            "X-Remote-User",
            "X-Forwarded-For",
            "Sec-WebSocket-Protocol",
        ] {
            let before = map(&[("Connection", &format!("close, {name}")), (name, "x"), ("Keep-Alive", "1")]);
            let mut headers = before.clone();
            assert_eq!(strip_hop_by_hop(&mut headers), Err(BadConnection::Protected(name.to_lowercase())));
            assert_eq!(headers, before, "a refused request is left as it is");
        }
        assert_eq!(strip_hop_by_hop(&mut map(&[("Connection", "a b")])), Err(BadConnection::NotAToken));
    }

    #[test]
    fn headers_that_claim_an_identity_are_removed_whatever_their_spelling() {
        let mut headers = map(&[
            ("AUTHORIZATION", "Bearer x"),
            ("Proxy-Authorization", "Basic x"),
            ("Impersonate-Group", "system:masters"),
            ("impersonate-group", "system:masters"),
            ("IMPERSONATE-UID", "1"),
            ("Impersonate-Extra-Scopes", "all"),
            ("Impersonate_User", "admin"),
            ("X-Remote-User", "admin"),
            ("x_remote_group", "system:masters"),
            ("X-Remote-Extra-a", "b"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Client-Cert", "x"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-Real-IP", "10.0.0.1"),
            ("User-Agent", "kubectl"),
        ]);
        strip_identity(&mut headers);
        assert_eq!(headers, map(&[("User-Agent", "kubectl")]));
    }

    proptest! {
        #[test]
        fn a_stripped_map_never_holds_an_identity(
            lines in prop::collection::vec(
                ("(?i:(impersonate|x.remote|x.forwarded|authorization|forwarded|connection|te|x)[-_a-z%]{0,8})", "[ -~]{0,20}"),
                0..12,
            )
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
                    headers.append(name, value);
                }
            }
            let stripped_hops = strip_hop_by_hop(&mut headers).is_ok();
            strip_identity(&mut headers);
            for name in headers.keys() {
                let name = name.as_str().replace('_', "-");
                for prefix in ["impersonate-", "x-remote-", "x-forwarded-"] {
                    prop_assert!(!name.starts_with(prefix), "{name}");
                }
                prop_assert!(name != "authorization" && name != "forwarded", "{name}");
                prop_assert!(!stripped_hops || name != "connection");
            }
        }
    }
}
