//! Clusters by their labels.
//!
//! Labels are what the policy file says of a cluster, never what an agent says: whoever has taken over an agent must not be able
//! to bring its cluster under another rule.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::wire::ClusterId;

/// The labels of one cluster.
pub type Labels = BTreeMap<String, String>;

/// The labels of the clusters that have some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<LabelledCluster>")]
pub(super) struct ClusterLabels(HashMap<ClusterId, Labels>);

/// A cluster as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelledCluster {
    id: String,
    labels: Labels,
}

/// What the labels of a cluster have to be, as a `LabelSelector` says it (`apimachinery/pkg/apis/meta/v1/types.go`): all of it
/// has to hold. A cluster without a label satisfies `NotIn` and `DoesNotExist`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Document")]
pub(super) struct ClusterSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    value: Expected,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    In(Vec<String>),
    NotIn(Vec<String>),
    Any,
    None,
}

impl ClusterLabels {
    /// The labels of `cluster`.
    pub fn of(&self, cluster: &ClusterId) -> &Labels {
        static NO_LABELS: Labels = Labels::new();
        self.0.get(cluster).unwrap_or(&NO_LABELS)
    }
}

impl TryFrom<Vec<LabelledCluster>> for ClusterLabels {
    type Error = String;

    fn try_from(clusters: Vec<LabelledCluster>) -> Result<Self, String> {
        let mut labels = HashMap::new();
        for cluster in clusters {
            let id: ClusterId = cluster.id.parse().map_err(|error| format!("the cluster {:?}: {error}", cluster.id))?;
            if labels.insert(id, cluster.labels).is_some() {
                return Err(format!("the cluster {} stands there twice", cluster.id));
            }
        }
        Ok(Self(labels))
    }
}

impl ClusterSelector {
    /// Whether it is about a cluster with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&String>) -> bool {
        match &self.value {
            Expected::In(values) => value.is_some_and(|value| values.contains(value)),
            Expected::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Expected::Any => value.is_some(),
            Expected::None => value.is_none(),
        }
    }
}

/// A selector as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Document {
    match_labels: Labels,
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TryFrom<Document> for ClusterSelector {
    type Error = String;

    fn try_from(document: Document) -> Result<Self, String> {
        let labels = document.match_labels.into_iter();
        let mut all: Vec<_> =
            labels.map(|(key, value)| Requirement { key, value: Expected::In(vec![value]) }).collect();
        for expression in document.match_expressions {
            all.push(expression.read()?);
        }
        match all.is_empty() {
            // In Kubernetes it stands for everything.
            true => {
                Err("an empty clusterSelector could be meant as none; for every cluster write clusters: [\"*\"]"
                    .to_owned())
            }
            false => Ok(Self(all)),
        }
    }
}

impl Expression {
    fn read(self) -> Result<Requirement, String> {
        let Self { key, operator, values } = self;
        let value = match (operator, values.is_empty()) {
            (Operator::In, false) => Expected::In(values),
            (Operator::NotIn, false) => Expected::NotIn(values),
            (Operator::Exists, true) => Expected::Any,
            (Operator::DoesNotExist, true) => Expected::None,
            _ => {
                return Err(format!(
                    "clusterSelector, {key}: In and NotIn need values, Exists and DoesNotExist have none"
                ));
            }
        };
        Ok(Requirement { key, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<ClusterSelector, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_selector_matches_as_one_of_kubernetes_does() {
        let prod = Labels::from([("env".to_owned(), "prod".to_owned()), ("region".to_owned(), "eu".to_owned())]);
        let none = Labels::new();
        for (text, of_prod, of_none) in [
            ("matchLabels: {env: prod}", true, false),
            ("matchLabels: {env: prod, region: us}", false, false),
            ("matchExpressions: [{key: env, operator: In, values: [test, prod]}]", true, false),
            ("matchExpressions: [{key: env, operator: In, values: [test]}]", false, false),
            ("matchExpressions: [{key: env, operator: NotIn, values: [prod]}]", false, true),
            ("matchExpressions: [{key: env, operator: Exists}]", true, false),
            ("matchExpressions: [{key: env, operator: DoesNotExist}]", false, true),
            (
                "{matchLabels: {env: prod}, matchExpressions: [{key: region, operator: NotIn, values: [us]}]}",
                true,
                false,
            ),
        ] {
            let selector = selector(text).unwrap();
            assert_eq!((selector.matches(&prod), selector.matches(&none)), (of_prod, of_none), "{text}");
        }
    }

    #[test]
    fn a_selector_that_cannot_be_meant_is_refused() {
        for text in [
            "{}",
            "matchLabels: {}",
            "matchNames: {env: prod}",
            "matchExpressions: [{key: env, operator: In}]",
            "matchExpressions: [{key: env, operator: Exists, values: [prod]}]",
            "matchExpressions: [{key: env, operator: in, values: [prod]}]",
        ] {
            assert!(selector(text).is_err(), "{text}");
        }
    }
}
