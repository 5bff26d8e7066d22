//! `AuthenticationConfiguration` of `apiserver.config.k8s.io` (`apiserver/pkg/apis/apiserver/v1/types.go`), as
//! kube-apiserver reads it with `--authentication-config`.
//!
//! CEL is not interpreted here. Of expressions, those that only name a claim (`claims.email`, `claims.google.org`) are
//! understood; any other is an error, because leaving a rule out would let somebody in.

use std::collections::HashSet;

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

/// An issuer and what its tokens mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtConfig {
    /// `iss` of its tokens.
    pub issuer: String,
    /// Where its configuration is.
    pub discovery: Uri,
    /// PEM of whom to trust there; `None`: whom the operating system trusts.
    pub certificate_authority: Option<String>,
    /// One of them has to be among `aud`.
    pub audiences: Vec<String>,
    /// Claims that a token has to have.
    pub required: Vec<RequiredClaim>,
    /// What becomes the user's name.
    pub username: Mapping,
    /// What become the groups.
    pub groups: Option<Mapping>,
    /// What becomes the uid.
    pub uid: Option<ClaimPath>,
    /// What become extras, by their keys.
    pub extra: Vec<(String, ClaimPath)>,
}

/// A claim that has to be there, with this value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredClaim {
    /// The claim.
    pub claim: String,
    /// Its value; `None`: any.
    pub value: Option<String>,
}

/// A claim that becomes a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The claim.
    pub claim: ClaimPath,
    /// What is put before its value.
    pub prefix: String,
}

/// The name of a claim, or the names that lead to one within an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(pub Vec<String>);

/// Reads a configuration.
///
/// # Errors
/// What it is that cannot be used.
pub fn parse(text: &str) -> Result<Vec<JwtConfig>, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Document = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if document.anonymous.is_some() {
        return Err("anonymous belongs into the stub's settings: `anonymous` under [authentication]".to_owned());
    }
    let mut issuers = Vec::new();
    for (index, authenticator) in document.jwt.into_iter().enumerate() {
        issuers.push(authenticator.read().map_err(|why| format!("jwt[{index}]: {why}"))?);
    }
    let mut seen = HashSet::new();
    match issuers.iter().find(|config| !seen.insert(&config.issuer)) {
        Some(config) => Err(format!("the issuer {} stands there twice", config.issuer)),
        None => Ok(issuers),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: Kind,
    #[serde(default)]
    jwt: Vec<Authenticator>,
    anonymous: Option<serde::de::IgnoredAny>,
}

/// They have the same fields.
#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "apiserver.config.k8s.io/v1")]
    V1,
    #[serde(rename = "apiserver.config.k8s.io/v1beta1")]
    V1Beta1,
}

