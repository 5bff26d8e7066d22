//! Names that travel on the wire and in certificates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest cluster id or agent name, in bytes: one DNS label (RFC 1123, section 2.1).
pub const MAX_NAME_LENGTH: usize = 63;

/// Why a text is not a cluster id or an agent name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a valid {what}: use 1 to {MAX_NAME_LENGTH} lower-case letters, digits and '-', with a letter or digit at both ends"
)]
pub struct InvalidName {
    what: &'static str,
    text: String,
}

macro_rules! dns_label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_dns_label(text) {
                    Ok(Self(text.into()))
                } else {
                    // A peer's text is quoted back only as far as a valid name could reach.
                    let text = text.chars().take(MAX_NAME_LENGTH).collect();
                    Err(InvalidName { what: $what, text })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

dns_label! {
    /// The id of a cluster: a DNS label, because it is the first label of the cluster's host name at the stub.
    ///
    /// ```
    /// use qtunnel::wire::ClusterId;
    /// assert!("prod-eu".parse::<ClusterId>().is_ok());
    /// assert!("Prod/EU".parse::<ClusterId>().is_err());
    /// ```
    ClusterId, "cluster id"
}

dns_label! {
    /// The name of one agent of a cluster: a DNS label that its certificate carries.
    AgentName, "agent name"
}

fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            bytes.len() <= MAX_NAME_LENGTH
                && alphanumeric(first)
                && alphanumeric(last)
                && bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_dns_label_are_refused() {
        let longest = "a".repeat(MAX_NAME_LENGTH);
        for good in ["a", "prod-eu", "0", longest.as_str()] {
            assert_eq!(good.parse::<ClusterId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        let too_long = "a".repeat(MAX_NAME_LENGTH + 1);
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", too_long.as_str()] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?} must be refused");
        }
    }
}
