//! Reading a kubeconfig file (`client-go/tools/clientcmd`).

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::{ClientCertificate, Credentials, KubeconfigError, Upstream, read_file};
use crate::wire::BearerToken;

/// A kubeconfig file. Paths in it count from its own folder.
pub struct Kubeconfig {
    document: Document,
    folder: PathBuf,
}

impl Kubeconfig {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, KubeconfigError> {
        let malformed = |why: String| KubeconfigError::Malformed { path: path.to_owned(), why };
        let text = String::from_utf8(read_file(path)?).map_err(|_| malformed("it is not UTF-8".to_owned()))?;
        let document = parse(&text).map_err(malformed)?;
        Ok(Self { document, folder: path.parent().unwrap_or(Path::new("")).to_owned() })
    }

    /// Where a context leads; `None` is the file's current one.
    ///
    /// # Errors
    /// What is missing or cannot be read, and what only kubectl can do: credential plugins, proxies, basic authentication and
    /// impersonation.
    pub fn upstream(&self, context: Option<&str>) -> Result<Upstream, KubeconfigError> {
        let current = self.document.current_context.as_deref().filter(|name| !name.is_empty());
        let name = context.or(current).ok_or(KubeconfigError::NoContext)?;
        let context = find("context", &self.document.contexts, name)?;
        let cluster_name = context.cluster.as_deref().unwrap_or_default();
        let cluster = find("cluster", &self.document.clusters, cluster_name)?;
        let credentials = match context.user.as_deref() {
            None | Some("") => Credentials::Anonymous,
            Some(user) => self.credentials(user, find("user", &self.document.users, user)?)?,
        };
        self.connect(cluster_name, cluster, credentials)
    }

    fn connect(&self, name: &str, cluster: &Cluster, credentials: Credentials) -> Result<Upstream, KubeconfigError> {
        let invalid = |why| KubeconfigError::Invalid { what: "cluster", name: name.to_owned(), why };
        if cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
            return Err(invalid(
                "proxy-url is not supported; remove it and let the agent reach the API server directly",
            ));
        }
        let insecure = cluster.insecure_skip_tls_verify.unwrap_or(false);
        let authority = Source::of(&cluster.certificate_authority_data, &cluster.certificate_authority);
        let certificate_authority = self.read(authority, || invalid("certificate-authority-data is not base64"))?;
        if insecure && certificate_authority.is_some() {
            return Err(invalid("it has a certificate authority and insecure-skip-tls-verify; remove the latter"));
        }
        Ok(Upstream {
            server: cluster
                .server
                .as_deref()
                .and_then(server)
                .ok_or_else(|| invalid("server must be a URL such as https://host:6443"))?,
            certificate_authority,
            server_name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
            credentials,
            insecure,
        })
    }

    fn credentials(&self, name: &str, user: &User) -> Result<Credentials, KubeconfigError> {
        let invalid = |why| KubeconfigError::Invalid { what: "user", name: name.to_owned(), why };
        if let Some(why) = user.unsupported() {
            return Err(invalid(why));
        }
        let chain = Source::of(&user.client_certificate_data, &user.client_certificate);
        let key = Source::of(&user.client_key_data, &user.client_key);
        let chain = self.read(chain, || invalid("client-certificate-data is not base64"))?;
        let key = self.read(key, || invalid("client-key-data is not base64"))?;
        match (chain, key) {
            (Some(chain), Some(key)) => Ok(Credentials::ClientCertificate(ClientCertificate { chain, key })),
            (None, None) => self.token(user).map_err(invalid),
            _ => Err(invalid("it has a client certificate or a client key, and needs both")),
        }
    }

    /// Like client-go, a token in a file goes before one in the kubeconfig, because the file may be renewed.
    fn token(&self, user: &User) -> Result<Credentials, &'static str> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (given(&user.token_file), given(&user.token)) {
            (Some(path), _) => Ok(Credentials::TokenFile(self.folder.join(path))),
            (None, Some(token)) => {
                BearerToken::new(&token).map(Credentials::Token).ok_or("its token has a character no token may have")
            }
            (None, None) => Ok(Credentials::Anonymous),
        }
    }

    fn read(
        &self,
        source: Source<'_>,
        not_base64: impl FnOnce() -> KubeconfigError,
    ) -> Result<Option<Vec<u8>>, KubeconfigError> {
        match source {
            Source::Nothing => Ok(None),
            Source::Data(data) => {
                let data: String = data.split_ascii_whitespace().collect();
                STANDARD.decode(data).map(Some).map_err(|_| not_base64())
            }
            Source::File(path) => read_file(&self.folder.join(path)).map(Some),
        }
    }
}

/// Where bytes come from: `*-data` goes before a file.
enum Source<'a> {
    Nothing,
    Data(&'a str),
    File(&'a str),
}

impl<'a> Source<'a> {
    fn of(data: &'a Option<String>, file: &'a Option<String>) -> Self {
        match (data.as_deref(), file.as_deref()) {
            (Some(data), _) if !data.is_empty() => Self::Data(data),
            (_, Some(file)) if !file.is_empty() => Self::File(file),
            _ => Self::Nothing,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    contexts: Option<Vec<NamedContext>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<IgnoredAny>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    r#as: Option<IgnoredAny>,
}

impl User {
    /// What this user needs that only kubectl can do, with what to do instead.
    fn unsupported(&self) -> Option<&'static str> {
        if self.exec.is_some() {
            return Some(
                "it gets its credentials from a program (exec), which is not supported; use a service account's token (kubectl create token) or a client certificate",
            );
        }
        if self.auth_provider.is_some() {
            return Some(
                "it uses an auth-provider, which is not supported; use a service account's token (kubectl create token) or a client certificate",
            );
        }
        if self.username.is_some() {
            return Some("it has a username and password, which no API server accepts since Kubernetes 1.19");
        }
        self.r#as.map(|_| "it impersonates another user (as), which is not supported; use that user's own credentials")
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

trait Named {
    type Entry;
    fn entry(&self) -> (&str, &Self::Entry);
}

impl Named for NamedCluster {
    type Entry = Cluster;
    fn entry(&self) -> (&str, &Cluster) {
        (&self.name, &self.cluster)
    }
}

impl Named for NamedUser {
    type Entry = User;
    fn entry(&self) -> (&str, &User) {
        (&self.name, &self.user)
    }
}

impl Named for NamedContext {
    type Entry = Context;
    fn entry(&self) -> (&str, &Context) {
        (&self.name, &self.context)
    }
}

fn find<'a, T: Named>(
    what: &'static str,
    entries: &'a Option<Vec<T>>,
    name: &str,
) -> Result<&'a T::Entry, KubeconfigError> {
    let mut found = entries.iter().flatten().map(T::entry).filter(|(entry, _)| *entry == name);
    match (found.next(), found.next()) {
        (Some((_, entry)), None) => Ok(entry),
        (None, _) => Err(KubeconfigError::Missing { what, name: name.to_owned() }),
        (Some(_), Some(_)) => Err(KubeconfigError::Ambiguous { what, name: name.to_owned() }),
    }
}

/// Reads the first document, as kubectl does; unknown keys are left alone, and of a repeated key the last counts.
fn parse(text: &str) -> Result<Document, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        // The lines around an error may hold a key or a token.
        with_snippet: false,
    };
    let documents: Vec<Document> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

fn server(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let has_scheme = matches!(uri.scheme_str(), Some("https" | "http"));
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@')) && uri.query().is_none();
    (has_scheme && is_plain).then_some(uri)
}

#[cfg(test)]
mod tests;
