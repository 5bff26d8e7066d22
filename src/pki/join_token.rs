//! The text with which an agent joins.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};

use super::certificate::{CertificateFingerprint, sha256, write_hex};
use crate::wire::{ClusterId, InvalidName};

/// What an operator hands to a new agent: which cluster it may join, a secret that proves it, and the fingerprint of the
/// server authority by which it recognizes the stub.
///
/// As text it is `qtj1.` and the base64url of id, secret, fingerprint, cluster id and a checksum. Whoever has the text can
/// join, so `Debug` does not show the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: TokenId,
    secret: TokenSecret,
    cluster: ClusterId,
    authority: CertificateFingerprint,
}

impl JoinToken {
    /// A token with a random id and secret.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate(cluster: ClusterId, authority: CertificateFingerprint) -> Result<Self, RandomFailure> {
        Ok(Self { id: TokenId(random()?), secret: TokenSecret(random()?), cluster, authority })
    }

    /// The token's public name, which may appear in logs.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// What proves that the holder may join.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// The cluster that the holder may join.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The fingerprint of the authority that signed the stub's server certificate.
    pub fn authority(&self) -> CertificateFingerprint {
        self.authority
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [
            self.id.as_bytes().as_slice(),
            self.secret.as_bytes(),
            self.authority.as_bytes(),
            self.cluster.as_str().as_bytes(),
        ]
        .concat();
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    /// White space around the token is ignored, because tokens are kept in files and pasted.
    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinToken::Prefix)?;
        if encoded.len() > MAX_ENCODED_LENGTH {
            return Err(InvalidJoinToken::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| match error {
            DecodeError::InvalidByte(..) => InvalidJoinToken::Characters,
            // Another length than base64 can have, or stray bits at the end: something was cut off.
            _ => InvalidJoinToken::Damaged,
        })?;
        let (content, sum) = bytes.split_last_chunk().ok_or(InvalidJoinToken::Damaged)?;
        if checksum(content) != *sum {
            return Err(InvalidJoinToken::Damaged);
        }
        let (id, rest) = content.split_first_chunk().ok_or(InvalidJoinToken::Damaged)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(InvalidJoinToken::Damaged)?;
        let (authority, cluster) = rest.split_first_chunk().ok_or(InvalidJoinToken::Damaged)?;
        Ok(Self {
            id: TokenId(*id),
            secret: TokenSecret(*secret),
            cluster: String::from_utf8_lossy(cluster).parse()?,
            authority: CertificateFingerprint::from_bytes(*authority),
        })
    }
}

/// The public name of a join token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId([u8; TokenId::LENGTH]);

impl TokenId {
    /// Bytes in an id.
    pub const LENGTH: usize = 8;

    /// An id as it came over the wire.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes to send over the wire.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

/// The secret of a join token. It is compared in constant time and never shown.
#[derive(Clone)]
pub struct TokenSecret([u8; TokenSecret::LENGTH]);

impl TokenSecret {
    /// Bytes in a secret.
    pub const LENGTH: usize = 32;

    /// A secret as it came over the wire.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes to send over the wire.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// What the stub keeps. A plain hash is enough: nobody can guess 256 random bits.
    pub(super) fn hash(&self) -> String {
        URL_SAFE_NO_PAD.encode(sha256(&self.0))
    }

    /// Whether this is the secret whose [`hash`](Self::hash) was kept.
    pub(super) fn has_hash(&self, kept: &str) -> bool {
        verify_slices_are_equal(self.hash().as_bytes(), kept.as_bytes()).is_ok()
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for TokenSecret {}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(...)")
    }
}

/// Why a text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJoinToken {
    /// It begins differently.
    #[error("this is not a join token of this version of qtunnel: it must begin with {PREFIX:?}")]
    Prefix,
    /// Characters that base64url does not have.
    #[error("the join token has characters that do not belong there: copy it again, without quotes or line breaks")]
    Characters,
    /// The checksum is wrong, or parts are missing.
    #[error("the join token is incomplete or mistyped: copy all of it again")]
    Damaged,
    /// The cluster id is none.
    #[error("the join token is for no usable cluster: {0}")]
    Cluster(#[from] InvalidName),
}

/// The system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct RandomFailure;

/// The kind of token and the version of its content.
const PREFIX: &str = "qtj1.";
/// More than the longest token has.
const MAX_ENCODED_LENGTH: usize = 256;

/// Catches what is lost or mistyped in copying; it protects against nobody.
fn checksum(content: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(content);
    [a, b, c, d]
}

fn random<const N: usize>() -> Result<[u8; N], RandomFailure> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| RandomFailure)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(cluster: &str) -> JoinToken {
        JoinToken::generate(cluster.parse().unwrap(), CertificateFingerprint::from_bytes([7; 32])).unwrap()
    }

    #[test]
    fn a_token_survives_being_written_down() {
        for cluster in ["a", "prod-eu", &"x".repeat(63)] {
            let token = token(cluster);
            assert_eq!(format!("  {token}\n").parse(), Ok(token));
        }
    }

    #[test]
    fn a_token_does_not_show_its_secret_in_debug_output() {
        let token = token("prod");
        let secret = URL_SAFE_NO_PAD.encode(token.secret().as_bytes());
        let shown = format!("{token:?}");
        assert!(shown.contains("TokenSecret(...)") && !shown.contains(&secret), "{shown}");
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let text = token("prod-eu").to_string();
        let cases = [
            ("".to_owned(), InvalidJoinToken::Prefix),
            (text.replace("qtj1.", "qtj9."), InvalidJoinToken::Prefix),
            (format!("\"{text}\""), InvalidJoinToken::Prefix),
            (format!("{text}!"), InvalidJoinToken::Characters),
            (text[..text.len() - 1].to_owned(), InvalidJoinToken::Damaged),
            (text[..text.len() - 4].to_owned(), InvalidJoinToken::Damaged),
            ("qtj1.".to_owned(), InvalidJoinToken::Damaged),
            (format!("qtj1.{}", "A".repeat(4000)), InvalidJoinToken::Damaged),
        ];
        for (damaged, expected) in cases {
            assert_eq!(damaged.parse::<JoinToken>(), Err(expected), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(position in 5_usize..100, letter in "[A-Za-z0-9_-]") {
            let text = token("prod-eu").to_string();
            let position = position.min(text.len() - 1);
            let mut mistyped = text.clone();
            mistyped.replace_range(position..=position, &letter);
            prop_assert_eq!(mistyped.parse::<JoinToken>().is_ok(), mistyped == text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(qtj1[.])?[ -~]{0,300}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
