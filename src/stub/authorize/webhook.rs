//! Decisions of somebody else: `SubjectAccessReview` of `authorization.k8s.io/v1`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::policy_file::PolicyFile;
use super::{Attributes, Authorizer, CannotDecide, Deciding, Decision};
use crate::kube::impersonation::access_reviews;
use crate::kube::{RequestInfo, effective_groups, sha256};
use crate::stub::cache::AnswerCache;
use crate::stub::reload::{Followed, Reload};
use crate::stub::webhook_file::{WebhookFile, WebhookFileError};

/// The extra that names the cluster, which a `SubjectAccessReview` has no field for.
const CLUSTER_EXTRA: &str = "qtunnel.dev/cluster";

/// How long it is not asked again about what it could not be asked about.
const KEEP_FAILURE: Duration = Duration::from_secs(1);

/// Decisions that are kept.
const CACHE: usize = 64 * 1024;

/// Asks a webhook, as kube-apiserver does with `--authorization-webhook-config-file`. The cluster is among the extras, as
/// `qtunnel.dev/cluster`. The verb is `create` for exec, attach, port-forward and `nodes/proxy`, whatever the HTTP method.
///
/// A request in another's name needs two things, as with a [`Policy`](super::Policy): the user has to be allowed the request
/// itself, and the verb `impersonate` on everything that is impersonated.
///
/// Where the webhook has no opinion a policy decides, if there is one, and otherwise the request is refused.
#[derive(Debug, Clone)]
pub struct AccessWebhook {
    file: Arc<Followed<WebhookFile>>,
    settings: Arc<AccessWebhookSettings>,
    policy: Option<PolicyFile>,
    opinions: Arc<AnswerCache<QuestionKey, Result<Opinion, CannotDecide>>>,
}

/// The digest of a question, and the state of the file that says whom to ask.
type QuestionKey = ([u8; 32], u64);

/// How an [`AccessWebhook`] is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessWebhookSettings {
    /// A kubeconfig file: its cluster is the webhook, its user the stub.
    pub kubeconfig: PathBuf,
    /// How long a question may take.
    pub timeout: Duration,
    /// How long it is not asked again about what it has allowed.
    pub authorized_ttl: Duration,
    /// How long it is not asked again about what it has not allowed.
    pub unauthorized_ttl: Duration,
    /// What it counts as when it does not answer.
    pub on_failure: FailurePolicy,
}

/// What a webhook that does not answer counts as (`failurePolicy` of `AuthorizationConfiguration`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailurePolicy {
    /// Nothing is allowed.
    #[default]
    Deny,
    /// The policy decides, if there is one.
    NoOpinion,
}

/// What the webhook thinks of a request, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Opinion {
    Allowed(String),
    Denied(String),
    None(String),
}

impl AccessWebhook {
    /// Reads the kubeconfig for the first time. The webhook need not answer yet.
    ///
    /// # Errors
    /// It cannot be read, or does not lead anywhere.
    pub fn load(settings: AccessWebhookSettings, policy: Option<PolicyFile>) -> Result<Self, WebhookFileError> {
        let file = WebhookFile::new("authorization webhook", &settings.kubeconfig, settings.timeout);
        Ok(Self {
            file: Arc::new(Followed::load(file)?),
            settings: Arc::new(settings),
            policy,
            opinions: Arc::new(AnswerCache::new(CACHE)),
        })
    }

    /// What has to be followed for changes to be seen.
    pub(in crate::stub) fn file(&self) -> Arc<dyn Reload> {
        self.file.clone()
    }

    async fn decide(&self, attributes: Attributes<'_>) -> Result<Decision, CannotDecide> {
        let decision = self.decide_one(attributes).await?;
        let Some(requested) = attributes.requested.filter(|_| decision.is_allowed()) else { return Ok(decision) };
        for review in access_reviews(attributes.user, requested) {
            let request = review.attributes();
            if let Decision::Deny(why) = self.decide_one(Attributes { request, requested: None, ..attributes }).await? {
                let RequestInfo { resource, name, .. } = request;
                return Ok(Decision::Deny(format!("no right to impersonate {name:?} ({resource}): {why}").into()));
            }
        }
        Ok(decision)
    }

