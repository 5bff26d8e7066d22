//! Asking the API server for something in another's name (`apiserver/pkg/endpoints/filters/impersonation`).
//!
//! At the stub, [`requested`] reads what `kubectl --as` asks for and [`access_reviews`] ask the cluster whether the user may; at the
//! agent, an [`ImpersonationPolicy`] has the last word before [`write()`] names the identity to the API server.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::headers::remove_where;
use super::percent;
use crate::wire::Identity;

mod access_review;
mod policy;

pub use access_review::{AccessDecision, AccessReview, AccessReviewKey, UnreadableReview, access_reviews, allowed};
pub use policy::{ImpersonationPolicy, InvalidPattern, NameRules, Pattern, Refusal};

/// The extra that names the user who asked, where the request is made in another's name. No client can set it.
pub const ORIGINAL_USER_EXTRA: &str = "qtunnel.dev/original-user";

/// The extra that names the groups of the user who asked, one value for each. No client can set it.
pub const ORIGINAL_GROUPS_EXTRA: &str = "qtunnel.dev/original-groups";

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Extras under this prefix are the tunnel's own.
const RESERVED_PREFIX: &str = "qtunnel.dev/";

/// The identity that a client asks to act as (`kubectl --as`); `None` where it asks for none.
///
/// # Errors
/// What the API server refuses too (a group, uid or extra without a user), what two servers could read differently (two users), and
/// an extra under `qtunnel.dev/`. It becomes a 400.
pub fn requested(headers: &HeaderMap) -> Result<Option<Identity>, ImpersonationError> {
    let identity = Identity {
        // To the API server an empty user or uid is as good as none.
        user: only_value(headers, &USER)?.unwrap_or_default(),
        uid: only_value(headers, &UID)?.filter(|uid| !uid.is_empty()),
        groups: headers.get_all(GROUP).iter().map(|value| text(&GROUP, value)).collect::<Result<_, _>>()?,
        extra: requested_extra(headers)?,
    };
    if !identity.user.is_empty() {
        return Ok(Some(identity));
    }
    match identity == Identity::default() {
        true => Ok(None),
        false => Err(ImpersonationError::WithoutUser),
    }
}

/// The identity to send for a request in another's name: `requested`, with the original user in the reserved extras.
pub fn on_behalf_of(original: &Identity, requested: Identity) -> Identity {
    let user = (ORIGINAL_USER_EXTRA.to_owned(), original.user.clone());
    let groups = original.groups.iter().map(|group| (ORIGINAL_GROUPS_EXTRA.to_owned(), group.clone()));
    let mut identity = requested;
    identity.extra.retain(|(key, _)| !is_reserved_extra(key));
    identity.extra.push(user);
    identity.extra.extend(groups);
    identity
}

/// Writes the identity as `Impersonate-*` headers, in place of any that were there.
///
/// # Errors
/// An identity that the API server would not read back as it is: without a user, or with text that no header can carry. The headers
/// hold no `Impersonate-*` then.
pub fn write(identity: &Identity, headers: &mut HeaderMap) -> Result<(), UnwritableIdentity> {
    remove_where(headers, |name| name.as_str().starts_with("impersonate-"));
    if identity.user.is_empty() {
        return Err(UnwritableIdentity::WithoutUser);
    }
    let mut lines = vec![(USER, value("user", &identity.user)?)];
    if let Some(uid) = &identity.uid {
        lines.push((UID, value("uid", uid)?));
    }
    for group in &identity.groups {
        lines.push((GROUP, value("group", group)?));
    }
    for (key, extra) in &identity.extra {
        lines.push((extra_name(key)?, value("extra", extra)?));
    }
    for (name, value) in lines {
        if headers.try_append(name, value).is_err() {
            remove_where(headers, |name| name.as_str().starts_with("impersonate-"));
            return Err(UnwritableIdentity::TooLarge);
        }
    }
    Ok(())
}

/// Why a client's `Impersonate-*` headers are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// A group, uid or extra, but no user.
    #[error("impersonating a group, uid or extra needs a user too: add Impersonate-User (kubectl --as)")]
    WithoutUser,
    /// A header that may stand only once.
    #[error("the header {0} stands more than once")]
    Repeated(HeaderName),
    /// A header value or extra key that is not UTF-8.
    #[error("the header {0} is not UTF-8")]
    NotText(HeaderName),
    /// `Impersonate-Extra-` without a key.
    #[error("an Impersonate-Extra- header has no key")]
    EmptyKey,
    /// An extra that only the tunnel may set.
    #[error("the extra key {0:?} is reserved: keys under {RESERVED_PREFIX} cannot be impersonated")]
    ReservedKey(String),
}

