//! From claims to a user.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::config::{CLAIMS, ClaimRule, JwtConfig, Mapping, Rule, USER};
use super::expression::Scope;
use super::token::Claims;
use crate::wire::Identity;

/// How far the issuer's clock may be ahead where a token is not good yet, as in the API server's library (`go-oidc`).
const LEEWAY: Duration = Duration::from_secs(5 * 60);

/// Whom the claims of a verified token stand for at `now`, and until when.
///
/// # Errors
/// Why they stand for nobody.
pub fn user(config: &JwtConfig, claims: &Claims, now: SystemTime) -> Result<(Identity, SystemTime), String> {
    let until = time(claims, "exp")?.ok_or("it has no exp, and would never expire")?;
    if now >= until {
        return Err("it has expired".to_owned());
    }
    if time(claims, "nbf")?.is_some_and(|not_before| now + LEEWAY < not_before) {
        return Err("it is not valid yet".to_owned());
    }
    let audiences = claims.get("aud").map(strings).transpose().map_err(|why| format!("aud {why}"))?.unwrap_or_default();
    if !audiences.iter().any(|audience| config.audiences.contains(audience)) {
        return Err(format!("it is for {audiences:?}, not for {:?}", config.audiences));
    }
    let seen = Scope::new(CLAIMS, &Value::Object(claims.clone()));
    config.claim_rules.iter().try_for_each(|rule| holds(rule, claims, &seen))?;
    let identity = identity(config, claims, &seen)?;
    let user = Scope::new(USER, &user_info(&identity));
    config.user_rules.iter().try_for_each(|rule| is_true(rule, &user))?;
    Ok((identity, until))
}

fn holds(rule: &ClaimRule, claims: &Claims, seen: &Scope) -> Result<(), String> {
    let (claim, expected) = match rule {
        ClaimRule::True(rule) => return is_true(rule, seen),
        ClaimRule::Required { claim, value } => (claim, value),
    };
    let value = claims.get(claim).and_then(Value::as_str);
    let value = value.ok_or_else(|| format!("the claim {claim} is missing, or not a text"))?;
    match expected.as_deref().is_none_or(|expected| value == expected) {
        true => Ok(()),
        false => Err(format!("the claim {claim} is {value:?}")),
    }
}

fn is_true(rule: &Rule, scope: &Scope) -> Result<(), String> {
    match rule.expression.truth(scope)? {
        true => Ok(()),
        false => Err(rule.message.clone().unwrap_or_else(|| format!("{} does not hold", rule.expression))),
    }
}

fn identity(config: &JwtConfig, claims: &Claims, seen: &Scope) -> Result<Identity, String> {
    let groups = match &config.groups {
        Some(Mapping::Claim { claim, prefix }) => {
            values(claim, claims)?.into_iter().map(|group| prefix.clone() + &group).collect()
        }
        Some(Mapping::Expression(expression)) => filled(expression.texts(seen)?),
        None => Vec::new(),
    };
    let uid = match &config.uid {
        Some(Mapping::Claim { claim, .. }) => Some(required_text(claim, claims)?),
        Some(Mapping::Expression(expression)) => Some(expression.text(seen)?),
        None => None,
    };
    let mut extra = Vec::new();
    for (key, expression) in &config.extra {
        extra.extend(filled(expression.texts(seen)?).into_iter().map(|value| (key.clone(), value)));
    }
    Ok(Identity { user: username(&config.username, claims, seen)?, uid, groups, extra })
}

/// The user's name. An address that the issuer has not verified names nobody
/// (`apiserver/plugin/pkg/authenticator/token/oidc/oidc.go`).
fn username(mapping: &Mapping, claims: &Claims, seen: &Scope) -> Result<String, String> {
    let (claim, prefix) = match mapping {
        Mapping::Claim { claim, prefix } => (claim, prefix),
        Mapping::Expression(expression) => {
            let name = expression.text(seen)?;
            return if name.is_empty() { Err(format!("{expression} is an empty name")) } else { Ok(name) };
        }
    };
    let name = required_text(claim, claims)?;
    match claims.get("email_verified") {
        Some(verified) if claim == "email" && *verified != Value::Bool(true) => {
            Err("its email is not verified".to_owned())
        }
        _ => Ok(prefix.clone() + &name),
    }
}

