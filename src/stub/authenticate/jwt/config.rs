//! `AuthenticationConfiguration` of `apiserver.config.k8s.io` (`apiserver/pkg/apis/apiserver/v1/types.go`), as
//! kube-apiserver reads it with `--authentication-config`.
//!
//! Whatever is not understood is an error, because leaving a rule out would let somebody in.

use std::collections::HashSet;

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::expression::Expression;

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
    /// What has to hold of the claims.
    pub claim_rules: Vec<ClaimRule>,
    /// What becomes the user's name.
    pub username: Mapping,
    /// What become the groups.
    pub groups: Option<Mapping>,
    /// What becomes the uid.
    pub uid: Option<Mapping>,
    /// What become extras, by their keys: expressions over `claims`.
    pub extra: Vec<(String, Expression)>,
    /// What has to hold of the user: expressions over `user`.
    pub user_rules: Vec<Rule>,
}

/// What has to hold of the claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimRule {
    /// A claim has this value; `None`: any.
    Required {
        /// The claim.
        claim: String,
        /// Its value.
        value: Option<String>,
    },
    /// An expression over `claims` is true.
    True(Rule),
}

/// An expression that has to be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The expression.
    pub expression: Expression,
    /// What to say where it is false.
    pub message: Option<String>,
}

/// What becomes a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// A claim.
    Claim {
        /// Its name.
        claim: String,
        /// What is put before its value.
        prefix: String,
    },
    /// An expression over `claims`.
    Expression(Expression),
}

/// What the expressions that look at claims call them.
pub const CLAIMS: &str = "claims";

/// What the expressions that look at the user call it.
pub const USER: &str = "user";

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
    user_validation_rules: Vec<UserValidationRule>,
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
    required_value: Option<String>,
    expression: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserValidationRule {
    expression: String,
    message: Option<String>,
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
        let config = JwtConfig {
            issuer: url,
            discovery,
            certificate_authority,
            audiences,
            claim_rules: self
                .claim_validation_rules
                .into_iter()
                .map(ClaimValidationRule::read)
                .collect::<Result<_, _>>()?,
            username: mappings.username.read("claimMappings.username")?,
            groups: mappings.groups.map(|groups| groups.read("claimMappings.groups")).transpose()?,
            uid: mappings.uid.map(ClaimOrExpression::read).transpose()?,
            extra: mappings.extra.into_iter().map(ExtraMapping::read).collect::<Result<_, _>>()?,
            user_rules: self
                .user_validation_rules
                .into_iter()
                .map(UserValidationRule::read)
                .collect::<Result<_, _>>()?,
        };
        config.email_is_verified().then_some(config).ok_or_else(|| {
            "claimMappings.username uses claims.email, which anybody may claim: claims.email_verified has to be used in it, in \
             claimMappings.extra or in claimValidationRules, as in claims.?email_verified.orValue(true) == true"
                .to_owned()
        })
    }
}

impl JwtConfig {
    /// Whether an expression for the name that uses an address is together with one that looks whether it is verified
    /// (`apiserver/pkg/apis/apiserver/validation/validation.go`). A name that is the claim itself is checked with each token.
    fn email_is_verified(&self) -> bool {
        let Mapping::Expression(username) = &self.username else { return true };
        let rules = self.claim_rules.iter().filter_map(|rule| match rule {
            ClaimRule::True(rule) => Some(&rule.expression),
            ClaimRule::Required { .. } => None,
        });
        let mut others = rules.chain(self.extra.iter().map(|(_, expression)| expression)).chain([username]);
        !username.looks_at(CLAIMS, "email") || others.any(|expression| expression.looks_at(CLAIMS, "email_verified"))
    }
}

impl PrefixedClaim {
    /// As in the API server a claim needs a prefix, and be it an empty one, while an expression has none.
    fn read(self, name: &str) -> Result<Mapping, String> {
        match (filled(self.claim), self.prefix, filled(self.expression)) {
            (Some(claim), Some(prefix), None) => Ok(Mapping::Claim { claim, prefix }),
            (None, None, Some(expression)) => Ok(Mapping::Expression(over(CLAIMS, name, &expression)?)),
            (Some(_), None, None) => Err(format!("{name} needs a prefix beside its claim; prefix: \"\" is none")),
            (None, Some(_), _) => Err(format!("{name} has a prefix, and needs a claim")),
            _ => Err(format!("{name} needs either a claim or an expression")),
        }
    }
}

