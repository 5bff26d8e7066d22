use super::*;
use crate::kube::RequestPath;
use crate::wire::{ClusterId, Identity};
use http::Method;

const EXAMPLE: &str = include_str!("../../../../deploy/policy.example.yaml");

/// Who asks, and what for.
struct Question {
    user: Identity,
    requested: Option<Identity>,
    cluster: ClusterId,
    request: RequestInfo,
}

fn identity(user: &str, groups: &[&str]) -> Identity {
    Identity { groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Identity::named(user) }
}

fn question(user: &str, groups: &[&str], cluster: &str, method: Method, target: &str) -> Question {
    Question {
        user: identity(user, groups),
        requested: None,
        cluster: cluster.parse().unwrap(),
        request: RequestInfo::new(&method, &RequestPath::parse(target).unwrap()).unwrap(),
    }
}

impl Question {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            user: &self.user,
            requested: self.requested.as_ref(),
            cluster: &self.cluster,
            request: &self.request,
        }
    }
}

fn policy(rules: &str) -> Result<Policy, String> {
    Policy::parse(&format!("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules:\n{rules}"))
}

/// Whether a policy of one rule, which is for everything but what `rule` says, allows a request to cluster `eu`.
fn rule_allows(rule: &str, method: Method, target: &str) -> bool {
    let policy = policy(&format!("- {{name: r, clusters: [eu], users: [alice], {rule}}}")).unwrap();
    policy.decide(&question("alice", &[], "eu", method, target).attributes()).is_allowed()
}

fn why_invalid(rules: &str) -> String {
    policy(rules).unwrap_err()
}

#[test]
fn in_the_example_alice_may_only_exec_in_namespace_demo_of_prod_eu() {
    let example = Policy::parse(EXAMPLE).unwrap();
    let exec = "/api/v1/namespaces/demo/pods/web/exec?command=sh";
    let decide = |cluster, method, target| {
        let question = question("alice", &[], cluster, method, target);
        example.decide(&question.attributes())
    };
    assert_eq!(
        decide("prod-eu", Method::GET, exec).reason(),
        "allowed by rule \"alice-exec-in-demo\" of the access node's policy"
    );
    for (cluster, method, target) in [
        ("prod-us", Method::GET, exec),
        ("prod-eu", Method::GET, "/api/v1/namespaces/kube-system/pods/web/exec?command=sh"),
        ("prod-eu", Method::GET, "/api/v1/namespaces/demo/pods/web/attach"),
        ("prod-eu", Method::GET, "/api/v1/namespaces/demo/secrets"),
        ("prod-eu", Method::DELETE, "/api/v1/namespaces/demo/pods/web"),
    ] {
        let decision = decide(cluster, method, target);
        assert_eq!(decision, Decision::Deny("no rule of the access node's policy allows it".into()), "{target}");
    }
    assert!(decide("prod-us", Method::GET, "/openapi/v3").is_allowed(), "everybody may discover");
    assert!(decide("prod-us", Method::GET, "/api").is_allowed());
}

#[test]
fn a_right_to_read_is_no_right_to_run() {
    let reading = "verbs: [get, list, watch], apiGroups: [''], resources: ['*']";
    assert!(rule_allows(reading, Method::GET, "/api/v1/namespaces/demo/pods/web/log"));
    for target in ["/api/v1/namespaces/demo/pods/web/exec?command=sh", "/api/v1/nodes/n/proxy/run"] {
        assert!(!rule_allows(reading, Method::GET, target), "{target}");
    }
    let running = "verbs: [create], apiGroups: [''], resources: [pods/exec]";
    assert!(rule_allows(running, Method::GET, "/api/v1/namespaces/demo/pods/web/exec?command=sh"));
    assert!(!rule_allows(running, Method::POST, "/api/v1/namespaces/demo/pods"));
}

#[test]
fn clusters_users_and_groups_may_end_in_a_star() {
    let rule = "- {name: r, clusters: [prod-*], users: [ci-*], groups: [team-*, 'system:authenticated'], \
                verbs: [get], apiGroups: [''], resources: [pods]}";
    let narrow = policy(&rule.replace(", 'system:authenticated'", "")).unwrap();
    let wide = policy(rule).unwrap();
    let pod = "/api/v1/namespaces/demo/pods/web";
    let decide = |policy: &Policy, user, groups, cluster| {
        policy.decide(&question(user, groups, cluster, Method::GET, pod).attributes()).is_allowed()
    };
    assert!(decide(&narrow, "ci-7", &[], "prod-eu"));
    assert!(decide(&narrow, "x", &["a", "team-b"], "prod-eu"));
    assert!(!decide(&narrow, "x", &["a"], "prod-eu"));
    assert!(!decide(&narrow, "ci-7", &[], "stage"));
    assert!(decide(&wide, "x", &[], "prod-us"), "every user is authenticated");
}