    async fn decide_one(&self, attributes: Attributes<'_>) -> Result<Decision, CannotDecide> {
        let no_opinion = match self.opinion(&attributes).await {
            Ok(Opinion::Allowed(why)) => return Ok(Decision::Allow(reason("allowed", &why))),
            Ok(Opinion::Denied(why)) => return Ok(Decision::Deny(reason("denied", &why))),
            Ok(Opinion::None(why)) => reason("not allowed", &why),
            Err(error) if self.settings.on_failure == FailurePolicy::Deny => return Err(error),
            Err(error) => error.to_string().into(),
        };
        match &self.policy {
            Some(policy) => policy.authorize(attributes).await,
            None => Ok(Decision::Deny(no_opinion)),
        }
    }

    async fn opinion(&self, attributes: &Attributes<'_>) -> Result<Opinion, CannotDecide> {
        let question = Question::about(attributes);
        let text = serde_json::to_vec(&question).map_err(|error| CannotDecide(error.to_string()))?;
        let webhook = self.file.current().clone();
        let opinion = self.opinions.get((sha256(&text), self.file.generation()), async {
            let opinion = match webhook.ask::<_, Answer>(&question).await {
                Ok(answer) => answer.opinion(),
                Err(error) => Err(CannotDecide(format!("the authorization webhook {error}"))),
            };
            let keep_for = match &opinion {
                Ok(Opinion::Allowed(_)) => self.settings.authorized_ttl,
                Ok(_) => self.settings.unauthorized_ttl,
                Err(error) => {
                    tracing::warn!("{error}");
                    KEEP_FAILURE
                }
            };
            (opinion, keep_for)
        });
        opinion.await
    }
}

fn reason(word: &str, why: &str) -> Cow<'static, str> {
    match why {
        "" => format!("{word} by the access node's webhook").into(),
        why => format!("{word} by the access node's webhook: {why}").into(),
    }
}

impl Authorizer for AccessWebhook {
    fn authorize<'a>(&'a self, attributes: Attributes<'a>) -> Deciding<'a> {
        Box::pin(self.decide(attributes))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.policy.as_ref().and_then(Authorizer::changes)
    }

    fn decisions_age(&self) -> bool {
        true
    }
}

const KIND: &str = "SubjectAccessReview";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    user: &'a str,
    uid: &'a str,
    groups: Vec<&'a str>,
    extra: BTreeMap<&'a str, Vec<&'a str>>,
    #[serde(flatten)]
    object: Object<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Object<'a> {
    ResourceAttributes {
        verb: &'a str,
        namespace: &'a str,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    },
    NonResourceAttributes {
        path: &'a str,
        verb: &'a str,
    },
}

impl<'a> Question<'a> {
    fn about(attributes: &Attributes<'a>) -> Self {
        let Attributes { user, cluster, request, .. } = *attributes;
        let mut extra: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in &user.extra {
            extra.entry(key).or_default().push(value);
        }
        extra.insert(CLUSTER_EXTRA, vec![cluster.as_str()]);
        let verb = request.effective_verb();
        let object = match request.is_resource_request {
            true => Object::ResourceAttributes {
                verb,
                namespace: &request.namespace,
                group: &request.api_group,
                version: &request.api_version,
                resource: &request.resource,
                subresource: &request.subresource,
                name: &request.name,
            },
            false => Object::NonResourceAttributes { path: &request.path, verb },
        };
        let groups = effective_groups(user).collect();
        let uid = user.uid.as_deref().unwrap_or_default();
        let spec = Spec { user: &user.user, uid, groups, extra, object };
        Self { api_version: "authorization.k8s.io/v1", kind: KIND, spec }
    }
}

