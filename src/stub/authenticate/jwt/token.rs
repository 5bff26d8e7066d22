//! A JSON Web Token: three parts (RFC 7519), of which the last is the signature over the others (RFC 7515).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, EcdsaVerificationAlgorithm,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What a token says: its claims by name.
pub type Claims = Map<String, Value>;

/// A token as it was sent. Nothing of it is true before its signature is verified.
pub struct SignedToken<'a> {
    /// How it says it is signed.
    pub algorithm: Algorithm,
    /// Which key it says it is signed with.
    pub key_id: Option<String>,
    /// What it says.
    pub unverified: Claims,
    /// What is signed: the first two parts with the dot between.
    signed: &'a str,
    signature: Vec<u8>,
}

/// Why a text is not a signed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this kind at all: other authenticators may know what it is.
    #[error("it is not a JSON Web Token")]
    NotAToken,
    /// Unsigned, signed with a shared secret, or in a way that nobody here knows.
    #[error("it is signed in a way that is not supported: RS, PS and ES with 256, 384 and 512 are")]
    Algorithm,
    /// An extension that has to be understood (RFC 7515, section 4.1.11).
    #[error("its header has extensions that would have to be understood (crit)")]
    Critical,
}

impl<'a> SignedToken<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::NotAToken)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::NotAToken)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::NotAToken);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::NotAToken)?;
        let unverified = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::NotAToken)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(TokenError::Algorithm)?;
        Ok(Self { algorithm, key_id: header.kid, unverified, signed, signature: decode(signature)? })
    }

    /// What the token says, if this key has signed it.
    pub fn verify(&self, key: &PublicKey) -> Option<&Claims> {
        key.verify(self.algorithm, self.signed.as_bytes(), &self.signature).then_some(&self.unverified)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// How a token is signed (RFC 7518, section 3.1): what the API server accepts from issuers. `none` and shared secrets are
/// not among it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    const ALL: [(&'static str, Self); 9] = [
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(other, _)| *other == name).map(|(_, algorithm)| algorithm)
    }

    /// For RSA keys: padding, hash, and the lengths of keys that are safe.
    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Es512 => return None,
        })
    }

    /// For elliptic curves: each algorithm has its one curve (RFC 7518, section 3.4).
    fn ecdsa(self, curve: Curve) -> Option<&'static EcdsaVerificationAlgorithm> {
        match (self, curve) {
            (Self::Es256, Curve::P256) => Some(&ECDSA_P256_SHA256_FIXED),
            (Self::Es384, Curve::P384) => Some(&ECDSA_P384_SHA384_FIXED),
            (Self::Es512, Curve::P521) => Some(&ECDSA_P521_SHA512_FIXED),
            _ => None,
        }
    }
}

/// A key that signatures are verified with. It verifies only what its kind can have signed, whatever a token claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point.
    EllipticCurve { curve: Curve, point: Vec<u8> },
}

/// A curve (RFC 7518, section 6.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// The curve of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// The bytes of a coordinate.
    pub fn coordinate_length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl PublicKey {
    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Self::EllipticCurve { curve, point } => algorithm
                .ecdsa(*curve)
                .is_some_and(|parameters| UnparsedPublicKey::new(parameters, point).verify(message, signature).is_ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(header: &str, payload: &str) -> TokenError {
        let token = format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        SignedToken::parse(&token).err().unwrap()
    }

    #[test]
    fn a_token_that_is_not_signed_by_a_private_key_is_refused() {
        for algorithm in ["none", "None", "", "HS256", "HS512", "EdDSA", "rs256"] {
            assert_eq!(error(&format!("{{\"alg\":\"{algorithm}\"}}"), "{}"), TokenError::Algorithm, "{algorithm}");
        }
        assert_eq!(error("{\"alg\":\"RS256\",\"crit\":[\"exp\"]}", "{}"), TokenError::Critical);
        assert_eq!(error("{}", "{}"), TokenError::NotAToken);
        assert_eq!(error("{\"alg\":\"RS256\"}", "[]"), TokenError::NotAToken);
    }

    /// The example of RFC 7515, appendix A.3.
    const RFC_TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9\
        .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
        .DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    fn rfc_key() -> PublicKey {
        let decode = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let (x, y) = (
            decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
        );
        PublicKey::EllipticCurve { curve: Curve::P256, point: [&[4][..], &x, &y].concat() }
    }

    #[test]
    fn the_signature_of_the_specifications_example_is_good() {
        let token = SignedToken::parse(RFC_TOKEN).unwrap();
        assert_eq!(token.verify(&rfc_key()).unwrap()["iss"], "joe");
    }

    #[test]
    fn a_changed_token_and_another_key_are_noticed() {
        let claims = URL_SAFE_NO_PAD.encode("{\"iss\":\"joe\",\"admin\":true}");
        let mut parts: Vec<&str> = RFC_TOKEN.split('.').collect();
        parts[1] = &claims;
        let changed = parts.join(".");
        assert!(SignedToken::parse(&changed).unwrap().verify(&rfc_key()).is_none());
        let PublicKey::EllipticCurve { point, .. } = rfc_key() else { unreachable!() };
        let other_curve = PublicKey::EllipticCurve { curve: Curve::P384, point: point.clone() };
        let rsa = PublicKey::Rsa { n: point, e: vec![1, 0, 1] };
        for key in [other_curve, rsa] {
            assert!(SignedToken::parse(RFC_TOKEN).unwrap().verify(&key).is_none());
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(token in "[a-zA-Z0-9._-]{0,80}", point in prop::collection::vec(any::<u8>(), 0..140)) {
            let _ = SignedToken::parse(&token);
            let token = SignedToken::parse(RFC_TOKEN).unwrap();
            let keys = [
                PublicKey::EllipticCurve { curve: Curve::P256, point: point.clone() },
                PublicKey::Rsa { n: point.clone(), e: point },
            ];
            prop_assert!(keys.iter().all(|key| token.verify(key).is_none()));
        }
    }
}