#[test]
fn namespaces_and_names_bound_a_rule() {
    let rule = "verbs: [get, list, create], apiGroups: [''], resources: [pods], namespaces: [demo, team-*]";
    assert!(rule_allows(rule, Method::GET, "/api/v1/namespaces/demo/pods"));
    assert!(rule_allows(rule, Method::GET, "/api/v1/namespaces/team-a/pods/web"));
    assert!(!rule_allows(rule, Method::GET, "/api/v1/namespaces/demo2/pods"));
    assert!(!rule_allows(rule, Method::GET, "/api/v1/pods"), "all namespaces are more than these");
    let named = format!("{rule}, resourceNames: [web]");
    assert!(rule_allows(&named, Method::GET, "/api/v1/namespaces/demo/pods/web"));
    assert!(rule_allows(&named, Method::GET, "/api/v1/namespaces/demo/pods?fieldSelector=metadata.name%3Dweb"));
    assert!(!rule_allows(&named, Method::GET, "/api/v1/namespaces/demo/pods"));
    assert!(!rule_allows(&named, Method::POST, "/api/v1/namespaces/demo/pods"));
}

#[test]
fn resources_match_as_in_rbac() {
    let rule = |resources: &str| format!("verbs: ['*'], apiGroups: [apps], resources: [{resources}]");
    let deployment = "/apis/apps/v1/namespaces/demo/deployments/web";
    let scale = "/apis/apps/v1/namespaces/demo/deployments/web/scale";
    for (resources, target, allowed) in [
        ("deployments", deployment, true),
        ("deployments", scale, false),
        ("deployments/scale", scale, true),
        ("deployments/scale", deployment, false),
        ("'*/scale'", scale, true),
        ("'*/scale'", deployment, false),
        ("'*'", scale, true),
        ("'*'", "/api/v1/namespaces/demo/pods/web", false),
    ] {
        assert_eq!(rule_allows(&rule(resources), Method::PATCH, target), allowed, "{resources} {target}");
    }
}

#[test]
fn paths_are_not_resources() {
    let rule = "verbs: [get], nonResourceURLs: [/version, /openapi/*]";
    assert!(rule_allows(rule, Method::GET, "/version"));
    assert!(rule_allows(rule, Method::GET, "/openapi/v3/apis/apps/v1"));
    assert!(!rule_allows(rule, Method::GET, "/openapi"));
    assert!(!rule_allows(rule, Method::POST, "/version"));
    let everything = "verbs: ['*'], nonResourceURLs: ['*']";
    assert!(!rule_allows(everything, Method::GET, "/api/v1/pods"));
}

#[test]
fn acting_as_another_has_to_be_allowed_too() {
    let pods = "- {name: pods, clusters: [eu], users: [alice], verbs: [list], apiGroups: [''], resources: [pods]}\n";
    let users = "- {name: as-bob, clusters: [eu], users: [alice], verbs: [impersonate], apiGroups: [''], \
                 resources: [users], resourceNames: [bob]}\n";
    let groups = "- {name: as-devs, clusters: [eu], users: [alice], verbs: [impersonate], apiGroups: [''], \
                  resources: [groups], resourceNames: [devs]}\n";
    let decide = |rules: &[&str], requested| {
        let question =
            Question { requested: Some(requested), ..question("alice", &[], "eu", Method::GET, "/api/v1/pods") };
        policy(&rules.concat()).unwrap().decide(&question.attributes())
    };
    assert!(!decide(&[pods], identity("bob", &[])).is_allowed());
    assert!(decide(&[pods, users], identity("bob", &[])).is_allowed());
    assert!(!decide(&[pods, users], identity("root", &[])).is_allowed());
    assert_eq!(
        decide(&[pods, users], identity("bob", &["devs"])).reason(),
        "no rule of the access node's policy allows to impersonate \"devs\" (groups)"
    );
    assert!(decide(&[pods, users, groups], identity("bob", &["devs"])).is_allowed());
    assert!(!decide(&[users], identity("bob", &[])).is_allowed(), "the rule about alice bounds alice as bob, too");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (rules, part) in [
        ("- {name: r, clusters: [eu], users: [a], verbs: [get], resources: [pods]}", "apiGroups"),
        ("- {name: r, clusters: [eu], users: [a], verbs: [gte], apiGroups: [''], resources: [pods]}", "\"gte\""),
        ("- {name: r, clusters: [eu], verbs: [get], apiGroups: [''], resources: [pods]}", "nobody"),
        ("- {name: r, clusters: [eu], users: [a], verbs: [get]}", "either resources or nonResourceURLs"),
        (
            "- {name: r, clusters: [eu], users: [a], verbs: [get], apiGroups: [''], resources: [pods], namespaces: []}",
            "namespaces is empty",
        ),
        ("- {name: r, clusters: [], users: [a], verbs: [get], nonResourceURLs: [/x]}", "clusters is empty"),
        ("- {name: r, clusters: [eu], users: [a], verbs: [get], apiGroups: [''], resources: [pods/*]}", "pods/*"),
        ("- {name: r, clusters: [eu], users: [a], verbs: [get], nonResourceURLs: [/x], namespaces: [d]}", "namespaces"),
        ("- {name: r, clusters: [e*u], users: [a], verbs: [get], nonResourceURLs: [/x]}", "e*u"),
        ("- {name: r, cluster: [eu], users: [a], verbs: [get], nonResourceURLs: [/x]}", "cluster"),
        ("- {clusters: [eu], users: [a], verbs: [get], nonResourceURLs: [/x]}", "name"),
        (
            "- {name: r, clusters: [eu], users: [a], verbs: [get], nonResourceURLs: [/x]}\n\
             - {name: r, clusters: [eu], users: [a], verbs: [get], nonResourceURLs: [/x]}",
            "two rules",
        ),
    ] {
        let why = why_invalid(rules);
        assert!(why.contains(part), "{why:?} does not speak of {part:?}");
    }
    assert!(Policy::parse("apiVersion: qtunnel.dev/v2\nkind: Policy\nrules: []").is_err());
    assert!(Policy::parse("apiVersion: qtunnel.dev/v1\nkind: Role\nrules: []").is_err());
    assert!(Policy::parse("apiVersion: qtunnel.dev/v1\nkind: Policy\nrules: []\nallow: all").is_err());
    assert!(Policy::parse("").is_err());
}

