//! The names that the API server gives by itself (`apiserver/pkg/authentication/user/user.go`).

use crate::wire::Identity;

/// The user without credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// The group of everybody who is known.
pub const AUTHENTICATED: &str = "system:authenticated";

/// The group of everybody who is not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The groups that a user is in, with the one that the API server adds (`apiserver/pkg/authentication/group`).
pub fn effective_groups(user: &Identity) -> impl Iterator<Item = &str> {
    let is_named = |name| user.groups.iter().any(|group| group == name);
    let added = !is_named(UNAUTHENTICATED) && !is_named(AUTHENTICATED);
    user.groups.iter().map(String::as_str).chain(added.then_some(AUTHENTICATED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_is_known_is_authenticated() {
        let groups = |groups: &[&str]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            let user = Identity { groups, ..Identity::named("u") };
            effective_groups(&user).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(groups(&["devs"]), ["devs", AUTHENTICATED]);
        assert_eq!(groups(&[AUTHENTICATED]), [AUTHENTICATED]);
        assert_eq!(groups(&[UNAUTHENTICATED]), [UNAUTHENTICATED]);
    }
}