/// The user as rules see it: a `UserInfo` of `authentication.k8s.io/v1`, of which every field is there.
fn user_info(identity: &Identity) -> Value {
    let mut extra = serde_json::Map::new();
    for (key, value) in &identity.extra {
        let values = extra.entry(key).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(value.as_str().into());
        }
    }
    let uid = identity.uid.as_deref().unwrap_or_default();
    json!({"username": identity.user, "uid": uid, "groups": identity.groups, "extra": extra})
}

/// Empty texts say that there is none.
fn filled(texts: Vec<String>) -> Vec<String> {
    texts.into_iter().filter(|text| !text.is_empty()).collect()
}

fn required_text(claim: &str, claims: &Claims) -> Result<String, String> {
    let value = claims.get(claim).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.map(str::to_owned).ok_or_else(|| format!("the claim {claim} is missing, empty, or not a text"))
}

/// The texts of a claim that is a text or a list of texts. A claim that is not there has none.
fn values(claim: &str, claims: &Claims) -> Result<Vec<String>, String> {
    let values = claims.get(claim).filter(|value| !value.is_null()).map(strings).transpose();
    values.map(Option::unwrap_or_default).map_err(|why| format!("the claim {claim} {why}"))
}

fn strings(value: &Value) -> Result<Vec<String>, &'static str> {
    const WHY: &str = "is neither a text nor a list of texts";
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(values) => {
            values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or(WHY)
        }
        _ => Err(WHY),
    }
}