#[test]
fn an_explanation_names_what_does_not_match() {
    let policy = policy(
        "- {name: other, clusters: [us], users: [alice], verbs: [get], apiGroups: [''], resources: [pods]}\n\
         - {name: reading, clusters: [eu], users: [alice], verbs: [get], apiGroups: [''], resources: [pods/exec]}\n\
         - {name: exec, clusters: [eu], users: [alice], verbs: [create], apiGroups: [''], resources: [pods/exec]}",
    )
    .unwrap();
    let question = question("alice", &[], "eu", Method::GET, "/api/v1/namespaces/demo/pods/web/exec?command=sh");
    let explanation = policy.explain(&question.attributes());
    assert!(explanation.decision.is_allowed());
    let mismatches: Vec<_> = explanation.rules.iter().map(|rule| rule.mismatch).collect();
    assert_eq!(mismatches, [Some(Mismatch::Cluster), Some(Mismatch::Verb), None]);
}

const LABELLED: &str = "apiVersion: qtunnel.dev/v1
kind: Policy
clusters:
- {id: eu, labels: {env: prod}}
- {id: us, labels: {env: test}}
rules:
- {name: production, clusterSelector: {matchLabels: {env: prod}}, users: [alice], verbs: [get], apiGroups: [''],
   resources: [pods]}
- {name: both, clusters: ['u*'], clusterSelector: {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]},
   users: [bob], verbs: [get], apiGroups: [''], resources: [pods]}
";

#[test]
fn a_rule_is_for_the_clusters_whose_labels_match() {
    let policy = Policy::parse(LABELLED).unwrap();
    let pod = "/api/v1/namespaces/demo/pods/web";
    let allows = |user, cluster| {
        let question = question(user, &[], cluster, Method::GET, pod);
        policy.decide(&question.attributes()).is_allowed()
    };
    let answers = ["eu", "us", "unlabelled"].map(|cluster| (allows("alice", cluster), allows("bob", cluster)));
    assert_eq!(answers, [(true, false), (false, true), (false, true)], "NotIn holds without the label, too");
    let question = question("alice", &[], "us", Method::GET, pod);
    let explanation = policy.explain(&question.attributes());
    assert_eq!(explanation.rules[0].mismatch, Some(Mismatch::ClusterLabels));
    assert_eq!(explanation.cluster_labels["env"], "test");
}

#[test]
fn labels_that_cannot_be_meant_are_refused() {
    for (from, to, part) in [
        ("clusterSelector: {matchLabels: {env: prod}}", "clusterSelector: {}", "empty clusterSelector"),
        ("clusterSelector: {matchLabels: {env: prod}}, ", "", "for no cluster"),
        ("{id: us,", "{id: eu,", "twice"),
        ("{id: us,", "{id: 'u*',", "u*"),
        ("labels: {env: test}", "labels: {env: [test]}", "line"),
    ] {
        assert!(LABELLED.contains(from), "{from}");
        let why = Policy::parse(&LABELLED.replacen(from, to, 1)).unwrap_err();
        assert!(why.contains(part), "{to}: {why}");
    }
}
