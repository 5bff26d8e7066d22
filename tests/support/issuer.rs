//! An OpenID Connect issuer: it publishes its keys and signs tokens.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::https_service::HttpsService;

/// Whom its tokens are for.
pub const AUDIENCE: &str = "stub";

/// A running issuer.
pub struct Issuer {
    service: HttpsService,
    published: Arc<Mutex<Vec<Value>>>,
}

/// A key of an issuer.
pub struct SigningKey {
    id: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    EllipticCurve(EcdsaKeyPair),
}

impl Issuer {
    /// Starts one that publishes these keys.
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let published = Arc::new(Mutex::new(Vec::new()));
        let (url, shown) = (Arc::<Mutex<String>>::default(), published.clone());
        let own_url = url.clone();
        let service = HttpsService::start(move |asked| {
            let url = own_url.lock().unwrap().clone();
            match asked.path.as_str() {
                "/.well-known/openid-configuration" => (200, json!({"issuer": url, "jwks_uri": format!("{url}/keys")})),
                "/keys" => (200, json!({"keys": *shown.lock().unwrap()})),
                _ => (404, json!({})),
            }
        });
        let service = service.await;
        *url.lock().unwrap() = service.url();
        let issuer = Self { service, published };
        issuer.publish(keys);
        issuer
    }

    /// Publishes these keys from now on, and no others.
    pub fn publish(&self, keys: &[&SigningKey]) {
        *self.published.lock().unwrap() = keys.iter().map(|key| key.public()).collect();
    }

    /// How often it was asked for its keys.
    pub fn fetches(&self) -> usize {
        self.service.asked().iter().filter(|asked| asked.path == "/keys").count()
    }

    /// Writes an `AuthenticationConfiguration` for its tokens: `email` is the user, `groups` are the groups.
    pub fn configuration(&self, folder: &Path) -> PathBuf {
        let authority = self.service.certificate.replace('\n', "\n      ");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: {}
    audiences: [{AUDIENCE}]
    certificateAuthority: |
      {authority}
  claimMappings:
    username: {{claim: email, prefix: 'oidc:'}}
    groups: {{claim: groups, prefix: ''}}
",
            self.service.url(),
        );
        let path = folder.join("authentication.yaml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The claims of a good token for this user, for so many seconds.
    pub fn claims(&self, user: &str, groups: &[&str], seconds: u64) -> Value {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": self.service.url(), "aud": AUDIENCE, "exp": now + seconds, "iat": now,
            "email": user, "groups": groups,
        })
    }
}

impl SigningKey {
    /// A new RSA key.
    pub fn rsa(id: &str) -> Self {
        Self { id: id.to_owned(), pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) }
    }

    /// A new key on the curve P-256.
    pub fn elliptic_curve(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { id: id.to_owned(), pair: Pair::EllipticCurve(pair) }
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": self.id, "typ": "JWT"});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Pair::EllipticCurve(pair) => pair.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::EllipticCurve(_) => "ES256",
        }
    }

    fn public(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.pair {
            Pair::Rsa(pair) => {
                let key = pair.public_key();
                let (n, e) = (key.modulus(), key.exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({"kty": "RSA", "use": "sig", "kid": self.id, "n": encode(n), "e": encode(e)})
            }
            Pair::EllipticCurve(pair) => {
                // An uncompressed point: 4, x, y.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": self.id, "x": encode(x), "y": encode(y)})
            }
        }
    }
}