#[derive(Deserialize)]
struct Answer {
    kind: String,
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    allowed: bool,
    #[serde(default)]
    denied: bool,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    evaluation_error: String,
}

impl Answer {
    fn opinion(self) -> Result<Opinion, CannotDecide> {
        let Self { kind, status: Status { allowed, denied, reason, evaluation_error } } = self;
        let why = if reason.is_empty() { evaluation_error } else { reason };
        match (allowed, denied) {
            _ if kind != KIND => Err(CannotDecide(format!("the authorization webhook answered with a {kind:?}"))),
            // The API server takes it for an error, too (`apiserver/plugin/pkg/authorizer/webhook/webhook.go`).
            (true, true) => Err(CannotDecide("the authorization webhook both allows and denies".to_owned())),
            (true, false) => Ok(Opinion::Allowed(why)),
            (false, true) => Ok(Opinion::Denied(why)),
            (false, false) => Ok(Opinion::None(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::kube::RequestPath;
    use crate::wire::Identity;

    fn question(method: &Method, path: &str) -> Value {
        let extra = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        let user = Identity { groups: vec!["devs".to_owned()], extra, ..Identity::named("alice") };
        let request = RequestInfo::new(method, &RequestPath::parse(path).unwrap()).unwrap();
        let cluster = "prod-eu".parse().unwrap();
        let attributes = Attributes { user: &user, requested: None, cluster: &cluster, request: &request };
        serde_json::to_value(Question::about(&attributes)).unwrap()
    }

    #[test]
    fn the_question_is_a_subject_access_review_with_the_cluster() {
        let question = question(&Method::GET, "/apis/apps/v1/namespaces/demo/deployments/web/scale");
        assert_eq!(
            question,
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": "alice",
                    "uid": "",
                    "groups": ["devs", "system:authenticated"],
                    "extra": {"a": ["1", "2"], "qtunnel.dev/cluster": ["prod-eu"]},
                    "resourceAttributes": {
                        "verb": "get", "namespace": "demo", "group": "apps", "version": "v1",
                        "resource": "deployments", "subresource": "scale", "name": "web",
                    },
                },
            })
        );
    }

    #[test]
    fn a_way_into_a_pod_or_a_node_needs_create_whatever_the_method() {
        for path in [
            "/api/v1/namespaces/demo/pods/web/exec",
            "/api/v1/namespaces/demo/pods/web/attach",
            "/api/v1/namespaces/demo/pods/web/portforward",
            "/api/v1/nodes/n1/proxy/metrics",
        ] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(question(&method, path)["spec"]["resourceAttributes"]["verb"], "create", "{method} {path}");
            }
        }
    }

    #[test]
    fn a_path_is_asked_about_as_a_path() {
        let spec = question(&Method::GET, "/version")["spec"].clone();
        assert_eq!(spec["nonResourceAttributes"], json!({"path": "/version", "verb": "get"}));
        assert_eq!(spec["resourceAttributes"], Value::Null);
    }

    #[test]
    fn only_a_clear_answer_is_a_permission() {
        let opinion = |status: Value| {
            let answer = json!({"kind": "SubjectAccessReview", "status": status});
            serde_json::from_value::<Answer>(answer).unwrap().opinion()
        };
        assert_eq!(opinion(json!({"allowed": true, "reason": "r"})), Ok(Opinion::Allowed("r".to_owned())));
        assert_eq!(opinion(json!({"denied": true, "evaluationError": "e"})), Ok(Opinion::Denied("e".to_owned())));
        assert_eq!(opinion(json!({})), Ok(Opinion::None(String::new())));
        assert!(opinion(json!({"allowed": true, "denied": true})).is_err());
        let other = json!({"kind": "TokenReview", "status": {"allowed": true}});
        assert!(serde_json::from_value::<Answer>(other).unwrap().opinion().is_err());
    }
}