impl ClaimOrExpression {
    fn read(self) -> Result<Mapping, String> {
        match (filled(self.claim), filled(self.expression)) {
            (Some(claim), None) => Ok(Mapping::Claim { claim, prefix: String::new() }),
            (None, Some(expression)) => Ok(Mapping::Expression(over(CLAIMS, "claimMappings.uid", &expression)?)),
            _ => Err("claimMappings.uid needs either a claim or an expression".to_owned()),
        }
    }
}

impl ClaimValidationRule {
    fn read(self) -> Result<ClaimRule, String> {
        match (filled(self.claim), filled(self.required_value), filled(self.expression), self.message) {
            (Some(claim), value, None, None) => Ok(ClaimRule::Required { claim, value }),
            (None, None, Some(expression), message) => {
                Ok(ClaimRule::True(Rule { expression: over(CLAIMS, "claimValidationRules", &expression)?, message }))
            }
            _ => Err("a rule of claimValidationRules needs either a claim, with a requiredValue if it matters, or an \
                      expression, with a message if you like"
                .to_owned()),
        }
    }
}

impl UserValidationRule {
    fn read(self) -> Result<Rule, String> {
        let expression = over(USER, "userValidationRules", &self.expression)?;
        Ok(Rule { expression, message: self.message })
    }
}

impl ExtraMapping {
    /// Keys are paths under a domain, in lower case, and not one of Kubernetes' own.
    fn read(self) -> Result<(String, Expression), String> {
        let Self { key, value_expression } = self;
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
        let expression = over(CLAIMS, &format!("claimMappings.extra[{key}]"), &value_expression)?;
        Ok((key, expression))
    }
}

/// Empty is as good as missing, as in Go.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn over(variable: &str, name: &str, source: &str) -> Result<Expression, String> {
    Expression::parse(source, variable).map_err(|why| format!("{name}: {why}"))
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
  - expression: claims.exp - claims.nbf <= 86400
    message: too long
  userValidationRules:
  - expression: user.username != 'root'
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
        let expression = |source| Expression::parse(source, CLAIMS).unwrap();
        let claim = |claim: &str, prefix: &str| Mapping::Claim { claim: claim.to_owned(), prefix: prefix.to_owned() };
        assert_eq!(
            config.claim_rules,
            [
                ClaimRule::Required { claim: "hd".to_owned(), value: Some("example.com".to_owned()) },
                ClaimRule::True(Rule {
                    expression: expression("claims.exp - claims.nbf <= 86400"),
                    message: Some("too long".to_owned())
                })
            ]
        );
        assert_eq!(config.username, claim("email", ""));
        assert_eq!(config.groups, Some(claim("groups", "oidc:")));
        assert_eq!(config.uid, Some(claim("sub", "")));
        assert_eq!(config.extra, [("example.com/org".to_owned(), expression("claims.company.org"))]);
        let rule = Expression::parse("user.username != 'root'", USER).unwrap();
        assert_eq!(config.user_rules, [Rule { expression: rule, message: None }]);
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
            ("claim: email, prefix: ''", "expression: claims.email + 'x'", "email_verified"),
            ("claim: email, prefix: ''", "expression: claims.sub +", "claimMappings.username"),
            ("claim: email, prefix: ''", "expression: user.username", "no user"),
            ("claim: email, prefix: ''", "claim: email, prefix: '', expression: claims.sub", "either"),
            ("claim: email, prefix: ''", "expression: claims.email, prefix: x", "needs a claim"),
            ("claim: email, prefix: ''", "prefix: x", "needs a claim"),
            ("claim: hd\n", "expression: claims.hd == 'x'\n", "claimValidationRules"),
            ("claim: hd\n", "claim: hd\n    message: x\n", "claimValidationRules"),
            ("claims.exp -", "expiry -", "no expiry"),
            ("user.username !=", "claims.sub !=", "no claims"),
            ("user.username !=", "beginning(user.username) !=", "no function beginning"),
            ("example.com/org", "Example.com/org", "lower case"),
            ("example.com/org", "x.k8s.io/org", "Kubernetes"),
            ("claims.company.org", "\"company['org']\"", "claimMappings.extra[example.com/org]"),
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
