//! Names that belong to Kubernetes itself.

use super::NotVouched;
use crate::kube::AUTHENTICATED;
use crate::kube::impersonation::{Pattern, is_reserved_extra};
use crate::wire::Identity;
use crate::wire::limits::MAX_IDENTITY_ENTRIES;

/// What every user and group of Kubernetes itself begins with.
const PREFIX: &str = "system:";

/// The group that is above all authorization.
const MASTERS: &str = "system:masters";

/// Which names under `system:` those outside may speak for: token issuers, webhooks and further certificate authorities.
///
/// By default none: an issuer in which users choose their own names or groups must not make administrators. The API server
/// leaves that to validation rules in each configuration; here it is so unless somebody says otherwise. Nobody outside ever
/// speaks for `system:masters`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemNames(Vec<Pattern>);

impl SystemNames {
    /// Permits these names, users and groups alike.
    pub fn new(permitted: Vec<Pattern>) -> Self {
        Self(permitted)
    }

    /// The identity, if somebody outside may vouch for it. `system:authenticated` is taken out: everybody is in it.
    ///
    /// # Errors
    /// [`NotVouched::Refused`] for an identity with another name under `system:`, one that only the tunnel may give, or
    /// more groups or extras than travel.
    pub fn check(&self, mut identity: Identity) -> Result<Identity, NotVouched> {
        identity.groups.retain(|group| group != AUTHENTICATED);
        let mut names = std::iter::once(&identity.user).chain(&identity.groups);
        if let Some(name) = names.find(|name| !self.permits(name)) {
            return Err(NotVouched::Refused(format!(
                "the name {name:?} belongs to Kubernetes itself; `system_names` under [authentication] can permit it"
            )));
        }
        if identity.user.is_empty() {
            return Err(NotVouched::Refused("the user has no name".to_owned()));
        }
        if let Some((key, _)) = identity.extra.iter().find(|(key, _)| key.is_empty() || is_reserved_extra(key)) {
            return Err(NotVouched::Refused(format!("the extra key {key:?} is not for others to give")));
        }
        if identity.groups.len().max(identity.extra.len()) > MAX_IDENTITY_ENTRIES {
            let why = format!("it has more than {MAX_IDENTITY_ENTRIES} groups or extras");
            return Err(NotVouched::Refused(why));
        }
        Ok(identity)
    }

    fn permits(&self, name: &str) -> bool {
        !name.starts_with(PREFIX) || (name != MASTERS && self.0.iter().any(|pattern| pattern.matches(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity { groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Identity::named(user) }
    }

    #[test]
    fn nobody_outside_makes_an_administrator() {
        let open = SystemNames::new(vec!["*".parse().unwrap()]);
        for names in [&SystemNames::default(), &open] {
            assert!(names.check(identity("eve", &["devs", "system:masters"])).is_err());
            assert!(names.check(identity("system:masters", &[])).is_err());
            assert!(names.check(identity("alice", &["devs"])).is_ok());
        }
    }

    #[test]
    fn names_of_kubernetes_have_to_be_permitted() {
        let account = identity("system:serviceaccount:ci:robot", &["system:serviceaccounts", "system:authenticated"]);
        assert!(SystemNames::default().check(account.clone()).is_err());
        let names = ["system:serviceaccount:ci:*", "system:serviceaccounts"].map(|name| name.parse().unwrap());
        let checked = SystemNames::new(names.to_vec()).check(account).unwrap();
        assert_eq!(checked.groups, ["system:serviceaccounts"], "everybody is in system:authenticated");
    }

    #[test]
    fn an_identity_has_a_name_and_no_extra_of_the_tunnel() {
        let names = SystemNames::default();
        assert!(names.check(identity("", &[])).is_err());
        for key in ["", "qtunnel.dev/original-user"] {
            let extra = vec![(key.to_owned(), "x".to_owned())];
            assert!(names.check(Identity { extra, ..Identity::named("eve") }).is_err(), "{key:?}");
        }
        let groups = vec!["g".to_owned(); MAX_IDENTITY_ENTRIES + 1];
        assert!(names.check(Identity { groups, ..Identity::named("eve") }).is_err());
    }
}
