//! Writing a kubeconfig file for a user of the stub.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What stands in the kubeconfig of one user for one cluster.
#[derive(Clone)]
pub struct KubeconfigSpec<'a> {
    /// The name of cluster and context.
    pub cluster: &'a str,
    /// Where the stub serves this cluster: `https://...`.
    pub server: &'a str,
    /// The certificates, in PEM, that the stub's chains to. `None`: those the client's system trusts.
    pub certificate_authority: Option<&'a str>,
    /// The name to expect in the stub's certificate, where it is not the host in `server`.
    pub tls_server_name: Option<&'a str>,
    /// The name of the user.
    pub user: &'a str,
    /// How the user proves who they are.
    pub credentials: UserCredentials<'a>,
    /// The namespace commands work in when none is given; `default` where this is `None`.
    pub namespace: Option<&'a str>,
}

/// How the user of a kubeconfig proves who they are.
#[derive(Clone)]
pub enum UserCredentials<'a> {
    /// By a bearer token.
    Token(&'a str),
    /// By a client certificate.
    ClientCertificate {
        /// The certificate and any intermediates, in PEM.
        chain: &'a str,
        /// The private key, in PEM.
        key: &'a str,
    },
}

/// A kubeconfig file with one cluster, one user, and one context, which is the current one. It holds secrets.
pub fn render(spec: &KubeconfigSpec<'_>) -> String {
    // Two clusters may know different users of one name, and a merged kubeconfig must keep them apart.
    let user = quoted(&format!("{}@{}", spec.user, spec.cluster));
    let cluster = quoted(spec.cluster);
    let mut lines = vec!["apiVersion: v1".to_owned(), "kind: Config".to_owned(), "clusters:".to_owned()];
    lines.extend([format!("- name: {cluster}"), "  cluster:".to_owned()]);
    lines.push(format!("    server: {}", quoted(spec.server)));
    lines.extend(spec.certificate_authority.map(|pem| data("certificate-authority", pem)));
    lines.extend(spec.tls_server_name.map(|name| format!("    tls-server-name: {}", quoted(name))));
    lines.extend(["users:".to_owned(), format!("- name: {user}"), "  user:".to_owned()]);
    match spec.credentials {
        UserCredentials::Token(token) => lines.push(format!("    token: {}", quoted(token))),
        UserCredentials::ClientCertificate { chain, key } => {
            lines.extend([data("client-certificate", chain), data("client-key", key)]);
        }
    }
    lines.extend(["contexts:".to_owned(), format!("- name: {cluster}"), "  context:".to_owned()]);
    lines.extend([format!("    cluster: {cluster}"), format!("    user: {user}")]);
    lines.extend(spec.namespace.map(|namespace| format!("    namespace: {}", quoted(namespace))));
    lines.push(format!("current-context: {cluster}"));
    lines.join("\n") + "\n"
}

fn data(name: &str, pem: &str) -> String {
    format!("    {name}-data: {}", STANDARD.encode(pem))
}

/// A JSON string is a double-quoted YAML scalar (YAML 1.2, section 1.3), whatever it holds.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_written_as_kubectl_reads_it() {
        let spec = KubeconfigSpec {
            cluster: "prod-eu",
            server: "https://prod-eu.example.com",
            certificate_authority: Some("ca"),
            tls_server_name: Some("stub"),
            user: "alice",
            credentials: UserCredentials::ClientCertificate { chain: "chain", key: "key" },
            namespace: Some("demo"),
        };
        let expected = r#"apiVersion: v1
kind: Config
clusters:
- name: "prod-eu"
  cluster:
    server: "https://prod-eu.example.com"
    certificate-authority-data: Y2E=
    tls-server-name: "stub"
users:
- name: "alice@prod-eu"
  user:
    client-certificate-data: Y2hhaW4=
    client-key-data: a2V5
contexts:
- name: "prod-eu"
  context:
    cluster: "prod-eu"
    user: "alice@prod-eu"
    namespace: "demo"
current-context: "prod-eu"
"#;
        assert_eq!(render(&spec), expected);
    }
}
