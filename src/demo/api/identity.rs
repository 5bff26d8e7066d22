//! Who sends a request: bearer tokens and impersonation
//! (`k8s.io/apiserver/pkg/endpoints/filters/{authentication,impersonation}.go`).

use std::collections::{BTreeMap, HashMap};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};

use super::{
    rbac::{Attributes, Authorizer, MASTERS},
    request::percent_decode,
    status::{ApiError, Details, forbidden_message, forbidden_subject},
};

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Prefix of the WebSocket subprotocol that carries a token, for browsers
/// (`k8s.io/apiserver/pkg/authentication/request/websocket/protocol.go`).
pub(super) const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// A user, as authenticated or impersonated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user without uid and extra.
    pub fn named(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..Self::default() }
    }
}

/// The tokens that are known. Without any, everybody is an administrator.
#[derive(Debug, Default)]
pub(super) struct Authenticator {
    users: HashMap<String, User>,
}

impl Authenticator {
    /// Makes `token` stand for that user.
    pub fn add(&mut self, token: &str, name: &str, groups: &[&str]) {
        let mut user = User::named(name, groups);
        user.groups.push(AUTHENTICATED.to_owned());
        self.users.insert(token.to_owned(), user);
    }

    /// Who sends this request. Without a credential: `system:anonymous`. Errors: 401 for an unknown token.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<User, ApiError> {
        if self.users.is_empty() {
            return Ok(User::named("demo-admin", &[MASTERS, AUTHENTICATED]));
        }
        match bearer_token(headers) {
            Some(token) => self.users.get(&token).cloned().ok_or_else(ApiError::unauthorized),
            None if headers.contains_key(header::AUTHORIZATION) => Err(ApiError::unauthorized()),
            None => Ok(User::named("system:anonymous", &[UNAUTHENTICATED])),
        }
    }
}

/// The user the request is to be made as. Errors: 400 without a user name, 403 where the rules do not allow it.
pub(super) fn effective_user(user: User, headers: &HeaderMap, rules: &Authorizer) -> Result<User, ApiError> {
    let Some(wanted) = impersonated(headers)? else {
        return Ok(user);
    };
    let allowed = |group: &str, resource: &str, name: &str, namespace: Option<&str>| {
        let verb = "impersonate";
        if rules.allows(&user, &Attributes::Resource { verb, group, resource, name, namespace }) {
            return Ok(());
        }
        Err(not_allowed(&user, group, resource, name, namespace))
    };
    match service_account(&wanted.name) {
        Some((namespace, name)) => allowed("", "serviceaccounts", name, Some(namespace))?,
        None => allowed("", "users", &wanted.name, None)?,
    }
    for group in &wanted.groups {
        allowed("", "groups", group, None)?;
    }
    if !wanted.uid.is_empty() {
        allowed(AUTHENTICATION_GROUP, "uids", &wanted.uid, None)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            allowed(AUTHENTICATION_GROUP, &format!("userextras/{key}"), value, None)?;
        }
    }
    Ok(with_implied_groups(wanted))
}

/// What the `Impersonate-*` headers ask for.
fn impersonated(headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let user = User {
        name: text("impersonate-user").unwrap_or_default(),
        uid: text("impersonate-uid").unwrap_or_default(),
        groups: headers
            .get_all("impersonate-group")
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect(),
        extra: impersonated_extra(headers),
    };
    if user == User::default() {
        return Ok(None);
    }
    if user.name.is_empty() {
        return Err(ApiError::bad_request(format!(
            "requested {user:?} without impersonating a user: set the header Impersonate-User"
        )));
    }
    Ok(Some(user))
}

/// Header names arrive in lower case; the rest of the name is percent-decoded (`unescapeExtraKey`).
fn impersonated_extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            extra.entry(percent_decode(key, false)).or_default().push(value);
        }
    }
    extra
}

fn with_implied_groups(mut user: User) -> User {
    if let Some((namespace, _)) = service_account(&user.name)
        && user.groups.is_empty()
    {
        user.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let explicit = user.groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED);
    if !explicit {
        let anonymous = user.name == "system:anonymous";
        user.groups.push(if anonymous { UNAUTHENTICATED } else { AUTHENTICATED }.to_owned());
    }
    user
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn not_allowed(user: &User, group: &str, resource: &str, name: &str, namespace: Option<&str>) -> ApiError {
    let plural = resource.split('/').next().unwrap_or(resource);
    let subject = forbidden_subject(plural, group, name);
    let message = forbidden_message(&user.name, "impersonate", group, resource, namespace);
    let (name, kind, group) = (name.to_owned(), plural.to_owned(), group.to_owned());
    ApiError::forbidden(format!("{subject}: {message}"), Details { name, kind, group, ..Details::default() })
}

fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = protocols.flat_map(|v| v.split(',')).find_map(|p| p.trim().strip_prefix(BEARER_PROTOCOL))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::demo::api::rbac::Rule;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
        pairs.collect()
    }

    fn agent_may_impersonate() -> Authorizer {
        Authorizer::new(vec![Rule::for_user("agent").verbs(&["impersonate"]).resources(&["*"])])
    }

    #[test]
    fn an_unknown_token_is_unauthorized_and_none_is_anonymous() {
        let mut authenticator = Authenticator::default();
        authenticator.add("secret", "alice", &["devs"]);
        let alice = authenticator.authenticate(&headers(&[("authorization", "Bearer secret")])).unwrap();
        assert_eq!(alice, User::named("alice", &["devs", "system:authenticated"]));
        assert!(authenticator.authenticate(&headers(&[("authorization", "Bearer other")])).is_err());
        assert_eq!(authenticator.authenticate(&HeaderMap::new()).unwrap().name, "system:anonymous");
    }

    #[test]
    fn a_token_may_come_as_a_websocket_subprotocol() {
        let mut authenticator = Authenticator::default();
        authenticator.add("secret", "alice", &[]);
        let value = "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0";
        let user = authenticator.authenticate(&headers(&[("sec-websocket-protocol", value)])).unwrap();
        assert_eq!(user.name, "alice");
    }

    #[test]
    fn the_agent_may_impersonate_and_others_may_not() {
        let wanted = headers(&[
            ("impersonate-user", "bob"),
            ("impersonate-group", "devs"),
            ("impersonate-extra-example.com%2fteam", "blue"),
        ]);
        let bob = effective_user(User::named("agent", &[]), &wanted, &agent_may_impersonate()).unwrap();
        assert_eq!(bob.groups, ["devs", "system:authenticated"]);
        assert_eq!(bob.extra["example.com/team"], ["blue"]);
        let refused = effective_user(User::named("eve", &[]), &wanted, &agent_may_impersonate()).unwrap_err();
        assert_eq!(
            refused.status.message,
            r#"users "bob" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }

    #[test]
    fn a_group_without_a_user_is_a_bad_request() {
        let wanted = headers(&[("impersonate-group", "system:masters")]);
        let refused = effective_user(User::named("agent", &[]), &wanted, &agent_may_impersonate()).unwrap_err();
        assert_eq!(refused.code, http::StatusCode::BAD_REQUEST);
    }
}
