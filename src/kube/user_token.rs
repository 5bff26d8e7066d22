//! Bearer tokens that users send, and tokens that stand in a file.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use super::digest::sha256;
use crate::wire::BearerToken;

mod static_tokens;

pub use static_tokens::{InvalidTokenFile, StaticTokens};

/// What a browser's WebSocket carries a token in, because it cannot set headers.
const WEBSOCKET_PREFIX: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// Takes the token that a request authenticates with out of its headers: that of `Authorization: Bearer ...`, else the one
/// that a browser's WebSocket carries.
///
/// # Errors
/// See [`BadToken`]. The headers are left alone then.
pub fn take_bearer_token(headers: &mut HeaderMap) -> Result<Option<BearerToken>, BadToken> {
    let authorization = from_authorization(headers)?;
    let websocket = take_from_websocket_protocol(headers)?;
    headers.remove(AUTHORIZATION);
    Ok(authorization.or(websocket))
}

/// The token of `Authorization: Bearer ...`; `None` without the header or with another scheme.
fn from_authorization(headers: &HeaderMap) -> Result<Option<BearerToken>, BadToken> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().map_err(|_| BadToken::Malformed)?,
        (Some(_), Some(_)) => return Err(BadToken::Several),
    };
    let (scheme, token) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    match scheme.eq_ignore_ascii_case("bearer") {
        true => BearerToken::new(token).map(Some).ok_or(BadToken::Malformed),
        false => Ok(None),
    }
}

/// Takes the token out of `Sec-WebSocket-Protocol`, where browsers put it
/// (`apiserver/pkg/authentication/request/websocket/protocol.go`); `None` where there is none.
fn take_from_websocket_protocol(headers: &mut HeaderMap) -> Result<Option<BearerToken>, BadToken> {
    let items =
        headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let (tokens, protocols): (Vec<&[u8]>, Vec<&[u8]>) =
        items.map(<[u8]>::trim_ascii).partition(|item| item.starts_with(WEBSOCKET_PREFIX));
    let encoded = match tokens.as_slice() {
        [] => return Ok(None),
        [token] => token.strip_prefix(WEBSOCKET_PREFIX).unwrap_or_default(),
        [_, ..] => return Err(BadToken::Several),
    };
    let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| BadToken::Malformed)?;
    let token = str::from_utf8(&decoded).ok().and_then(BearerToken::new).ok_or(BadToken::Malformed)?;
    if protocols.is_empty() {
        return Err(BadToken::NoOtherProtocol);
    }
    // Made of what was a header value before.
    let rest = HeaderValue::from_bytes(&protocols.join(b", ".as_slice())).map_err(|_| BadToken::Malformed)?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, rest);
    Ok(Some(token))
}

/// The SHA-256 of a token. Equality needs no constant time: whoever can choose a token cannot choose its hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// What `token` may be looked up or remembered by, without keeping the secret.
    pub fn of(token: &BearerToken) -> Self {
        Self(sha256(token.reveal().as_bytes()))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// Why credentials cannot be read. No variant holds the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// More than one token: which of them is meant?
    #[error("the request carries several bearer tokens; send one")]
    Several,
    /// Not a token.
    #[error("the bearer token is malformed")]
    Malformed,
    /// The server has to answer with a WebSocket protocol, and that cannot be the token.
    #[error("a bearer token in Sec-WebSocket-Protocol needs another protocol beside it")]
    NoOtherProtocol,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn authorization(values: &[&str]) -> Result<Option<String>, BadToken> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        from_authorization(&headers).map(|token| token.map(|token| token.reveal().to_owned()))
    }

    fn websocket(values: &[&str]) -> (Result<Option<String>, BadToken>, Vec<String>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let token = take_from_websocket_protocol(&mut headers);
        let left = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let left = left.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        (token.map(|token| token.map(|token| token.reveal().to_owned())), left)
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_case_of_its_scheme() {
        for value in ["Bearer abc", "bearer abc", " BEARER abc "] {
            assert_eq!(authorization(&[value]), Ok(Some("abc".to_owned())), "{value:?}");
        }
        for other in [vec![], vec![""], vec!["Basic abc"], vec!["Bearerabc"]] {
            assert_eq!(authorization(&other), Ok(None), "{other:?}");
        }
    }

    #[test]
    fn a_bearer_token_that_servers_read_differently_is_refused() {
        for value in ["Bearer", "Bearer  abc", "Bearer abc def", "Bearer a\tb", "Bearer é"] {
            assert_eq!(authorization(&[value]), Err(BadToken::Malformed), "{value:?}");
        }
        assert_eq!(authorization(&["Bearer a", "Bearer a"]), Err(BadToken::Several));
        assert_eq!(authorization(&["Basic a", "Bearer a"]), Err(BadToken::Several));
    }

    #[test]
    fn a_browsers_token_is_taken_out_of_the_protocols() {
        let (token, left) =
            websocket(&["base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io", "v5.channel.k8s.io"]);
        assert_eq!(token, Ok(Some("abc".to_owned())));
        assert_eq!(left, ["v4.channel.k8s.io, v5.channel.k8s.io"]);
        let untouched = ["v5.channel.k8s.io,v4.channel.k8s.io", "x"];
        assert_eq!(websocket(&untouched), (Ok(None), untouched.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_browsers_token_that_the_api_server_would_refuse_is_refused() {
        const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
        for (value, why) in [
            (format!("{PREFIX}YWJj"), BadToken::NoOtherProtocol),
            (format!("{PREFIX}YWJj, {PREFIX}YWJj, x"), BadToken::Several),
            (format!("{PREFIX}, x"), BadToken::Malformed),
            (format!("{PREFIX}YWI=, x"), BadToken::Malformed),
            (format!("{PREFIX}+/+/, x"), BadToken::Malformed),
            (format!("{PREFIX}_w, x"), BadToken::Malformed),
            (format!("{PREFIX}YSBi, x"), BadToken::Malformed),
        ] {
            assert_eq!(websocket(&[&value]), (Err(why), vec![value.clone()]), "{value}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = BearerToken::new("secret").unwrap();
        assert!(!format!("{token:?} {:?}", TokenHash::of(&token)).contains("secret"));
    }

    proptest! {
        #[test]
        fn every_token_that_a_browser_encodes_is_read_back(token in "[!-~]{1,40}") {
            let protocol = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(&token));
            prop_assert_eq!(websocket(&["x", &protocol]), (Ok(Some(token)), vec!["x".to_owned()]));
        }
    }
}
