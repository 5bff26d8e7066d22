//! `qtunnel agent manifest`: the agent as Kubernetes objects.
//!
//! `deploy/kubernetes/agent/agent.yaml` is what this prints for the default arguments; a test keeps the two the same.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

use super::CommandResult;
use super::args::ManifestArgs;
use crate::kube::impersonation::{ImpersonationPolicy, ORIGINAL_GROUPS_EXTRA, ORIGINAL_USER_EXTRA, Refusal};
use crate::wire::Identity;

/// Prints the manifest, and on standard error what the reader may have forgotten.
pub fn run(args: &ManifestArgs) -> CommandResult {
    std::io::stdout().write_all(render(args).as_bytes())?;
    let (cluster, replicas) = (args.token.cluster(), args.replicas);
    eprintln!("{replicas} agent(s) of cluster \"{cluster}\": the token needs a use for each (`--uses {replicas}`).");
    if args.impersonate_user.is_empty() {
        eprintln!(
            "warning: no --impersonate-user was given, so the cluster will refuse every request; add those whom you give access"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A user or group name that an agent can be let impersonate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ImpersonatedName(String);

/// A user that the agent's ClusterRole names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImpersonatedUser(ImpersonatedName);

/// A group that the agent's ClusterRole names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImpersonatedGroup(ImpersonatedName);

/// The name of a namespace: a DNS label (RFC 1123, section 2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(String);

/// The name of a container image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(String);

/// Why a manifest cannot hold a value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a name at all.
    #[error("{0:?} is not a name: it must not be empty, nor hold control characters, nor begin or end with a space")]
    NoName(String),
    /// A pattern.
    #[error("{0:?} holds a \"*\", which RBAC takes literally: give every name by itself")]
    Pattern(String),
    /// A name that agents refuse.
    #[error("{0} by default, so there is no use in letting it")]
    Refused(#[from] Refusal),
    /// Not a namespace.
    #[error(
        "{0:?} is not a namespace: use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends"
    )]
    NoNamespace(String),
    /// Not an image.
    #[error("{0:?} is not the name of an image, such as registry.example.com/qtunnel:{version}", version = env!("CARGO_PKG_VERSION"))]
    NoImage(String),
}

impl FromStr for ImpersonatedUser {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let name = text.parse()?;
        ImpersonationPolicy::default().permits(&Identity::named(text))?;
        Ok(Self(name))
    }
}

impl FromStr for ImpersonatedGroup {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let name = text.parse()?;
        let member = Identity { groups: vec![text.to_owned()], ..Identity::default() };
        ImpersonationPolicy::default().permits(&member)?;
        Ok(Self(name))
    }
}

impl FromStr for ImpersonatedName {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        if text.is_empty() || text.trim() != text || text.contains(char::is_control) {
            return Err(ManifestError::NoName(text.to_owned()));
        }
        match text.contains('*') {
            true => Err(ManifestError::Pattern(text.to_owned())),
            false => Ok(Self(text.to_owned())),
        }
    }
}

impl FromStr for Namespace {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_label = (1..=63).contains(&text.len())
            && text.starts_with(plain)
            && text.ends_with(plain)
            && text.chars().all(|c| plain(c) || c == '-');
        if is_label { Ok(Self(text.to_owned())) } else { Err(ManifestError::NoNamespace(text.to_owned())) }
    }
}

