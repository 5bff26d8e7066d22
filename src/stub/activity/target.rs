//! What a request is about, in few words.

use serde::{Deserialize, Serialize};

use crate::kube::RequestInfo;
use crate::stub::record::RequestFacts;

/// The longest text that is kept of a name or a path, in characters; a client may send more than anybody reads.
const MAX_TEXT: usize = 256;

/// What a request is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The Kubernetes verb; the HTTP method in lower case for a request that is not about a resource.
    pub verb: String,
    /// `resource` or `resource/subresource`; the path, without its query, of a request that is not about a resource.
    pub resource: String,
    /// The namespace; empty at the cluster scope.
    pub namespace: String,
    /// The object's name; empty where the request names none.
    pub name: String,
}

impl Target {
    /// What `request` is about.
    pub fn of(request: &RequestInfo) -> Self {
        let resource =
            if request.is_resource_request { request.resource_and_subresource() } else { request.path.clone() };
        Self {
            verb: cut(&request.verb),
            resource: cut(&resource),
            namespace: cut(&request.namespace),
            name: cut(&request.name),
        }
    }

    /// The same of a request that may not have been understood.
    pub fn of_facts(facts: &RequestFacts) -> Self {
        match &facts.attributes {
            Some(attributes) => Self::of(&attributes.request),
            None => Self {
                verb: cut(&facts.method.as_str().to_lowercase()),
                // Commands and selectors stand in the query.
                resource: cut(facts.uri.split('?').next().unwrap_or_default()),
                ..Self::default()
            },
        }
    }
}

/// The beginning of a text that is too long to be kept.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => text.split_at(end).0.to_owned() + "…",
        None => text.to_owned(),
    }
}