/// Why an identity cannot be written as headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnwritableIdentity {
    /// The user has no name.
    #[error("the identity has no user")]
    WithoutUser,
    /// A control character, or a space at an end, which the receiver would cut off.
    #[error("the identity's {what} {text:?} cannot be a header value: it has a control character or a space at an end")]
    Value {
        /// The part of the identity.
        what: &'static str,
        /// Its text.
        text: String,
    },
    /// An extra key that is empty or too long for a header name.
    #[error("the identity's extra key {0:?} is empty or too long for a header name")]
    Key(String),
    /// More extra keys than a message can have headers.
    #[error("the identity has too many extra keys for one request")]
    TooLarge,
}

fn only_value(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, ImpersonationError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| text(name, value)).transpose()?;
    match values.next() {
        None => Ok(first),
        Some(_) => Err(ImpersonationError::Repeated(name.clone())),
    }
}

fn text(name: &HeaderName, value: &HeaderValue) -> Result<String, ImpersonationError> {
    let text = str::from_utf8(value.as_bytes()).map_err(|_| ImpersonationError::NotText(name.clone()))?;
    Ok(text.to_owned())
}

fn requested_extra(headers: &HeaderMap) -> Result<Vec<(String, String)>, ImpersonationError> {
    let mut extra = Vec::new();
    for (name, value) in headers {
        if let Some(encoded) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            extra.push((extra_key(name, encoded)?, text(name, value)?));
        }
    }
    // The order of a map's keys says nothing; the order of one key's values does and stays.
    extra.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(extra)
}

/// `unescapeExtraKey`: lower case first, which a header name already is here, then the escapes; a broken escape stands for itself.
fn extra_key(name: &HeaderName, encoded: &str) -> Result<String, ImpersonationError> {
    let bytes = percent::decode(encoded).unwrap_or_else(|| encoded.as_bytes().to_vec());
    let key = String::from_utf8(bytes).map_err(|_| ImpersonationError::NotText(name.clone()))?;
    if key.is_empty() {
        return Err(ImpersonationError::EmptyKey);
    }
    if is_reserved_extra(&key) {
        return Err(ImpersonationError::ReservedKey(key));
    }
    Ok(key)
}

/// Whether only the tunnel may set this extra.
pub fn is_reserved_extra(key: &str) -> bool {
    key.to_ascii_lowercase().starts_with(RESERVED_PREFIX)
}

fn value(what: &'static str, text: &str) -> Result<HeaderValue, UnwritableIdentity> {
    let unwritable = || UnwritableIdentity::Value { what, text: text.to_owned() };
    // HTTP/1.1 trims a value (RFC 9112, section 5.1), which would turn " admin" into "admin".
    if text.trim_ascii().len() != text.len() {
        return Err(unwritable());
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| unwritable())
}

fn extra_name(key: &str) -> Result<HeaderName, UnwritableIdentity> {
    let name = format!("{EXTRA_PREFIX}{}", percent::encode(key, is_plain_in_key));
    match key {
        "" => Err(UnwritableIdentity::Key(key.to_owned())),
        _ => HeaderName::from_bytes(name.as_bytes()).map_err(|_| UnwritableIdentity::Key(key.to_owned())),
    }
}

