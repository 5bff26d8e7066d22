//! A policy: rules, of which one has to allow a request. Without such a rule it is refused.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cluster_selector::{ClusterLabels, Labels};
use super::rule::{Mismatch, Rule};
use super::{Attributes, Decision};
use crate::kube::RequestInfo;
use crate::kube::impersonation::access_reviews;

/// The longest policy file that is read, in bytes.
const MAX_LENGTH: u64 = 4 << 20;

/// Who may do what where. `deploy/policy.example.yaml` explains the format.
///
/// A request in another's name (`kubectl --as`) needs two things: the user has to be allowed the request itself, and to
/// be allowed the verb `impersonate` on everything that is impersonated (`users`, `groups`, `serviceaccounts`, and `uids`
/// and `userextras/<key>` in the group `authentication.k8s.io`). So a rule about a user bounds that user under every name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    labels: ClusterLabels,
    rules: Vec<Rule>,
}

impl Policy {
    /// Reads a policy in YAML.
    ///
    /// # Errors
    /// What is not a policy, has a key that does not exist, or a rule that cannot be meant.
    pub fn parse(text: &str) -> Result<Self, String> {
        let options = serde_saphyr::options! { with_snippet: false };
        let document: Document =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        let mut names = HashSet::new();
        match document.rules.iter().find(|rule| !names.insert(rule.name())) {
            Some(rule) => Err(format!("two rules have the name {:?}", rule.name())),
            None => Ok(Self { labels: document.clusters, rules: document.rules }),
        }
    }

    /// Reads a policy file of at most 4 MiB.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = read(path)?;
        Self::parse(&text).map_err(|why| PolicyError::Invalid { path: path.to_owned(), why })
    }

    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Whether the request may be made.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        let Some(rule) = self.allowing(attributes) else {
            return Decision::Deny("no rule of the access node's policy allows it".into());
        };
        if let Some(refused) = self.refused_impersonation(attributes) {
            let RequestInfo { resource, name, .. } = &refused;
            return Decision::Deny(
                format!("no rule of the access node's policy allows to impersonate {name:?} ({resource})").into(),
            );
        }
        Decision::Allow(format!("allowed by rule {:?} of the access node's policy", rule.name()).into())
    }

    /// The decision, and what each rule says.
    pub fn explain(&self, attributes: &Attributes<'_>) -> Explanation {
        let labels = self.labels.of(attributes.cluster);
        let outcome =
            |rule: &Rule| RuleOutcome { rule: rule.name().to_owned(), mismatch: rule.allows(attributes, labels).err() };
        Explanation {
            decision: self.decide(attributes),
            cluster_labels: labels.clone(),
            rules: self.rules.iter().map(outcome).collect(),
        }
    }

    fn allowing(&self, attributes: &Attributes<'_>) -> Option<&Rule> {
        let labels = self.labels.of(attributes.cluster);
        self.rules.iter().find(|rule| rule.allows(attributes, labels).is_ok())
    }

    /// The first thing that the user asks to act as and may not.
    fn refused_impersonation(&self, attributes: &Attributes<'_>) -> Option<RequestInfo> {
        let requested = attributes.requested?;
        let needed = access_reviews(attributes.user, requested);
        let mut needed = needed.iter().map(|review| review.attributes());
        needed.find(|request| self.allowing(&Attributes { request, ..*attributes }).is_none()).cloned()
    }
}

/// A decision and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// What labels the policy gives the cluster.
    pub cluster_labels: Labels,
    /// What each rule says about the request itself, in the order of the file.
    pub rules: Vec<RuleOutcome>,
}

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOutcome {
    /// The rule's name.
    pub rule: String,
    /// The first part of the rule that does not match; `None` where the rule allows the request.
    pub mismatch: Option<Mismatch>,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy file {path}: {source}; `policy_file` under [authorization] names it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not a policy.
    #[error("the policy file {path} is not valid: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        why: String,
    },
}

/// The text of a policy file.
pub(super) fn read(path: &Path) -> Result<String, PolicyError> {
    let unreadable = |source| PolicyError::Unreadable { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_LENGTH {
        let why = format!("it has {length} bytes, and may have {MAX_LENGTH}");
        return Err(PolicyError::Invalid { path: path.to_owned(), why });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: Kind,
    #[serde(rename = "metadata", default)]
    _metadata: Option<Metadata>,
    #[serde(default)]
    clusters: ClusterLabels,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "qtunnel.dev/v1")]
    V1,
}

#[derive(Deserialize)]
enum Kind {
    Policy,
}

/// Kubernetes files usually have it; here it says nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    #[serde(rename = "name")]
    _name: String,
}

#[cfg(test)]
mod tests;
