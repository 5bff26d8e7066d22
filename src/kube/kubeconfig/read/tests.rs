use super::*;
use crate::kube::kubeconfig::{KubeconfigSpec, UserCredentials, render};
use proptest::prelude::*;

/// The kubeconfig of a folder that also holds `ca.pem`, `cert.pem` and `key.pem`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("config", text), ("ca.pem", "ca"), ("cert.pem", "cert"), ("key.pem", "key")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn upstream(&self, context: Option<&str>) -> Result<Upstream, KubeconfigError> {
        Kubeconfig::load(&self.0.path().join("config"))?.upstream(context)
    }
}

/// A kubeconfig with these lines in its cluster and its user.
fn config(cluster: &str, user: &str) -> String {
    format!(
        "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
}

fn upstream_of(cluster: &str, user: &str) -> Result<Upstream, KubeconfigError> {
    Folder::with(&config(cluster, user)).upstream(None)
}

fn credentials_of(user: &str) -> Result<Credentials, KubeconfigError> {
    upstream_of("server: 'https://h:6443'", user).map(|upstream| upstream.credentials)
}

#[test]
fn a_kubeconfig_as_kubeadm_writes_it_is_read() {
    let folder = Folder::with(
        "apiVersion: v1
kind: Config
preferences: {}
clusters:
- cluster:
    certificate-authority-data: Y2Ey
    server: https://10.0.0.1:6443
  name: kubernetes
- cluster:
    certificate-authority: ca.pem
    server: https://rancher.example/k8s/clusters/c-1
    tls-server-name: inner
    extensions: [{name: x, extension: {a: b}}]
  name: other
contexts:
- context: {cluster: kubernetes, user: admin, namespace: demo}
  name: admin@kubernetes
- context: {cluster: other, user: dev}
  name: other
current-context: admin@kubernetes
users:
- name: admin
  user:
    client-certificate-data: Y2VydA==
    client-key-data: a2V5
- name: dev
  user: {token: abc}
---
ignored: true
",
    );
    let upstream = folder.upstream(None).unwrap();
    assert_eq!(upstream.server, "https://10.0.0.1:6443");
    assert_eq!(upstream.certificate_authority.as_deref(), Some(b"ca2".as_slice()));
    let certificate = ClientCertificate { chain: b"cert".to_vec(), key: b"key".to_vec() };
    assert_eq!(upstream.credentials, Credentials::ClientCertificate(certificate));
    assert_eq!((upstream.server_name, upstream.insecure), (None, false));

    let other = folder.upstream(Some("other")).unwrap();
    assert_eq!(other.server.path(), "/k8s/clusters/c-1");
    assert_eq!(other.certificate_authority.as_deref(), Some(b"ca".as_slice()));
    assert_eq!(other.server_name.as_deref(), Some("inner"));
    assert_eq!(other.credentials, Credentials::Token(BearerToken::new("abc").unwrap()));
}

#[test]
fn every_kind_of_credentials_is_read() {
    assert_eq!(credentials_of("").unwrap(), Credentials::Anonymous);
    let files = credentials_of("client-certificate: cert.pem, client-key: key.pem, token: also").unwrap();
    let certificate = ClientCertificate { chain: b"cert".to_vec(), key: b"key".to_vec() };
    assert_eq!(files, Credentials::ClientCertificate(certificate));
    assert_eq!(credentials_of("token: '123'").unwrap(), Credentials::Token(BearerToken::new("123").unwrap()));
    assert_eq!(credentials_of("tokenFile: /t, token: abc").unwrap(), Credentials::TokenFile("/t".into()));
    let folder = Folder::with(&config("server: 'https://h'", "tokenFile: sub/token"));
    assert_eq!(folder.upstream(None).unwrap().credentials, Credentials::TokenFile(folder.0.path().join("sub/token")));
    assert!(!format!("{files:?}").contains("key"));
}

#[test]
fn a_user_may_be_left_empty() {
    let text = config("server: 'https://h'", "").replace("user: {}", "user:");
    assert_eq!(Folder::with(&text).upstream(None).unwrap().credentials, Credentials::Anonymous);
}

#[test]
fn what_is_not_supported_is_said_with_what_to_do_instead() {
    for (user, hint) in [
        ("exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}", "kubectl create token"),
        ("auth-provider: {name: gcp}", "kubectl create token"),
        ("username: admin, password: secret", "1.19"),
        ("as: bob, token: secret", "own credentials"),
        ("client-certificate: cert.pem", "needs both"),
        ("client-key-data: '!'", "client-key-data is not base64"),
        ("token: 'sec ret'", "character"),
        ("client-certificate: missing.pem, client-key: key.pem", "missing.pem"),
    ] {
        let error = credentials_of(user).unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
        assert!(!format!("{error} {error:?}").contains("sec"), "{error}");
    }
    for (cluster, hint) in [
        ("server: 'https://h', proxy-url: 'http://p'", "proxy-url"),
        ("server: 'https://h', insecure-skip-tls-verify: true, certificate-authority: ca.pem", "insecure"),
        ("server: 'https://h', certificate-authority-data: '!'", "base64"),
        ("server:", "https://host:6443"),
        ("server: h", "https://host:6443"),
        ("server: 'ftp://h'", "https://host:6443"),
        ("server: 'https://u:p@h'", "https://host:6443"),
    ] {
        let error = upstream_of(cluster, "").unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
    assert!(upstream_of("server: 'https://h', insecure-skip-tls-verify: true", "").unwrap().insecure);
}

#[test]
fn what_is_missing_or_doubled_is_named() {
    let good = config("server: 'https://h'", "");
    let text = |result: Result<Upstream, KubeconfigError>| result.unwrap_err().to_string();
    assert!(text(Folder::with("{}").upstream(None)).contains("current-context"));
    assert!(text(Folder::with("").upstream(None)).contains("current-context"));
    assert!(text(Folder::with(&good).upstream(Some("y"))).contains("no context \"y\""));
    assert!(
        text(Folder::with(&good.replace("cluster: c,", "cluster: d,")).upstream(None)).contains("no cluster \"d\"")
    );
    assert!(text(Folder::with(&good.replace("user: u}", "user: v}")).upstream(None)).contains("no user \"v\""));
    let unrelated = good.replace("clusters: [", "clusters: [{name: unfinished, cluster: {}}, ");
    assert!(Folder::with(&unrelated).upstream(None).is_ok(), "only what is used must be complete");
    let twice = good.replace("users: [", "users: [{name: u, user: {}}, ");
    assert!(text(Folder::with(&twice).upstream(None)).contains("more than one user \"u\""));
    let missing = Kubeconfig::load(Path::new("/nonexistent/config")).err().unwrap();
    assert!(missing.to_string().contains("/nonexistent/config"));
}

#[test]
fn an_error_in_the_file_does_not_quote_its_secrets() {
    for text in
        ["users: [{name: u, user: {token: secret-token", "users:\n- name: u\n  user:\n    token: [secret-token]\n"]
    {
        let error = Folder::with(text).upstream(None).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret-token"), "{error}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let spec = KubeconfigSpec {
        cluster: "c1",
        server: "https://c1.example:8443/clusters/c1",
        certificate_authority: Some("ca\n"),
        tls_server_name: None,
        user: "o\"neil: #\u{e9}\n",
        credentials: UserCredentials::Token("yes"),
        namespace: None,
    };
    let upstream = Folder::with(&render(&spec)).upstream(Some("c1")).unwrap();
    assert_eq!(upstream.server, spec.server);
    assert_eq!(upstream.certificate_authority.as_deref(), Some(b"ca\n".as_slice()));
    assert_eq!(upstream.credentials, Credentials::Token(BearerToken::new("yes").unwrap()));
}

proptest! {
    #[test]
    fn no_file_panics(text in "(users|clusters|contexts|current-context|[-:{}\\[\\]&*a\n \"']){0,30}") {
        let _ = parse(&text);
    }
}