/// A NumericDate (RFC 7519, section 2), which may have a fraction.
fn time(claims: &Claims, name: &str) -> Result<Option<SystemTime>, String> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(seconds));
    time.map(Some).ok_or_else(|| format!("its {name} is not a time"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stub::authenticate::jwt::config;

    const NOW: u64 = 1_700_000_000;

    fn issuer() -> JwtConfig {
        let text = "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: 'https://i', audiences: [a, b], audienceMatchPolicy: MatchAny}
  claimValidationRules: [{claim: hd, requiredValue: example.com}]
  claimMappings:
    username: {claim: email, prefix: 'oidc:'}
    groups: {claim: groups, prefix: 'oidc:'}
    uid: {claim: sub}
    extra: [{key: example.com/org, valueExpression: claims.?company.?org.orValue(null)}]
";
        config::parse(text).unwrap().remove(0)
    }

    fn good() -> Value {
        json!({
            "exp": NOW + 60, "aud": ["x", "b"], "hd": "example.com", "email": "alice@example.com", "sub": "7",
            "groups": ["devs", "ops"], "company": {"org": "tools"},
        })
    }

    fn outcome(claims: &Value) -> Result<Identity, String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        user(&issuer(), claims.as_object().unwrap(), now).map(|(identity, _)| identity)
    }

    #[test]
    fn claims_become_a_user() {
        let identity = outcome(&good()).unwrap();
        assert_eq!(identity.user, "oidc:alice@example.com");
        assert_eq!(identity.uid.as_deref(), Some("7"));
        assert_eq!(identity.groups, ["oidc:devs", "oidc:ops"]);
        assert_eq!(identity.extra, [("example.com/org".to_owned(), "tools".to_owned())]);
    }

    #[test]
    fn one_group_may_be_a_text_and_none_may_be_missing() {
        let mut claims = good();
        claims["groups"] = json!("devs");
        assert_eq!(outcome(&claims).unwrap().groups, ["oidc:devs"]);
        claims.as_object_mut().unwrap().remove("groups");
        claims.as_object_mut().unwrap().remove("company");
        assert_eq!(outcome(&claims).unwrap().groups, [""; 0]);
    }

    #[test]
    fn claims_that_do_not_hold_are_refused() {
        for (claim, value, part) in [
            ("exp", json!(NOW), "expired"),
            ("exp", json!("tomorrow"), "not a time"),
            ("exp", json!(-1), "not a time"),
            ("exp", json!(1e300), "not a time"),
            ("exp", Value::Null, "not a time"),
            ("nbf", json!(NOW + 301), "not valid yet"),
            ("aud", json!("c"), "not for"),
            ("aud", json!([]), "not for"),
            ("aud", json!({"a": 1}), "aud"),
            ("hd", json!("evil.example.com"), "hd"),
            ("hd", json!(["example.com"]), "hd"),
            ("email", json!(""), "email"),
            ("email", json!(["alice@example.com"]), "email"),
            ("email_verified", json!(false), "not verified"),
            ("email_verified", json!("true"), "not verified"),
            ("groups", json!([1]), "groups"),
            ("groups", json!({"devs": true}), "groups"),
            ("sub", json!(7), "sub"),
        ] {
            let mut claims = good();
            claims[claim] = value.clone();
            let why = outcome(&claims).unwrap_err();
            assert!(why.contains(part), "{claim} = {value}: {why}");
        }
        for claim in ["exp", "aud", "hd", "email", "sub"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(outcome(&claims).is_err(), "{claim} is missing");
        }
    }

    /// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>
    #[test]
    fn the_example_of_the_kubernetes_documentation_works() {
        let text = r#"apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: 'https://example.com', audiences: [my-app]}
  claimValidationRules:
  - expression: 'claims.hd == "example.com"'
    message: the hd claim must be set to example.com
  - expression: 'claims.exp - claims.nbf <= 86400'
    message: total token lifetime must not exceed 24 hours
  claimMappings:
    username:
      expression: 'claims.username + ":external-user"'
    groups:
      expression: 'claims.roles.split(",")'
    uid:
      expression: 'claims.sub'
    extra:
    - key: 'example.com/tenant'
      valueExpression: 'claims.tenant'
  userValidationRules:
  - expression: "!user.username.startsWith('system:')"
    message: 'username cannot used reserved system: prefix'
  - expression: "user.groups.all(group, !group.startsWith('system:'))"
    message: 'groups cannot used reserved system: prefix'
"#;
        let issuer = config::parse(text).unwrap().remove(0);
        let good = json!({
            "aud": "my-app", "exp": NOW + 60, "nbf": NOW - 60, "hd": "example.com", "iss": "https://example.com",
            "roles": "user,admin", "sub": "auth", "tenant": "72f988bf", "username": "foo",
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let (identity, _) = user(&issuer, good.as_object().unwrap(), now).unwrap();
        assert_eq!(identity.user, "foo:external-user");
        assert_eq!(identity.uid.as_deref(), Some("auth"));
        assert_eq!(identity.groups, ["user", "admin"]);
        assert_eq!(identity.extra, [("example.com/tenant".to_owned(), "72f988bf".to_owned())]);
        for (claim, value, part) in [
            ("hd", json!("evil.example.com"), "the hd claim must be set"),
            ("hd", Value::Null, "the hd claim must be set"),
            ("nbf", json!(NOW - 86400), "total token lifetime"),
            ("nbf", json!("yesterday"), "not a time"),
            ("username", json!("system:root"), "reserved system: prefix"),
            ("username", json!(7), "claims.username"),
            ("roles", json!("user,system:masters"), "groups cannot"),
            ("roles", json!(["user"]), "claims.roles"),
            ("sub", json!(7), "not a text"),
            ("tenant", json!({"a": 1}), "claims.tenant"),
        ] {
            let mut claims = good.clone();
            claims[claim] = value.clone();
            let why = user(&issuer, claims.as_object().unwrap(), now).unwrap_err();
            assert!(why.contains(part), "{claim} = {value}: {why}");
        }
        for claim in ["hd", "nbf", "username", "roles", "sub", "tenant"] {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(user(&issuer, claims.as_object().unwrap(), now).is_err(), "{claim} is missing");
        }
    }

    #[test]
    fn a_clock_may_be_a_little_behind_the_issuers() {
        let mut claims = good();
        claims["nbf"] = json!(NOW + 299);
        assert!(outcome(&claims).is_ok());
    }

    proptest! {
        #[test]
        fn no_time_panics(exp in any::<f64>(), nbf in any::<f64>()) {
            let mut claims = good();
            claims["exp"] = json!(exp);
            claims["nbf"] = json!(nbf);
            let _ = outcome(&claims);
        }
    }
}
