//! Who a request is made for.

/// A Kubernetes user: what `user.Info` is in the API server (`apiserver/pkg/authentication/user`).
///
/// It travels in fields of its own, never among the HTTP headers, so that no header of a client can become an identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user's name. Never empty in an identity that came from [`super::RequestHead`].
    pub user: String,
    /// The user's unique id, where the authenticator knows one.
    pub uid: Option<String>,
    /// The user's groups, in the authenticator's order.
    pub groups: Vec<String>,
    /// Further attributes: a key and one of its values for each entry. A key with several values has several entries.
    pub extra: Vec<(String, String)>,
}

impl Identity {
    /// An identity that has only a name.
    pub fn named(user: impl Into<String>) -> Self {
        Self { user: user.into(), ..Self::default() }
    }
}