impl FromStr for ImageName {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let is_image = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        if is_image { Ok(Self(text.to_owned())) } else { Err(ManifestError::NoImage(text.to_owned())) }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn render(args: &ManifestArgs) -> String {
    let documents = [
        namespace(args),
        token_secret(args),
        service_account(args),
        cluster_role(args),
        cluster_role_binding(args),
        disruption_budget(args),
        stateful_set(args),
    ];
    documents.join("---\n")
}

fn namespace(args: &ManifestArgs) -> String {
    format!(
        r#"# A qtunnel agent, as `qtunnel agent manifest` prints it.
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels:
    # The agent keeps to the strictest standard; so must whatever else is put beside it.
    pod-security.kubernetes.io/enforce: restricted
"#,
        namespace = quoted(&args.namespace),
    )
}

fn token_secret(args: &ManifestArgs) -> String {
    format!(
        r#"# What each agent joins with, once. When all have joined, this Secret may be deleted.
apiVersion: v1
kind: Secret
metadata:
  name: qtunnel-agent-token
  namespace: {namespace}
type: Opaque
stringData:
  token: {token}
"#,
        namespace = quoted(&args.namespace),
        token = quoted(&args.token),
    )
}

fn service_account(args: &ManifestArgs) -> String {
    format!(
        r#"apiVersion: v1
kind: ServiceAccount
metadata:
  name: qtunnel-agent
  namespace: {namespace}
automountServiceAccountToken: false
"#,
        namespace = quoted(&args.namespace),
    )
}

fn cluster_role(args: &ManifestArgs) -> String {
    format!(
        r#"# All that the agent may do. Its health check, /readyz, is open to every ServiceAccount (system:public-info-viewer).
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {role}
rules:
# Whom the agent may act as: EDIT HERE. Without resourceNames it could act as system:masters, and an empty list of them
# means everybody. What these users may do is up to their own roles.
# Users who have a uid in the stub's token file need the same for the resource uids of authentication.k8s.io.
{impersonation}# With `kubectl --as` the audit log shows who asked. RBAC knows no userextras/*, so each key is named; the values are names
# of users and groups, and give no rights.
- apiGroups: [authentication.k8s.io]
  resources:
  - userextras/{ORIGINAL_USER_EXTRA}
  - userextras/{ORIGINAL_GROUPS_EXTRA}
  verbs: [impersonate]
# Whether a user may use `kubectl --as` is the cluster's decision: the agent asks.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
# Which cluster this is: the UID of kube-system tells it from others, so that no two are ever served as one.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
  resourceNames: [kube-system]
"#,
        role = quoted(&role_name(args)),
        impersonation = impersonation_rules(args),
    )
}

/// The two rules; an example in a comment for one that would have no names, because to RBAC that means all of them.
fn impersonation_rules(args: &ManifestArgs) -> String {
    let users: Vec<_> = args.impersonate_user.iter().map(|user| &user.0).collect();
    let groups: Vec<_> = args.impersonate_group.iter().map(|group| &group.0).collect();
    impersonation_rule("users", &users, "[alice, bob]") + &impersonation_rule("groups", &groups, "[devs]")
}

fn impersonation_rule(resource: &str, names: &[&ImpersonatedName], example: &str) -> String {
    let rule = |mark: &str, names: &str| {
        format!(
            "{mark}- apiGroups: [\"\"]\n{mark}  resources: [{resource}]\n{mark}  verbs: [impersonate]\n{mark}  resourceNames: {names}\n"
        )
    };
    if names.is_empty() {
        return rule("# ", example);
    }
    let names: Vec<_> = names.iter().map(|name| quoted(&name.0)).collect();
    rule("", &format!("[{}]", names.join(", ")))
}

fn cluster_role_binding(args: &ManifestArgs) -> String {
    format!(
        r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {role}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {role}
subjects:
- kind: ServiceAccount
  name: qtunnel-agent
  namespace: {namespace}
"#,
        role = quoted(&role_name(args)),
        namespace = quoted(&args.namespace),
    )
}

fn disruption_budget(args: &ManifestArgs) -> String {
    format!(
        r#"# Not minAvailable: with a single replica that would keep its node from being drained, for ever.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: qtunnel-agent
  namespace: {namespace}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: qtunnel-agent
"#,
        namespace = quoted(&args.namespace),
    )
}

fn stateful_set(args: &ManifestArgs) -> String {
    format!(
        r#"# A StatefulSet, because each agent has a key and a certificate of its own that have to outlive its pod. A Deployment could
# give its pods only an emptyDir: each new one would have to join again, and a token that lets it would have to lie in the
# cluster for ever. Here a token that is good for an hour and one use per replica is enough.
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: qtunnel-agent
  namespace: {namespace}
  labels:
    app.kubernetes.io/name: qtunnel-agent
spec:
  replicas: {replicas}
  # Required, but there is no such Service: nobody dials an agent.
  serviceName: qtunnel-agent
  # Agents do not need one another to start. An update still replaces one after the other.
  podManagementPolicy: Parallel
  # Stands in for a readiness probe, see below: time to connect before the next one is replaced.
  minReadySeconds: 15
  selector:
    matchLabels:
      app.kubernetes.io/name: qtunnel-agent
  template:
    metadata:
      labels:
        app.kubernetes.io/name: qtunnel-agent
    spec:
      serviceAccountName: qtunnel-agent
      automountServiceAccountToken: true
      # Variables named after Services could look like the agent's own, which begin with QTUNNEL_.
      enableServiceLinks: false
      # Longer than the 30 s that the agent lets requests end in.
      terminationGracePeriodSeconds: 45
      nodeSelector:
        kubernetes.io/os: linux
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels:
            app.kubernetes.io/name: qtunnel-agent
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        # Otherwise every start would open the private key to the group.
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      containers:
      - name: agent
        image: {image}
        args: [agent]
        env:
        - name: QTUNNEL_STUB
          value: {stub}
        - name: QTUNNEL_TOKEN
          valueFrom:
            secretKeyRef:
              name: qtunnel-agent-token
              key: token
              optional: true
        - name: QTUNNEL_STATE_DIR
          value: /var/lib/qtunnel/agent
        - name: QTUNNEL_LOG_FORMAT
          value: json
        # No probes: the agent listens on no port. It ends by itself when it cannot go on, and while it cannot reach its stub
        # or its API server a restart would help nobody; `qtunnel status` at the stub shows both.
        resources:
          requests:
            cpu: 50m
            memory: 64Mi
          # Memory only: a CPU limit would stall every stream.
          limits:
            memory: 512Mi
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities:
            drop: [ALL]
        volumeMounts:
        - name: state
          mountPath: /var/lib/qtunnel
  # A few kilobytes for each agent; many storage systems give no less than this. Without a default StorageClass add
  # storageClassName.
  volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: state
    spec:
      accessModes: [ReadWriteOnce]
      resources:
        requests:
          storage: 1Gi
"#,
        namespace = quoted(&args.namespace),
        replicas = args.replicas,
        image = quoted(&args.image.0),
        stub = quoted(&args.stub.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    )
}

/// Cluster-wide, so it has to tell the agents of two stubs in two namespaces apart.
fn role_name(args: &ManifestArgs) -> String {
    format!("qtunnel-agent:{}", args.namespace)
}

/// A JSON string, which is a double-quoted YAML scalar whatever it holds (YAML 1.2.2, section 1.3).
fn quoted(value: &(impl fmt::Display + ?Sized)) -> String {
    serde_json::Value::from(value.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_should_impersonate_are_refused() {
        for user in
            ["", " alice", "a\nb", "*", "dev-*", "system:masters", "system:serviceaccount:a:b", "system:node:n1"]
        {
            assert!(user.parse::<ImpersonatedUser>().is_err(), "{user:?}");
        }
        for group in ["", "*", "system:masters", "system:nodes", "system:serviceaccounts"] {
            assert!(group.parse::<ImpersonatedGroup>().is_err(), "{group:?}");
        }
        assert!("alice@example.com".parse::<ImpersonatedUser>().is_ok());
        assert!("oidc:Dev Team".parse::<ImpersonatedGroup>().is_ok());
    }

    #[test]
    fn a_rule_without_names_stays_a_comment() {
        assert!(impersonation_rule("users", &[], "[alice]").lines().all(|line| line.starts_with("# ")));
        let name = ImpersonatedName("o\"brien".to_owned());
        let rule = impersonation_rule("users", &[&name], "[alice]");
        assert!(rule.ends_with("resourceNames: [\"o\\\"brien\"]\n"), "{rule}");
    }

    #[test]
    fn namespaces_and_images_are_checked() {
        for bad in ["", "-a", "a-", "A", "a.b", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?}");
        }
        for bad in ["", "a b", "a\n", "ä"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
        assert!("registry.example.com:5000/qtunnel@sha256:00".parse::<ImageName>().is_ok());
    }
}
