//! Who a request is made for.

use bytes::BytesMut;

use super::error::{WireError, check_count};
use super::fields::{Field, write_field, write_pair};
use super::limits::MAX_IDENTITY_ENTRIES;

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
    /// Further attributes: a key, never empty, and one of its values for each entry. A key with several values has
    /// several entries.
    pub extra: Vec<(String, String)>,
}

impl Identity {
    /// An identity that has only a name.
    pub fn named(user: impl Into<String>) -> Self {
        Self { user: user.into(), ..Self::default() }
    }
}

/// The field numbers of one identity in a request head.
#[derive(Clone, Copy)]
pub(super) struct IdentityFields {
    user: u64,
    uid: u64,
    group: u64,
    extra: u64,
}

impl IdentityFields {
    /// Who makes the request.
    pub(super) const USER: Self = Self { user: 0x10, uid: 0x11, group: 0x12, extra: 0x13 };

    /// Whom the request asks to be made as.
    pub(super) const REQUESTED: Self = Self { user: 0x18, uid: 0x19, group: 0x1a, extra: 0x1b };

    /// Appends the fields of `identity`, unless a reader would refuse them.
    pub(super) fn write(&self, identity: &Identity, out: &mut BytesMut) -> Result<(), WireError> {
        let malformed = |field| WireError::Malformed { message: "identity", field };
        if identity.user.is_empty() {
            return Err(malformed("user"));
        }
        if identity.extra.iter().any(|(key, _)| key.is_empty()) {
            return Err(malformed("extra"));
        }
        check_count(GROUPS, identity.groups.len(), MAX_IDENTITY_ENTRIES)?;
        check_count(EXTRA, identity.extra.len(), MAX_IDENTITY_ENTRIES)?;
        write_field(self.user, identity.user.as_bytes(), out);
        if let Some(uid) = &identity.uid {
            write_field(self.uid, uid.as_bytes(), out);
        }
        for group in &identity.groups {
            write_field(self.group, group.as_bytes(), out);
        }
        for (key, value) in &identity.extra {
            write_pair(self.extra, key.as_bytes(), value.as_bytes(), out);
        }
        Ok(())
    }

    /// Collects the fields of this identity.
    pub(super) fn reader(self) -> IdentityReader {
        IdentityReader { numbers: self, user: None, rest: Identity::default() }
    }
}

/// Gathers an identity out of the fields of a message.
pub(super) struct IdentityReader {
    numbers: IdentityFields,
    user: Option<String>,
    rest: Identity,
}

impl IdentityReader {
    /// Keeps `field` if it belongs to this identity, and tells whether it did.
    pub(super) fn takes(&mut self, field: &Field) -> Result<bool, WireError> {
        let numbers = self.numbers;
        match field.number {
            number if number == numbers.user => {
                let user = field.text("user")?;
                if user.is_empty() {
                    return Err(field.malformed("user"));
                }
                field.set_once(&mut self.user, user, "user")?;
            }
            number if number == numbers.uid => field.set_once(&mut self.rest.uid, field.text("uid")?, "uid")?,
            number if number == numbers.group => {
                check_count(GROUPS, self.rest.groups.len() + 1, MAX_IDENTITY_ENTRIES)?;
                self.rest.groups.push(field.text("group")?);
            }
            number if number == numbers.extra => {
                check_count(EXTRA, self.rest.extra.len() + 1, MAX_IDENTITY_ENTRIES)?;
                let (key, value) = field.text_pair("extra")?;
                if key.is_empty() {
                    return Err(field.malformed("extra"));
                }
                self.rest.extra.push((key, value));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The identity, if one was there. Groups, uid or extra without a user are an error: whose would they be?
    pub(super) fn finish(self, message: &'static str) -> Result<Option<Identity>, WireError> {
        match self.user {
            Some(user) => Ok(Some(Identity { user, ..self.rest })),
            None if self.rest == Identity::default() => Ok(None),
            None => Err(WireError::NotExactlyOne { message, field: "user" }),
        }
    }
}

const GROUPS: &str = "the groups of an identity";
const EXTRA: &str = "the extra of an identity";