/// Token bytes (RFC 9110, section 5.6.2) but for `%`, which begins an escape, and upper-case letters, which the API server lowers
/// before it reads the escapes.
fn is_plain_in_key(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn what_kubectl_as_asks_for_is_read() {
        let headers = map(&[
            ("Impersonate-User", "alice"),
            ("Impersonate-Group", "devs"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-Scopes", "view"),
            ("Impersonate-Extra-Scopes", "edit"),
            ("Impersonate-Extra-Acme.com%2FProject", "p"),
            ("Impersonate-Extra-100%", "kept"),
        ]);
        let identity = Identity {
            user: "alice".to_owned(),
            uid: Some("7".to_owned()),
            groups: vec!["devs".to_owned(), "ops".to_owned()],
            extra: vec![
                pair("100%", "kept"),
                pair("acme.com/project", "p"),
                pair("scopes", "view"),
                pair("scopes", "edit"),
            ],
        };
        assert_eq!(requested(&headers), Ok(Some(identity)));
        assert_eq!(requested(&map(&[("Accept", "*/*"), ("Impersonate-Uid", "")])), Ok(None));
    }

    #[test]
    fn impersonation_that_the_api_server_would_refuse_is_refused() {
        for (name, value) in [("Impersonate-Group", "g"), ("Impersonate-Uid", "1"), ("Impersonate-Extra-a", "b")] {
            assert_eq!(requested(&map(&[(name, value)])), Err(ImpersonationError::WithoutUser));
            assert_eq!(
                requested(&map(&[(name, value), ("Impersonate-User", "")])),
                Err(ImpersonationError::WithoutUser)
            );
        }
        let twice = map(&[("Impersonate-User", "a"), ("Impersonate-User", "b")]);
        assert_eq!(requested(&twice), Err(ImpersonationError::Repeated(USER)));
        let nameless = map(&[("Impersonate-User", "a"), ("Impersonate-Extra-", "b")]);
        assert_eq!(requested(&nameless), Err(ImpersonationError::EmptyKey));
    }

    #[test]
    fn a_client_cannot_set_the_original_user() {
        for key in ["qtunnel.dev%2foriginal-user", "QTUNNEL.dev%2Fx", "%51tunnel.dev%2foriginal-user"] {
            let name = format!("Impersonate-Extra-{key}");
            let headers = map(&[("Impersonate-User", "a"), (&name, "admin")]);
            assert!(matches!(requested(&headers), Err(ImpersonationError::ReservedKey(_))), "{key}");
        }
        let original = Identity { groups: vec!["devs".to_owned()], ..Identity::named("alice") };
        let forged =
            Identity { extra: vec![pair(ORIGINAL_USER_EXTRA, "eve"), pair("a", "b")], ..Identity::named("bob") };
        let extra = vec![pair("a", "b"), pair(ORIGINAL_USER_EXTRA, "alice"), pair(ORIGINAL_GROUPS_EXTRA, "devs")];
        assert_eq!(on_behalf_of(&original, forged), Identity { extra, ..Identity::named("bob") });
    }

    #[test]
    fn writing_replaces_what_was_there() {
        let mut headers = map(&[("Impersonate-Group", "system:masters"), ("Accept", "*/*")]);
        let identity = Identity { extra: vec![pair("acme.com/Project%", "é")], ..Identity::named("josé") };
        assert_eq!(write(&identity, &mut headers), Ok(()));
        let expected =
            [("Accept", "*/*"), ("Impersonate-User", "josé"), ("Impersonate-Extra-acme.com%2f%50roject%25", "é")];
        assert_eq!(headers, map(&expected));
    }

    #[test]
    fn an_identity_that_would_arrive_changed_is_refused() {
        for user in ["", " admin", "admin ", "admin\t", "a\nImpersonate-Group: system:masters", "a\0b"] {
            let mut headers = map(&[("Impersonate-User", "eve")]);
            assert!(write(&Identity::named(user), &mut headers).is_err(), "{user:?}");
            assert!(headers.is_empty());
        }
        for key in ["".to_owned(), "k".repeat(1 << 16)] {
            let identity = Identity { extra: vec![(key, String::new())], ..Identity::named("a") };
            assert!(matches!(write(&identity, &mut HeaderMap::new()), Err(UnwritableIdentity::Key(_))));
        }
        let extra = (0..1 << 16).map(|number| (number.to_string(), String::new())).collect();
        let identity = Identity { extra, ..Identity::named("a") };
        let mut headers = HeaderMap::new();
        assert_eq!(write(&identity, &mut headers), Err(UnwritableIdentity::TooLarge));
        assert!(headers.is_empty());
    }

    proptest! {
        #[test]
        fn an_extra_key_is_read_back_as_it_was_written(key in "\\PC{1,20}|.{1,20}", value in "[!-~]{0,10}") {
            prop_assume!(!is_reserved_extra(&key));
            let identity = Identity { extra: vec![(key, value)], ..Identity::named("a") };
            let mut headers = HeaderMap::new();
            write(&identity, &mut headers).unwrap();
            prop_assert_eq!(requested(&headers).unwrap().unwrap(), identity);
        }
    }
}
