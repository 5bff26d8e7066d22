//! Users with tokens that somebody else knows: `TokenReview` of `authentication.k8s.io/v1`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::watch;

use super::{Authenticating, Authenticator, Credentials, NotVouched, Proof, SystemNames, Vouched};
use crate::kube::user_token::TokenHash;
use crate::stub::cache::AnswerCache;
use crate::stub::reload::{Followed, Reload};
use crate::stub::webhook_file::{Webhook, WebhookFile, WebhookFileError};
use crate::wire::{BearerToken, Identity};

/// How long it is not asked again about a token that it could not be asked about.
const KEEP_FAILURE: Duration = Duration::from_secs(1);

/// Tokens whose verdicts are kept.
const CACHE: usize = 16 * 1024;

/// Asks a webhook who bears a token, as kube-apiserver does with `--authentication-token-webhook-config-file`.
///
/// Names under `system:` are refused, unless [`SystemNames`] lets others give them.
#[derive(Debug, Clone)]
pub struct TokenWebhook {
    file: Arc<Followed<WebhookFile>>,
    settings: Arc<TokenWebhookSettings>,
    /// By the token and the state of the file.
    verdicts: Arc<AnswerCache<(TokenHash, u64), Verdict>>,
}

/// How a [`TokenWebhook`] is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWebhookSettings {
    /// A kubeconfig file: its cluster is the webhook, its user the stub.
    pub kubeconfig: PathBuf,
    /// How long a question may take.
    pub timeout: Duration,
    /// How long a token that is good is not asked about again. Whoever is revoked keeps that long.
    pub authenticated_ttl: Duration,
    /// How long one that is not good is not asked about again.
    pub unauthenticated_ttl: Duration,
    /// Whom tokens have to be meant for, one of these; empty: the webhook's own idea.
    pub audiences: Vec<String>,
    /// The names that it may give.
    pub names: SystemNames,
}

/// Why the webhook's file cannot be used.
pub type TokenWebhookError = WebhookFileError;

type Verdict = Result<Option<Vouched>, NotVouched>;

impl TokenWebhook {
    /// Reads the kubeconfig for the first time. The webhook need not answer yet.
    ///
    /// # Errors
    /// It cannot be read, or does not lead anywhere.
    pub fn load(settings: TokenWebhookSettings) -> Result<Self, TokenWebhookError> {
        let file = WebhookFile::new("token webhook", &settings.kubeconfig, settings.timeout);
        Ok(Self {
            file: Arc::new(Followed::load(file)?),
            settings: Arc::new(settings),
            verdicts: Arc::new(AnswerCache::new(CACHE)),
        })
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.file.clone()
    }

    async fn vouch(&self, credentials: &Credentials) -> Verdict {
        let (Some(token), Some(hash)) = (credentials.token(), credentials.token_hash()) else { return Ok(None) };
        let webhook: Webhook = self.file.current().clone();
        let verdict = self.verdicts.get((*hash, self.file.generation()), async {
            let verdict = self.review(&webhook, token).await;
            let keep_for = match &verdict {
                Ok(Some(_)) => self.settings.authenticated_ttl,
                Ok(None) | Err(NotVouched::Refused(_)) => self.settings.unauthenticated_ttl,
                Err(NotVouched::CannotTell(_)) => KEEP_FAILURE,
            };
            (verdict, keep_for)
        });
        verdict.await
    }

    async fn review(&self, webhook: &Webhook, token: &BearerToken) -> Verdict {
        let TokenWebhookSettings { audiences, names, .. } = &*self.settings;
        let question =
            Question { api_version: API_VERSION, kind: KIND, spec: Spec { token: token.reveal(), audiences } };
        let cannot_tell = |why: String| NotVouched::CannotTell(format!("the token webhook {why}"));
        let answer: Answer = webhook.ask(&question).await.map_err(|error| cannot_tell(error.to_string()))?;
        if answer.kind != KIND {
            return Err(cannot_tell(format!("answered with a {:?} instead of a {KIND}", answer.kind)));
        }
        let status = answer.status;
        if !status.authenticated {
            return match status.error.as_str() {
                "" => Ok(None),
                error => Err(NotVouched::Refused(format!("the token webhook: {error}"))),
            };
        }
        let is_meant = audiences.is_empty() || status.audiences.iter().any(|audience| audiences.contains(audience));
        if !is_meant {
            let why = format!("the token webhook says it is for {:?}, not for {audiences:?}", status.audiences);
            return Err(NotVouched::Refused(why));
        }
        let identity = names.check(status.user.into())?;
        Ok(Some(Vouched { identity, by: Proof::Token, until: None }))
    }
}

impl Authenticator for TokenWebhook {
    fn name(&self) -> &'static str {
        "token-webhook"
    }

    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> Authenticating<'a> {
        Box::pin(self.vouch(credentials))
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.file.changes()]
    }
}

const API_VERSION: &str = "authentication.k8s.io/v1";
const KIND: &str = "TokenReview";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    audiences: &'a [String],
}

#[derive(Deserialize)]
struct Answer {
    kind: String,
    status: Status,
}

/// In Go's JSON an empty list may be null.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: User,
    #[serde(default, deserialize_with = "null_is_default")]
    audiences: Vec<String>,
    #[serde(default)]
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    #[serde(deserialize_with = "null_is_default")]
    groups: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    extra: BTreeMap<String, Vec<String>>,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl From<User> for Identity {
    fn from(user: User) -> Self {
        let User { username, uid, groups, extra } = user;
        let values = |(key, values): (String, Vec<String>)| values.into_iter().map(move |value| (key.clone(), value));
        Self {
            user: username,
            uid: Some(uid).filter(|uid| !uid.is_empty()),
            groups,
            extra: extra.into_iter().flat_map(values).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        let answer = format!("{{\"kind\":\"TokenReview\",\"apiVersion\":\"x\",\"metadata\":{{}},\"status\":{text}}}");
        serde_json::from_str::<Answer>(&answer).unwrap().status
    }

    #[test]
    fn an_answer_becomes_an_identity() {
        let status = status(
            r#"{"authenticated":true,"audiences":null,"user":{"username":"alice","uid":"7","groups":["devs"],
                "extra":{"a":["1","2"]}}}"#,
        );
        let extra = [("a", "1"), ("a", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let alice = Identity {
            uid: Some("7".to_owned()),
            groups: vec!["devs".to_owned()],
            extra: extra.to_vec(),
            ..Identity::named("alice")
        };
        assert!(status.authenticated && status.audiences.is_empty());
        assert_eq!(Identity::from(status.user), alice);
    }

    #[test]
    fn an_answer_without_a_word_of_it_authenticates_nobody() {
        for text in ["{}", r#"{"user":{"username":"alice"}}"#, r#"{"authenticated":false,"error":"no"}"#] {
            assert!(!status(text).authenticated, "{text}");
        }
    }
}