#[derive(Deserialize)]
enum Kind {
    AuthenticationConfiguration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Authenticator {
    issuer: Issuer,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimValidationRule>,
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Issuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    certificate_authority: Option<String>,
    audiences: Vec<String>,
    audience_match_policy: Option<AudienceMatchPolicy>,
}

#[derive(Deserialize)]
enum AudienceMatchPolicy {
    MatchAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClaimValidationRule {
    claim: Option<String>,
    #[serde(default)]
    required_value: String,
    expression: Option<String>,
    #[serde(rename = "message")]
    _message: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClaimMappings {
    username: PrefixedClaim,
    groups: Option<PrefixedClaim>,
    uid: Option<ClaimOrExpression>,
    #[serde(default)]
    extra: Vec<ExtraMapping>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PrefixedClaim {
    claim: Option<String>,
    prefix: Option<String>,
    expression: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClaimOrExpression {
    claim: Option<String>,
    expression: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExtraMapping {
    key: String,
    value_expression: String,
}

impl Authenticator {
    fn read(self) -> Result<JwtConfig, String> {
        if !self.user_validation_rules.is_empty() {
            return Err(
                "userValidationRules are CEL expressions, which are not supported. Names under system: are refused \
                        without a rule"
                    .to_owned(),
            );
        }
        let Issuer { url, discovery_url, certificate_authority, audiences, audience_match_policy } = self.issuer;
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err("issuer.audiences has to name at least one audience, and none may be empty".to_owned());
        }
        if audiences.len() > 1 && audience_match_policy.is_none() {
            return Err("several audiences need audienceMatchPolicy: MatchAny".to_owned());
        }
        if let Some(pem) = &certificate_authority {
            check_certificates(pem)?;
        }
        https("issuer.url", &url)?;
        let discovery = match discovery_url.filter(|url| !url.is_empty()) {
            Some(discovery) => https("issuer.discoveryURL", &discovery)?,
            None => https("issuer.url", &format!("{}/.well-known/openid-configuration", url.trim_end_matches('/')))?,
        };
        let mappings = self.claim_mappings;
        Ok(JwtConfig {
            issuer: url,
            discovery,
            certificate_authority,
            audiences,
            required: self.claim_validation_rules.into_iter().map(required_claim).collect::<Result<_, _>>()?,
            username: mappings.username.read("claimMappings.username")?,
            groups: mappings.groups.map(|groups| groups.read("claimMappings.groups")).transpose()?,
            uid: mappings.uid.map(|uid| claim_path("claimMappings.uid", uid.claim, uid.expression)).transpose()?,
            extra: mappings.extra.into_iter().map(extra).collect::<Result<_, _>>()?,
        })
    }
}

impl PrefixedClaim {
    /// As in the API server a claim needs a prefix, and be it an empty one, while an expression has none.
    fn read(self, name: &str) -> Result<Mapping, String> {
        match (&self.claim, &self.prefix, &self.expression) {
            (Some(_), None, _) => return Err(format!("{name} needs a prefix beside its claim; prefix: \"\" is none")),
            (None, Some(_), _) => return Err(format!("{name} has a prefix, and needs a claim")),
            _ => {}
        }
        let claim = claim_path(name, self.claim, self.expression)?;
        Ok(Mapping { claim, prefix: self.prefix.unwrap_or_default() })
    }
}

fn claim_path(name: &str, claim: Option<String>, expression: Option<String>) -> Result<ClaimPath, String> {
    match (claim.filter(|claim| !claim.is_empty()), expression.filter(|expression| !expression.is_empty())) {
        (Some(claim), None) => Ok(ClaimPath(vec![claim])),
        (None, Some(expression)) => named_claim(&expression).ok_or_else(|| {
            format!("{name}: the expression {expression:?} is not supported: of CEL only claims.NAME is understood")
        }),
        _ => Err(format!("{name} needs either a claim or an expression")),
    }
}

/// The claim that a CEL expression of the form `claims.a.b` names.
fn named_claim(expression: &str) -> Option<ClaimPath> {
    let path = expression.trim().strip_prefix("claims.")?;
    let names: Vec<String> = path.split('.').map(str::to_owned).collect();
    let is_name = |name: &String| {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        starts_well && name.chars().all(|other| other.is_ascii_alphanumeric() || other == '_')
    };
    names.iter().all(is_name).then_some(ClaimPath(names))
}

fn required_claim(rule: ClaimValidationRule) -> Result<RequiredClaim, String> {
    match (rule.claim.filter(|claim| !claim.is_empty()), rule.expression) {
        (Some(claim), None) => {
            let value = Some(rule.required_value).filter(|value| !value.is_empty());
            Ok(RequiredClaim { claim, value })
        }
        (None, Some(expression)) => Err(format!(
            "claimValidationRules: the expression {expression:?} is not supported; claim and requiredValue are"
        )),
        _ => Err("a rule of claimValidationRules needs a claim".to_owned()),
    }
}

/// Keys are paths under a domain, in lower case, and not one of Kubernetes' own.
fn extra(mapping: ExtraMapping) -> Result<(String, ClaimPath), String> {
    let ExtraMapping { key, value_expression } = mapping;
    let (domain, path) = key.split_once('/').unwrap_or(("", ""));
    let is_reserved = |reserved: &str| domain == reserved || domain.ends_with(&format!(".{reserved}"));
    if domain.is_empty() || path.is_empty() || key.chars().any(|letter| letter.is_ascii_uppercase()) {
        return Err(format!(
            "claimMappings.extra: the key {key:?} is not in lower case with a domain: example.com/org"
        ));
    }
    if ["kubernetes.io", "k8s.io"].into_iter().any(is_reserved) {
        return Err(format!("claimMappings.extra: the key {key:?} belongs to Kubernetes itself"));
    }
    let path = claim_path(&format!("claimMappings.extra[{key}]"), None, Some(value_expression))?;
    Ok((key, path))
}

fn https(name: &str, text: &str) -> Result<Uri, String> {
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https") && uri.authority().is_some());
    let uri = uri.filter(|uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@')));
    uri.ok_or_else(|| format!("{name} has to be an https:// address, and is {text:?}"))
}

fn check_certificates(pem: &str) -> Result<(), String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates.is_ok_and(|certificates| !certificates.is_empty()) {
        true => Ok(()),
        false => Err("issuer.certificateAuthority is not a certificate in PEM".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(rest: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}")
    }

    const GOOD: &str = "jwt:
- issuer:
    url: https://issuer.example.com/realm
    audiences: [kubernetes, stub]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  claimMappings:
    username: {claim: email, prefix: ''}
    groups: {claim: groups, prefix: 'oidc:'}
    uid: {claim: sub}
    extra:
    - {key: example.com/org, valueExpression: claims.company.org}
";

    #[test]
    fn a_configuration_of_the_api_server_is_read() {
        let [config] = parse(&configuration(GOOD)).unwrap().try_into().unwrap();
        assert_eq!(config.issuer, "https://issuer.example.com/realm");
        assert_eq!(config.discovery, "https://issuer.example.com/realm/.well-known/openid-configuration");
        assert_eq!(config.audiences, ["kubernetes", "stub"]);
        let required = RequiredClaim { claim: "hd".to_owned(), value: Some("example.com".to_owned()) };
        assert_eq!(config.required, [required]);
        let path = |names: &[&str]| ClaimPath(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(config.username, Mapping { claim: path(&["email"]), prefix: String::new() });
        assert_eq!(config.groups, Some(Mapping { claim: path(&["groups"]), prefix: "oidc:".to_owned() }));
        assert_eq!(config.uid, Some(path(&["sub"])));
        assert_eq!(config.extra, [("example.com/org".to_owned(), path(&["company", "org"]))]);
        assert_eq!(parse(&configuration("jwt: []")), Ok(vec![]));
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_never_left_out() {
        for (from, to, part) in [
            ("https://issuer.example.com/realm", "http://issuer.example.com", "https://"),
            ("audiences: [kubernetes, stub]", "audiences: []", "audience"),
            ("    audienceMatchPolicy: MatchAny\n", "", "MatchAny"),
            ("MatchAny", "MatchAll", "MatchAll"),
            ("claim: email, prefix: ''", "claim: email", "prefix"),
            ("claim: email, prefix: ''", "expression: claims.email + 'x'", "not supported"),
            ("claim: email, prefix: ''", "expression: claims.email, prefix: x", "needs a claim"),
            ("claim: email, prefix: ''", "prefix: x", "needs a claim"),
            ("claim: hd\n    requiredValue: example.com", "expression: claims.hd == 'x'", "not supported"),
            ("claimMappings:", "userValidationRules: [{expression: 'true'}]\n  claimMappings:", "userValidationRules"),
            ("example.com/org", "Example.com/org", "lower case"),
            ("example.com/org", "x.k8s.io/org", "Kubernetes"),
            ("claims.company.org", "\"claims['company']\"", "not supported"),
            ("    audiences", "    colour: red\n    audiences", "colour"),
            ("    audiences", "    certificateAuthority: x\n    audiences", "certificateAuthority"),
            ("jwt:", "anonymous: {enabled: true}\njwt:", "anonymous"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let why = parse(&configuration(&GOOD.replacen(from, to, 1))).unwrap_err();
            assert!(why.contains(part), "{to}: {why}");
        }
        let twice = configuration(&(GOOD.to_owned() + GOOD.strip_prefix("jwt:\n").unwrap()));
        assert!(parse(&twice).unwrap_err().contains("twice"));
    }
}
