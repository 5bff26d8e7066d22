//! Who users are.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use serde::Deserialize;

use crate::kube::impersonation::Pattern;

/// The `[authentication]` section. Client certificates of the stub's user CA are always accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthenticationConfig {
    /// The order in which what a user presents is looked at; the first that knows it counts. What is configured has to be in
    /// it. Default: `client-certificate`, `token-file`, `jwt`, `token-webhook`.
    pub order: Option<Vec<Method>>,
    /// Further authorities of client certificates, PEM. Default: none.
    pub client_ca_files: Vec<PathBuf>,
    /// Lists of revoked client certificates (CRL), PEM or DER, of any of the authorities. Default: none.
    pub crl_files: Vec<PathBuf>,
    /// Users and certificates that are not accepted any more; see
    /// [`RevocationList`](crate::stub::authenticate::RevocationList). Default: none.
    pub revocation_file: Option<PathBuf>,
    /// Static bearer tokens, in the API server's format: a line `token,user,uid,"group1,group2"` for each. Default: none.
    pub token_file: Option<PathBuf>,
    /// Issuers of JSON Web Tokens: an `AuthenticationConfiguration` of kube-apiserver, YAML. Default: none.
    pub jwt_file: Option<PathBuf>,
    /// Who else knows bearer tokens. Default: nobody.
    pub token_webhook: Option<TokenWebhookConfig>,
    /// Whether whoever presents nothing is `system:anonymous`. Default: no.
    pub anonymous: bool,
    /// Names under `system:` that token issuers, webhooks and further authorities may give, with `*` at the end for all that
    /// begin so. `system:masters` is never among them. Default: none.
    pub system_names: Vec<Pattern>,
}

/// A way to know users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// [`ClientCertificates`](crate::stub::authenticate::ClientCertificates).
    ClientCertificate,
    /// [`TokenFile`](crate::stub::authenticate::TokenFile).
    TokenFile,
    /// [`JwtAuthenticator`](crate::stub::authenticate::JwtAuthenticator).
    Jwt,
    /// [`TokenWebhook`](crate::stub::authenticate::TokenWebhook).
    TokenWebhook,
}

/// The `[authentication.token_webhook]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWebhookConfig {
    /// A kubeconfig file: its cluster is the webhook, its user the stub.
    pub kubeconfig: PathBuf,
    /// How long a question may take. Default 10 s.
    #[serde(default = "ten_seconds")]
    pub timeout: SignedDuration,
    /// How long a token that is good is not asked about again; also those of open requests. Default 5 s.
    #[serde(default = "five_seconds")]
    pub authenticated_ttl: SignedDuration,
    /// How long a token that is not good is not asked about again. Default 5 s.
    #[serde(default = "five_seconds")]
    pub unauthenticated_ttl: SignedDuration,
    /// Whom tokens have to be meant for: one of these. Default: what the webhook itself takes them to be for.
    #[serde(default)]
    pub audiences: Vec<String>,
}

fn ten_seconds() -> SignedDuration {
    SignedDuration::from_secs(10)
}

fn five_seconds() -> SignedDuration {
    SignedDuration::from_secs(5)
}

impl AuthenticationConfig {
    const DEFAULT_ORDER: [Method; 4] =
        [Method::ClientCertificate, Method::TokenFile, Method::Jwt, Method::TokenWebhook];

    /// See [`AuthenticationConfig::order`].
    pub fn order(&self) -> &[Method] {
        self.order.as_deref().unwrap_or(&Self::DEFAULT_ORDER)
    }

    /// Every relative path becomes relative to `directory`.
    pub(super) fn resolve(&mut self, directory: &Path) {
        let webhook = self.token_webhook.as_mut().map(|webhook| &mut webhook.kubeconfig);
        let single = [&mut self.revocation_file, &mut self.token_file, &mut self.jwt_file];
        let files = single.into_iter().flatten().chain(webhook);
        for path in files.chain(&mut self.client_ca_files).chain(&mut self.crl_files) {
            *path = directory.join(&path);
        }
    }

    /// What cannot be meant.
    pub(super) fn check(&self) -> Result<(), String> {
        let order = self.order();
        let configured = [
            (true, Method::ClientCertificate, "client-certificate"),
            (self.token_file.is_some(), Method::TokenFile, "token-file"),
            (self.jwt_file.is_some(), Method::Jwt, "jwt"),
            (self.token_webhook.is_some(), Method::TokenWebhook, "token-webhook"),
        ];
        for (is_configured, method, name) in configured {
            match order.iter().filter(|other| **other == method).count() {
                0 if is_configured => return Err(format!("authentication.order lacks {name}, which is configured")),
                2.. => return Err(format!("authentication.order has {name} more than once")),
                _ => {}
            }
        }
        let Some(webhook) = &self.token_webhook else { return Ok(()) };
        let ttls = [webhook.authenticated_ttl, webhook.unauthenticated_ttl];
        if !webhook.timeout.is_positive() || ttls.iter().any(SignedDuration::is_negative) {
            return Err(
                "authentication.token_webhook: timeout has to be longer than nothing, and no ttl negative".to_owned()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let config: AuthenticationConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()
    }

    #[test]
    fn an_order_has_all_that_is_configured_once() {
        for good in [
            "",
            "anonymous = true\njwt_file = 'jwt.yaml'",
            "order = ['token-file', 'client-certificate']\ntoken_file = 't'",
            "[token_webhook]\nkubeconfig = 'w.yaml'\nauthenticated_ttl = '2m'",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, part) in [
            ("order = ['token-file']\ntoken_file = 't'", "client-certificate"),
            ("order = ['client-certificate']\njwt_file = 'j'", "jwt"),
            ("order = ['client-certificate', 'client-certificate']", "more than once"),
            ("order = ['client-certificate', 'ldap']", "ldap"),
            ("[token_webhook]\nkubeconfig = 'w.yaml'\ntimeout = '0s'", "timeout"),
            ("[token_webhook]\nurl = 'x'", "url"),
            ("system_names = ['']", "pattern"),
            ("password_file = 'x'", "password_file"),
        ] {
            let why = check(bad).unwrap_err();
            assert!(why.contains(part), "{bad}: {why}");
        }
    }
}
