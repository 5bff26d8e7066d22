//! Who may do what: a small table in the shape of RBAC's `PolicyRule` with its subjects.

use super::identity::User;

/// Members of this group may do everything, as in a real cluster.
pub(super) const MASTERS: &str = "system:masters";

/// Allows some users to do something. `"*"` stands for everything in each list.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// User names this rule is for.
    pub users: Vec<String>,
    /// Groups this rule is for.
    pub groups: Vec<String>,
    /// Verbs, for example `get`, `list`, `impersonate`.
    pub verbs: Vec<String>,
    /// API groups, `""` for the core group. Empty: every group.
    pub api_groups: Vec<String>,
    /// Resources, for example `pods`, `pods/exec`, `userextras/team`.
    pub resources: Vec<String>,
    /// Names of objects. Empty: every name.
    pub resource_names: Vec<String>,
    /// Namespaces. Empty: every namespace and the cluster scope.
    pub namespaces: Vec<String>,
    /// Paths that are no resources, for example `/version`; a trailing `*` matches any ending.
    pub paths: Vec<String>,
}

impl Rule {
    /// A rule for one user, allowing nothing yet.
    pub fn for_user(user: &str) -> Self {
        Self { users: vec![user.to_owned()], ..Self::default() }
    }

    /// A rule for one group, allowing nothing yet.
    pub fn for_group(group: &str) -> Self {
        Self { groups: vec![group.to_owned()], ..Self::default() }
    }

    /// Allows these verbs.
    pub fn verbs(mut self, verbs: &[&str]) -> Self {
        self.verbs = owned(verbs);
        self
    }

    /// Limits the rule to these API groups.
    pub fn api_groups(mut self, api_groups: &[&str]) -> Self {
        self.api_groups = owned(api_groups);
        self
    }

    /// Allows these resources.
    pub fn resources(mut self, resources: &[&str]) -> Self {
        self.resources = owned(resources);
        self
    }

    /// Limits the rule to objects of these names.
    pub fn resource_names(mut self, names: &[&str]) -> Self {
        self.resource_names = owned(names);
        self
    }

    /// Limits the rule to these namespaces.
    pub fn namespaces(mut self, namespaces: &[&str]) -> Self {
        self.namespaces = owned(namespaces);
        self
    }

    /// Allows these paths that are no resources.
    pub fn paths(mut self, paths: &[&str]) -> Self {
        self.paths = owned(paths);
        self
    }

    fn is_for(&self, user: &User) -> bool {
        contains(&self.users, &user.name) || user.groups.iter().any(|group| contains(&self.groups, group))
    }

    fn allows(&self, attributes: &Attributes<'_>) -> bool {
        let verb = contains(&self.verbs, attributes.verb());
        match attributes {
            Attributes::Path { path, .. } => verb && self.paths.iter().any(|p| path_matches(p, path)),
            Attributes::Resource { group, resource, name, namespace, .. } => {
                verb && contains(&self.resources, resource)
                    && (self.api_groups.is_empty() || contains(&self.api_groups, group))
                    && (self.resource_names.is_empty() || contains(&self.resource_names, name))
                    && (self.namespaces.is_empty() || namespace.is_some_and(|n| contains(&self.namespaces, n)))
            }
        }
    }
}

/// What is asked of the authorizer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attributes<'a> {
    /// A resource; `resource` includes the subresource (`pods/log`).
    Resource { verb: &'a str, group: &'a str, resource: &'a str, name: &'a str, namespace: Option<&'a str> },
    /// A path that is no resource.
    Path { verb: &'a str, path: &'a str },
}

impl<'a> Attributes<'a> {
    fn verb(&self) -> &'a str {
        match self {
            Self::Resource { verb, .. } | Self::Path { verb, .. } => verb,
        }
    }
}

/// The table of rules.
#[derive(Debug)]
pub(super) struct Authorizer {
    rules: Vec<Rule>,
}

impl Authorizer {
    /// The given rules, and what a real cluster grants everybody (`system:discovery`, `system:basic-user`,
    /// `system:public-info-viewer`) and to `system:masters`.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        let reviews = ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
        let open = ["/healthz*", "/livez*", "/readyz*", "/version", "/version/"];
        let discovery = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/sample/*"];
        rules.extend([
            Rule::for_group(MASTERS).verbs(&["*"]).resources(&["*"]).paths(&["*"]),
            Rule::for_group("system:authenticated").verbs(&["create"]).resources(&reviews),
            Rule::for_group("system:authenticated").verbs(&["*"]).paths(&discovery),
            Rule::for_group("system:authenticated").verbs(&["get"]).paths(&open),
            Rule::for_group("system:unauthenticated").verbs(&["get"]).paths(&open),
        ]);
        Self { rules }
    }

    /// The rules that are for this user in this namespace.
    pub fn rules_for<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        let here = move |rule: &&Rule| rule.namespaces.is_empty() || contains(&rule.namespaces, namespace);
        self.rules.iter().filter(|rule| rule.is_for(user)).filter(here)
    }

    /// Whether the user may.
    pub fn allows(&self, user: &User, attributes: &Attributes<'_>) -> bool {
        self.rules.iter().any(|rule| rule.is_for(user) && rule.allows(attributes))
    }
}

fn contains(list: &[String], word: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == word)
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => pattern == path,
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods<'a>(verb: &'a str, namespace: Option<&'a str>) -> Attributes<'a> {
        Attributes::Resource { verb, group: "", resource: "pods", name: "", namespace }
    }

    #[test]
    fn a_rule_is_bounded_by_verb_and_namespace() {
        let rule = Rule::for_user("alice").verbs(&["get", "list"]).resources(&["pods"]).namespaces(&["demo"]);
        let authorizer = Authorizer::new(vec![rule]);
        let alice = User::named("alice", &["system:authenticated"]);
        assert!(authorizer.allows(&alice, &pods("list", Some("demo"))));
        assert!(!authorizer.allows(&alice, &pods("delete", Some("demo"))));
        assert!(!authorizer.allows(&alice, &pods("list", Some("kube-system"))));
        assert!(!authorizer.allows(&alice, &pods("list", None)));
    }

    #[test]
    fn masters_may_do_everything() {
        let admin = User::named("admin", &[MASTERS]);
        assert!(Authorizer::new(vec![]).allows(&admin, &pods("delete", None)));
    }

    #[test]
    fn everybody_may_ask_whether_the_server_is_ready() {
        let nobody = User::named("system:anonymous", &["system:unauthenticated"]);
        let authorizer = Authorizer::new(vec![]);
        assert!(authorizer.allows(&nobody, &Attributes::Path { verb: "get", path: "/readyz" }));
        assert!(!authorizer.allows(&nobody, &Attributes::Path { verb: "get", path: "/apis" }));
    }
}
