//! One rule of a policy: who may do what where.
//!
//! It has the shape of RBAC's `PolicyRule` and matches as `plugin/pkg/auth/authorizer/rbac` in Kubernetes does, with
//! subjects, clusters and namespaces beside it.

use std::fmt;

use serde::Deserialize;

use super::Attributes;
use super::cluster_selector::{ClusterSelector, Labels};
use crate::kube::impersonation::Pattern;
use crate::kube::{AUTHENTICATED, RequestInfo, effective_groups};
use crate::wire::Identity;

/// What the stub can ask for: the verbs of `requestinfo.go`, impersonation, and HTTP methods for paths that are no
/// resources. Another word in a rule is a mistake that would grant nothing.
const VERBS: [&str; 17] = [
    "*",
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "proxy",
    "impersonate",
    "head",
    "post",
    "put",
    "options",
    "connect",
    "trace",
];

/// A rule that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Document")]
pub(super) struct Rule {
    name: String,
    /// `None`: every cluster that the selector is about.
    clusters: Option<Vec<Pattern>>,
    /// `None`: whatever the labels.
    cluster_selector: Option<ClusterSelector>,
    users: Vec<Pattern>,
    groups: Vec<Pattern>,
    verbs: Vec<Word>,
    objects: Objects,
}

/// What a rule is about. As in RBAC, one rule is about resources or about paths, never about both.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Objects {
    Resources {
        api_groups: Vec<Word>,
        resources: Vec<Resource>,
        /// `None`: every name, and requests without one.
        names: Option<Vec<String>>,
        /// `None`: every namespace, and the cluster scope.
        namespaces: Option<Vec<Pattern>>,
    },
    Paths(Vec<Pattern>),
}

/// A word, or `*` for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Any,
    Exactly(String),
}

/// `resource`, `resource/subresource`, `*/subresource`, or `*` for every resource and subresource.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Resource {
    Any,
    Exactly { resource: Word, subresource: String },
}

/// Why a rule does not allow a request: the first part of it that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// `clusters`.
    Cluster,
    /// `users` and `groups`.
    Subject,
    /// `clusterSelector`.
    ClusterLabels,
    /// `verbs`.
    Verb,
    /// `apiGroups`.
    ApiGroup,
    /// `resources`; also for a rule about paths where a resource is asked for.
    Resource,
    /// `namespaces`.
    Namespace,
    /// `resourceNames`.
    Name,
    /// `nonResourceURLs`; also for a rule about resources where a path is asked for.
    Path,
}

impl Mismatch {
    /// The key of the rule that would have to be another.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Subject => "users and groups",
            Self::ClusterLabels => "clusterSelector",
            Self::Verb => "verbs",
            Self::ApiGroup => "apiGroups",
            Self::Resource => "resources",
            Self::Namespace => "namespaces",
            Self::Name => "resourceNames",
            Self::Path => "nonResourceURLs",
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if *self == Self::ClusterLabels { "does" } else { "do" };
        write!(f, "its {} {verb} not match", self.key())
    }
}

impl Rule {
    /// The rule's name, which no other rule of the policy has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the rule allows the request itself, whoever the user asks to act as, to a cluster with these labels; if not, why
    /// not.
    pub fn allows(&self, attributes: &Attributes<'_>, labels: &Labels) -> Result<(), Mismatch> {
        let named = |clusters: &Vec<Pattern>| matches_any(clusters, attributes.cluster.as_str());
        require(self.clusters.as_ref().is_none_or(named), Mismatch::Cluster)?;
        require(self.is_for(attributes.user), Mismatch::Subject)?;
        let selected = self.cluster_selector.as_ref().is_none_or(|selector| selector.matches(labels));
        require(selected, Mismatch::ClusterLabels)?;
        self.covers(attributes.request)
    }

    fn is_for(&self, user: &Identity) -> bool {
        let mut groups = effective_groups(user);
        matches_any(&self.users, &user.user) || groups.any(|group| matches_any(&self.groups, group))
    }

    fn covers(&self, request: &RequestInfo) -> Result<(), Mismatch> {
        match &self.objects {
            Objects::Resources { .. } if !request.is_resource_request => return Err(Mismatch::Path),
            Objects::Paths(_) if request.is_resource_request => return Err(Mismatch::Resource),
            _ => {}
        }
        require(self.verbs.iter().any(|verb| verb.is(request.effective_verb())), Mismatch::Verb)?;
        match &self.objects {
            Objects::Paths(paths) => require(matches_any(paths, &request.path), Mismatch::Path),
            Objects::Resources { api_groups, resources, names, namespaces } => {
                require(api_groups.iter().any(|group| group.is(&request.api_group)), Mismatch::ApiGroup)?;
                require(resources.iter().any(|resource| resource.is(request)), Mismatch::Resource)?;
                let in_namespace = |namespaces: &Vec<Pattern>| matches_any(namespaces, &request.namespace);
                require(namespaces.as_ref().is_none_or(in_namespace), Mismatch::Namespace)?;
                require(names.as_ref().is_none_or(|names| names.contains(&request.name)), Mismatch::Name)
            }
        }
    }
}

