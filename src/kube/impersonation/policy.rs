//! Who may be impersonated at all, whatever the stub says.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::wire::Identity;

/// An agent's own limit on the identities it acts as, so that a stub in the wrong hands is not an administrator of every cluster.
///
/// The default permits everyone but the names that Kubernetes itself gives rights to:
/// - group `system:masters`, which is above all authorization, and `kubeadm:cluster-admins`;
/// - users `system:node:*` and `system:bootstrap:*`, groups `system:nodes` and `system:bootstrappers*`: what a node may do;
/// - users `system:serviceaccount:*`, groups `system:serviceaccounts*`: programs in the cluster, with their own credentials;
/// - users `system:kube-*` (the controller manager may mint a token of any service account) and `system:apiserver`;
/// - a user of the name `system:masters`, which only a mistake can mean.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImpersonationPolicy {
    /// The rules for user names.
    pub users: NameRules,
    /// The rules for group names; each group of an identity must be permitted.
    pub groups: NameRules,
}

/// A name is permitted where an `allow` pattern matches it and no `deny` pattern does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRules {
    /// Default: `*`, every name.
    #[serde(default = "any_name")]
    pub allow: Vec<Pattern>,
    /// It must be given where rules are given at all, because it takes the place of the default ones.
    pub deny: Vec<Pattern>,
}

/// A name, or with a `*` at its end all names that begin with what stands before.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    text: String,
    is_prefix: bool,
}

impl ImpersonationPolicy {
    /// Whether the agent may act as this identity.
    pub fn permits(&self, identity: &Identity) -> Result<(), Refusal> {
        if !self.users.permit(&identity.user) {
            return Err(Refusal { kind: "user", name: identity.user.clone() });
        }
        match identity.groups.iter().find(|group| !self.groups.permit(group)) {
            Some(group) => Err(Refusal { kind: "group", name: group.clone() }),
            None => Ok(()),
        }
    }
}

impl Default for ImpersonationPolicy {
    fn default() -> Self {
        let users = [
            prefix("system:bootstrap:"),
            prefix("system:kube-"),
            prefix("system:node:"),
            prefix("system:serviceaccount:"),
            exact("system:apiserver"),
            exact("system:masters"),
        ];
        let groups = [
            prefix("system:bootstrappers"),
            prefix("system:serviceaccounts"),
            exact("kubeadm:cluster-admins"),
            exact("system:masters"),
            exact("system:nodes"),
        ];
        Self {
            users: NameRules { allow: any_name(), deny: users.to_vec() },
            groups: NameRules { allow: any_name(), deny: groups.to_vec() },
        }
    }
}

/// An identity that the agent does not act as. It becomes a 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this cluster's agent does not impersonate the {kind} {name:?}")]
pub struct Refusal {
    kind: &'static str,
    name: String,
}

/// A text that is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name pattern: it must not be empty, and a \"*\" may stand only at the end")]
pub struct InvalidPattern(String);

impl NameRules {
    fn permit(&self, name: &str) -> bool {
        self.allow.iter().any(|pattern| pattern.matches(name)) && !self.deny.iter().any(|pattern| pattern.matches(name))
    }
}

impl Pattern {
    /// Whether this is the name, or one of the names.
    pub fn matches(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |name| (name, true));
        if text.is_empty() || name.contains('*') {
            return Err(InvalidPattern(text.to_owned()));
        }
        Ok(Self { text: name.to_owned(), is_prefix })
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

fn any_name() -> Vec<Pattern> {
    vec![prefix("")]
}

fn prefix(text: &str) -> Pattern {
    Pattern { text: text.to_owned(), is_prefix: true }
}

fn exact(text: &str) -> Pattern {
    Pattern { text: text.to_owned(), is_prefix: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity { groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Identity::named(user) }
    }

    #[test]
    fn by_default_people_are_permitted() {
        let policy = ImpersonationPolicy::default();
        for (user, groups) in [
            ("alice", vec!["devs", "system:authenticated"]),
            ("system:anonymous", vec!["system:unauthenticated"]),
            ("system:nodeworker", vec!["system:nodes-team"]),
        ] {
            assert_eq!(policy.permits(&identity(user, &groups)), Ok(()), "{user}");
        }
    }

    #[test]
    fn by_default_nobody_becomes_a_part_of_kubernetes() {
        let policy = ImpersonationPolicy::default();
        for user in [
            "system:masters",
            "system:node:n1",
            "system:serviceaccount:kube-system:x",
            "system:kube-controller-manager",
            "system:apiserver",
            "system:bootstrap:abcdef",
        ] {
            assert!(policy.permits(&identity(user, &[])).is_err(), "{user}");
        }
        for group in [
            "system:masters",
            "system:nodes",
            "system:serviceaccounts",
            "system:serviceaccounts:ci",
            "system:bootstrappers:kubeadm:default-node-token",
            "kubeadm:cluster-admins",
        ] {
            let refusal = policy.permits(&identity("alice", &["devs", group])).unwrap_err();
            assert!(refusal.to_string().contains(group), "{refusal}");
        }
    }

    #[test]
    fn a_configured_policy_takes_the_place_of_the_default() {
        let policy: ImpersonationPolicy =
            toml::from_str("[users]\nallow = ['dev-*', 'alice']\ndeny = ['dev-root']\n").unwrap();
        for (user, permitted) in
            [("dev-1", true), ("alice", true), ("dev-root", false), ("alice2", false), ("bob", false)]
        {
            assert_eq!(policy.permits(&identity(user, &[])).is_ok(), permitted, "{user}");
        }
        assert!(policy.permits(&identity("alice", &["system:masters"])).is_err(), "groups keep their default");
    }

    #[test]
    fn a_policy_that_cannot_be_understood_is_an_error() {
        for text in [
            "users = { allow = ['a*b'], deny = [] }",
            "users = { allow = [''], deny = [] }",
            "users = { allow = ['a'] }",
            "users = { deny = [], denied = ['a'] }",
            "user = { deny = [] }",
        ] {
            assert!(toml::from_str::<ImpersonationPolicy>(text).is_err(), "{text}");
        }
        assert_eq!("dev-*".parse::<Pattern>().unwrap().to_string(), "dev-*");
    }
}
