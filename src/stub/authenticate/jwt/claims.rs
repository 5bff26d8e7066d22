//! From claims to a user.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::config::{ClaimPath, JwtConfig, Mapping};
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
    for required in &config.required {
        let value = claims.get(&required.claim).and_then(Value::as_str);
        let value = value.ok_or_else(|| format!("the claim {} is missing, or not a text", required.claim))?;
        if required.value.as_deref().is_some_and(|expected| value != expected) {
            return Err(format!("the claim {} is {value:?}", required.claim));
        }
    }
    Ok((identity(config, claims)?, until))
}

fn identity(config: &JwtConfig, claims: &Claims) -> Result<Identity, String> {
    let name = username(&config.username, claims)?;
    let groups = match &config.groups {
        Some(mapping) => {
            values(&mapping.claim, claims)?.into_iter().map(|group| mapping.prefix.clone() + &group).collect()
        }
        None => Vec::new(),
    };
    let uid = match &config.uid {
        Some(path) => Some(required_text(path, claims)?),
        None => None,
    };
    let mut extra = Vec::new();
    for (key, path) in &config.extra {
        extra.extend(values(path, claims)?.into_iter().map(|value| (key.clone(), value)));
    }
    Ok(Identity { user: config.username.prefix.clone() + &name, uid, groups, extra })
}

/// The name without its prefix. An address that the issuer has not verified names nobody
/// (`apiserver/plugin/pkg/authenticator/token/oidc/oidc.go`).
fn username(mapping: &Mapping, claims: &Claims) -> Result<String, String> {
    let name = required_text(&mapping.claim, claims)?;
    let is_email = mapping.claim.0.iter().eq(["email"]);
    match claims.get("email_verified") {
        Some(verified) if is_email && *verified != Value::Bool(true) => Err("its email is not verified".to_owned()),
        _ => Ok(name),
    }
}

fn required_text(path: &ClaimPath, claims: &Claims) -> Result<String, String> {
    let value = find(path, claims).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.map(str::to_owned).ok_or_else(|| format!("the claim {} is missing, empty, or not a text", path.0.join(".")))
}

/// The texts of a claim that is a text or a list of texts. A claim that is not there has none.
fn values(path: &ClaimPath, claims: &Claims) -> Result<Vec<String>, String> {
    let values = find(path, claims).map(strings).transpose();
    values.map(Option::unwrap_or_default).map_err(|why| format!("the claim {} {why}", path.0.join(".")))
}

fn find<'a>(path: &ClaimPath, claims: &'a Claims) -> Option<&'a Value> {
    let (first, rest) = path.0.split_first()?;
    rest.iter().try_fold(claims.get(first)?, |value, name| value.get(name)).filter(|value| !value.is_null())
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
    use serde_json::json;

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
    extra: [{key: example.com/org, valueExpression: claims.company.org}]
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