fn require(matches: bool, otherwise: Mismatch) -> Result<(), Mismatch> {
    if matches { Ok(()) } else { Err(otherwise) }
}

fn matches_any(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

impl Word {
    fn is(&self, word: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(exactly) => exactly == word,
        }
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        if text == "*" { Self::Any } else { Self::Exactly(text) }
    }
}

impl Resource {
    fn is(&self, request: &RequestInfo) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly { resource, subresource } => {
                resource.is(&request.resource) && *subresource == request.subresource
            }
        }
    }
}

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule:?}: {why}")]
pub struct InvalidRule {
    rule: String,
    why: String,
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    name: String,
    clusters: Option<Vec<Pattern>>,
    cluster_selector: Option<ClusterSelector>,
    users: Option<Vec<Pattern>>,
    groups: Option<Vec<Pattern>>,
    verbs: Vec<String>,
    api_groups: Option<Vec<String>>,
    resources: Option<Vec<String>>,
    resource_names: Option<Vec<String>>,
    namespaces: Option<Vec<Pattern>>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Option<Vec<Pattern>>,
}

impl TryFrom<Document> for Rule {
    type Error = InvalidRule;

    fn try_from(document: Document) -> Result<Self, InvalidRule> {
        let rule = document.name.clone();
        document.read().map_err(|why| InvalidRule { rule, why })
    }
}

impl Document {
    fn read(self) -> Result<Rule, String> {
        self.no_list_is_empty()?;
        if self.clusters.is_none() && self.cluster_selector.is_none() {
            return Err(
                "it is for no cluster: give clusters, a clusterSelector or both; [\"*\"] is every cluster".to_owned()
            );
        }
        if self.users.is_none() && self.groups.is_none() {
            return Err(format!("it is for nobody: give users or groups; all users are in the group {AUTHENTICATED}"));
        }
        if let Some(verb) = self.verbs.iter().find(|verb| !VERBS.contains(&verb.as_str())) {
            return Err(format!("the access node never asks for the verb {verb:?}; it knows {}", VERBS.join(", ")));
        }
        let objects = match (self.resources, self.non_resource_urls) {
            (Some(resources), None) => Objects::Resources {
                api_groups: self
                    .api_groups
                    .ok_or("resources need apiGroups; [\"\"] is the core group, [\"*\"] is every group")?
                    .into_iter()
                    .map(Word::from)
                    .collect(),
                resources: resources.into_iter().map(resource).collect::<Result<_, _>>()?,
                names: self.resource_names,
                namespaces: self.namespaces,
            },
            (None, Some(_))
                if self.api_groups.is_some() || self.resource_names.is_some() || self.namespaces.is_some() =>
            {
                return Err("nonResourceURLs have no apiGroups, resourceNames or namespaces".to_owned());
            }
            (None, Some(paths)) => Objects::Paths(paths),
            _ => return Err("give either resources or nonResourceURLs; for both make two rules".to_owned()),
        };
        Ok(Rule {
            name: self.name,
            clusters: self.clusters,
            cluster_selector: self.cluster_selector,
            users: self.users.unwrap_or_default(),
            groups: self.groups.unwrap_or_default(),
            verbs: self.verbs.into_iter().map(Word::from).collect(),
            objects,
        })
    }

    /// An empty list could be meant as "none" and be read as "all".
    fn no_list_is_empty(&self) -> Result<(), String> {
        fn is_empty<T>(list: &Option<Vec<T>>) -> bool {
            list.as_ref().is_some_and(Vec::is_empty)
        }
        let lists = [
            ("clusters", is_empty(&self.clusters)),
            ("verbs", self.verbs.is_empty()),
            ("users", is_empty(&self.users)),
            ("groups", is_empty(&self.groups)),
            ("apiGroups", is_empty(&self.api_groups)),
            ("resources", is_empty(&self.resources)),
            ("resourceNames", is_empty(&self.resource_names)),
            ("namespaces", is_empty(&self.namespaces)),
            ("nonResourceURLs", is_empty(&self.non_resource_urls)),
        ];
        match lists.iter().find(|(_, is_empty)| *is_empty) {
            Some((key, _)) => Err(format!("{key} is empty; leave it out, or say what it stands for")),
            None => Ok(()),
        }
    }
}

fn resource(text: String) -> Result<Resource, String> {
    let (resource, subresource) = text.split_once('/').unwrap_or((&text, ""));
    if text == "*" {
        return Ok(Resource::Any);
    }
    if resource.is_empty() || subresource == "*" || text.ends_with('/') {
        return Err(format!("{text:?} is no resource: write pods, pods/exec, */scale, or * for everything"));
    }
    Ok(Resource::Exactly { resource: Word::from(resource.to_owned()), subresource: subresource.to_owned() })
}
