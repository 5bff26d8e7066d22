//! The table of resources this API serves. Discovery, routing, OpenAPI and the store all read it.

/// One resource: what an `APIResource` of discovery says, and how it is stored.
#[derive(Debug)]
pub(super) struct Resource {
    /// API group, `""` for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Kind of one object, for example `ConfigMap`.
    pub kind: &'static str,
    /// Plural name as in paths.
    pub plural: &'static str,
    /// Singular name, as kubectl accepts it.
    pub singular: &'static str,
    /// Short names, as kubectl accepts them.
    pub short_names: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs in the order discovery prints them.
    pub verbs: &'static [&'static str],
    /// Groups of resources this one belongs to (`kubectl get all`).
    pub categories: &'static [&'static str],
    /// What lies below one object.
    pub subresources: &'static [Subresource],
}

/// A subresource such as `pods/log`.
#[derive(Debug)]
pub(super) struct Subresource {
    /// Last path segment.
    pub name: &'static str,
    /// Kind of the answer.
    pub kind: &'static str,
    /// Group and version of the kind, where they differ from those of the resource.
    pub group_version: Option<(&'static str, &'static str)>,
    /// Verbs in the order discovery prints them.
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// The resource of that name, if this API serves it.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// `v1` or `apps/v1`.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: how `Status` messages name a resource (`schema.GroupResource.String`).
    pub fn qualified_plural(&self) -> String {
        qualified(self.plural, self.group)
    }

    /// `Pod` or `Deployment.apps`: how validation errors name a kind (`schema.GroupKind.String`).
    pub fn qualified_kind(&self) -> String {
        qualified(self.kind, self.group)
    }

    /// Whether objects of this resource are kept, as opposed to reviews, which are only answered.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }
}

/// `name`, or `name.group` outside the core group.
pub(super) fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// The group versions in discovery order: the core group, then the others.
pub(super) fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut seen = Vec::new();
    for resource in RESOURCES {
        if !seen.contains(&(resource.group, resource.version)) {
            seen.push((resource.group, resource.version));
        }
    }
    seen
}

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const STREAM_VERBS: &[&str] = &["create", "get"];

const fn status(kind: &'static str) -> Subresource {
    Subresource { name: "status", kind, group_version: None, verbs: STATUS_VERBS }
}

const fn stream(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, kind, group_version: None, verbs: STREAM_VERBS }
}

const fn core(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
) -> Resource {
    Resource {
        group: "",
        version: "v1",
        kind,
        plural,
        singular,
        short_names,
        namespaced: true,
        verbs: ALL,
        categories: &[],
        subresources: &[],
    }
}

const fn review(group: &'static str, kind: &'static str, plural: &'static str, singular: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        kind,
        plural,
        singular,
        short_names: &[],
        namespaced: false,
        verbs: CREATE,
        categories: &[],
        subresources: &[],
    }
}

/// Every resource, those of one group version together.
pub(super) static RESOURCES: &[Resource] = &[
    core("ConfigMap", "configmaps", "configmap", &["cm"]),
    core("Event", "events", "event", &["ev"]),
    Resource {
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            Subresource { name: "finalize", kind: "Namespace", group_version: None, verbs: &["update"] },
            status("Namespace"),
        ],
        ..core("Namespace", "namespaces", "namespace", &["ns"])
    },
    Resource { namespaced: false, subresources: &[status("Node")], ..core("Node", "nodes", "node", &["no"]) },
    Resource {
        categories: &["all"],
        subresources: &[
            stream("attach", "PodAttachOptions"),
            stream("exec", "PodExecOptions"),
            Subresource { name: "log", kind: "Pod", group_version: None, verbs: &["get"] },
            stream("portforward", "PodPortForwardOptions"),
            status("Pod"),
        ],
        ..core("Pod", "pods", "pod", &["po"])
    },
    core("Secret", "secrets", "secret", &[]),
    core("ServiceAccount", "serviceaccounts", "serviceaccount", &["sa"]),
    Resource {
        categories: &["all"],
        subresources: &[status("Service")],
        ..core("Service", "services", "service", &["svc"])
    },
    Resource {
        group: "apps",
        categories: &["all"],
        subresources: &[
            Subresource {
                name: "scale",
                kind: "Scale",
                group_version: Some(("autoscaling", "v1")),
                verbs: STATUS_VERBS,
            },
            status("Deployment"),
        ],
        ..core("Deployment", "deployments", "deployment", &["deploy"])
    },
    Resource { group: "coordination.k8s.io", ..core("Lease", "leases", "lease", &[]) },
    review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    review("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview"),
    review("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview"),
    review("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview"),
];

/// Namespaces, needed by name for the existence check before a create.
pub(super) fn namespaces() -> &'static Resource {
    // `core("Namespace", …)` stands in the table above.
    Resource::find("", "v1", "namespaces").expect("the table holds namespaces")
}

/// Pods, needed by name for logs and streams.
pub(super) fn pods() -> &'static Resource {
    // `core("Pod", …)` stands in the table above.
    Resource::find("", "v1", "pods").expect("the table holds pods")
}
