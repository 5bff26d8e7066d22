//! From a request line to what is asked for, by the rules of `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use http::Method;

use super::resources::Resource;

/// What a request is about.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// An object, a collection or a subresource.
    Resource(ResourceTarget),
    /// Anything else: discovery, health, OpenAPI, this sample's own endpoints.
    Path(String),
}

/// A path below `/api/v1` or `/apis/GROUP/VERSION` that names a resource.
#[derive(Debug, Clone)]
pub(super) struct ResourceTarget {
    /// API group, `""` for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Plural name.
    pub plural: String,
    /// Namespace, when the path has one.
    pub namespace: Option<String>,
    /// Name of the object, when the path has one.
    pub name: Option<String>,
    /// Subresource, when the path has one.
    pub subresource: Option<String>,
}

impl Target {
    /// Parses a raw (still percent-encoded) path.
    pub fn parse(raw_path: &str) -> Self {
        let segments: Vec<String> =
            raw_path.split('/').filter(|s| !s.is_empty()).map(|s| percent_decode(s, false)).collect();
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let target = match words.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ResourceTarget::parse("", version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => ResourceTarget::parse(group, version, rest),
            _ => None,
        };
        match target {
            Some(target) => Self::Resource(target),
            None => Self::Path(raw_path.to_owned()),
        }
    }
}

impl ResourceTarget {
    fn parse(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let (namespace, rest) = match rest {
            ["namespaces", namespace, inner @ ..] if !inner.is_empty() && !matches!(inner, ["status" | "finalize"]) => {
                (Some((*namespace).to_owned()), inner)
            }
            _ => (None, rest),
        };
        let mut parts = rest.iter().map(|s| (*s).to_owned());
        let target = Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: parts.next()?,
            namespace,
            name: parts.next(),
            subresource: parts.next(),
        };
        parts.next().is_none().then_some(target)
    }

    /// The resource definition, unless this API does not serve it.
    pub fn definition(&self) -> Option<&'static Resource> {
        Resource::find(&self.group, &self.version, &self.plural)
    }

    /// `pods` or `pods/log`.
    pub fn with_subresource(&self) -> String {
        match &self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.plural),
            None => self.plural.clone(),
        }
    }

    /// The namespace as the authorizer sees it: a Namespace object lies in the namespace it is.
    pub fn authorized_namespace(&self) -> Option<&str> {
        match (&self.namespace, self.plural.as_str(), self.group.as_str()) {
            (Some(namespace), _, _) => Some(namespace),
            (None, "namespaces", "") => self.name.as_deref(),
            _ => None,
        }
    }

    /// The verb the authorizer is asked about.
    pub fn verb(&self, method: &Method, query: &Query) -> &'static str {
        match (method.as_str(), self.name.is_some()) {
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            (_, true) => "get",
            (_, false) if query.flag("watch") => "watch",
            (_, false) => "list",
        }
    }
}

/// The parameters of a query string, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=1&b=2`.
    pub fn parse(raw: &str) -> Self {
        let pairs = raw.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of that key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Every value of that key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A flag as the API server reads it: present and neither `0` nor `false`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// A number, when there is one.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(|v| v.parse().ok())
    }
}

/// Undoes percent-encoding; malformed sequences stay as they are. `plus_is_space` for query strings.
pub(super) fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b'+', _) if plus_is_space => out.push(b' '),
            (b'%', [high, low, beyond @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = beyond;
            }
            _ => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourceTarget {
        match Target::parse(path) {
            Target::Resource(target) => target,
            Target::Path(path) => panic!("{path} is no resource"),
        }
    }

    #[test]
    fn a_subresource_of_a_pod_is_taken_apart() {
        let target = resource("/api/v1/namespaces/demo/pods/web/log");
        assert_eq!(target.namespace.as_deref(), Some("demo"));
        assert_eq!((target.with_subresource().as_str(), target.name.as_deref()), ("pods/log", Some("web")));
    }

    #[test]
    fn a_namespace_lies_in_itself() {
        let target = resource("/api/v1/namespaces/demo");
        assert_eq!((target.plural.as_str(), target.authorized_namespace()), ("namespaces", Some("demo")));
        assert_eq!(resource("/api/v1/namespaces/demo/finalize").subresource.as_deref(), Some("finalize"));
    }

    #[test]
    fn a_watch_is_a_list_with_the_flag() {
        let target = resource("/apis/apps/v1/deployments");
        assert_eq!(target.verb(&Method::GET, &Query::parse("watch=true")), "watch");
        assert_eq!(target.verb(&Method::GET, &Query::parse("watch=0")), "list");
        assert_eq!(target.verb(&Method::DELETE, &Query::default()), "deletecollection");
    }

    #[test]
    fn malformed_percent_signs_stay() {
        assert_eq!(percent_decode("a%2Fb%zz%4", false), "a/b%zz%4");
        assert_eq!(percent_decode("a+b", true), "a b");
    }
}
