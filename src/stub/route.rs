//! Which cluster a request is for: one parse, for routing and for policy alike.

use http::request::Parts;
use http::uri::PathAndQuery;

use crate::kube::{RequestPath, Status};
use crate::wire::ClusterId;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The cluster.
    pub cluster: ClusterId,
    /// The path at the cluster's API server, and the query, byte for byte.
    pub target: PathAndQuery,
    /// The same, read as the API server reads it.
    pub path: RequestPath,
    /// What stood before the path: `/clusters/<id>`, or nothing when the cluster has the host name.
    pub prefix: String,
}

const CLUSTERS_PREFIX: &str = "/clusters/";

impl Route {
    /// Reads the route of a request that came over a connection opened for `server_name` (SNI).
    ///
    /// # Errors
    ///
    /// 421 when the request's host is not the connection's (a request could otherwise be judged by one and served by the
    /// other, CVE-2026-40910 in frp), 404 when no cluster is named, 400 when the path could be read in two ways.
    pub fn of(request: &Parts, server_name: Option<&str>, base_domain: Option<&str>) -> Result<Self, Status> {
        let host = host_of(request)?;
        if let Some(server_name) = server_name
            && !host.eq_ignore_ascii_case(server_name)
        {
            return Err(Status::misdirected(host, server_name));
        }
        let raw = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let (id, prefix, rest) = match base_domain.and_then(|domain| cluster_label(host, domain)) {
            Some(label) => (label.to_ascii_lowercase(), String::new(), raw),
            None => {
                let (id, rest) = split_prefix(raw).ok_or_else(|| no_cluster(raw))?;
                (id.to_owned(), format!("{CLUSTERS_PREFIX}{id}"), rest)
            }
        };
        let cluster = id.parse().map_err(|_| no_cluster(raw))?;
        Self::new(cluster, rest, prefix)
    }

    /// The route to `cluster` of a request whose path is the one there.
    ///
    /// # Errors
    ///
    /// 400 when the path could be read in two ways.
    pub fn to(cluster: ClusterId, request: &Parts) -> Result<Self, Status> {
        Self::new(cluster, request.uri.path_and_query().map_or("/", PathAndQuery::as_str), String::new())
    }

    fn new(cluster: ClusterId, rest: &str, prefix: String) -> Result<Self, Status> {
        let target = target(rest)?;
        let path = RequestPath::parse(target.as_str()).map_err(|error| Status::bad_request(error.to_string()))?;
        Ok(Self { cluster, target, path, prefix })
    }
}

/// The host the request is for, without its port. HTTP/2 has it in `:authority`, HTTP/1.1 in `Host`; two that differ are
/// refused (RFC 9112, section 3.2.2 would let the first win, which is one more way to be read in two).
fn host_of(request: &Parts) -> Result<&str, Status> {
    let bad = || Status::bad_request("the request needs exactly one valid Host");
    let mut hosts = request.headers.get_all(http::header::HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| bad())?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(bad()),
    };
    let authority = match (request.uri.authority().map(http::uri::Authority::as_str), header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => return Err(bad()),
        (Some(authority), _) => authority,
        (None, Some(header)) => header,
        (None, None) => return Err(bad()),
    };
    if authority.contains('@') {
        return Err(bad());
    }
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host).ok_or_else(bad),
        None => Ok(authority.split_once(':').map_or(authority, |(host, _)| host)),
    }
}

/// The first label of a host name directly under `domain`.
fn cluster_label<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let label_length = host.len().checked_sub(domain.len() + 1)?;
    let (label, rest) = host.split_at_checked(label_length)?;
    let under = rest.strip_prefix('.')?.eq_ignore_ascii_case(domain);
    (under && !label.is_empty() && !label.contains('.')).then_some(label)
}

/// Splits `/clusters/<id>/rest` into id and rest; the rest keeps its slash.
fn split_prefix(raw: &str) -> Option<(&str, &str)> {
    let rest = raw.strip_prefix(CLUSTERS_PREFIX)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

fn target(rest: &str) -> Result<PathAndQuery, Status> {
    let whole = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    PathAndQuery::try_from(whole).map_err(|error| Status::bad_request(format!("the path is not valid: {error}")))
}

fn no_cluster(raw: &str) -> Status {
    let path = raw.split('?').next().unwrap_or(raw);
    Status::not_found(format!("no cluster in the path {path:?}: the server address has to end in /clusters/<id>"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, StatusCode};
    use proptest::prelude::*;

    fn route(uri: &str, host: Option<&str>, server_name: Option<&str>) -> Result<(String, String, String), StatusCode> {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Route::of(&parts, server_name, Some("k8s.example"))
            .map(|route| (route.cluster.to_string(), route.target.to_string(), route.prefix))
            .map_err(|status| status.code())
    }

    fn found(cluster: &str, target: &str, prefix: &str) -> Result<(String, String, String), StatusCode> {
        Ok((cluster.to_owned(), target.to_owned(), prefix.to_owned()))
    }

    #[test]
    fn a_cluster_is_named_by_the_path_or_by_the_host() {
        let by_path = found("eu", "/api/v1/pods?limit=5", "/clusters/eu");
        assert_eq!(route("/clusters/eu/api/v1/pods?limit=5", Some("stub:8443"), Some("stub")), by_path);
        assert_eq!(route("https://stub:8443/clusters/eu/api/v1/pods?limit=5", None, None), by_path);
        let by_host = found("eu", "/api/v1/pods?limit=5", "");
        assert_eq!(route("/api/v1/pods?limit=5", Some("eu.k8s.example"), None), by_host);
        assert_eq!(route("/api/v1/pods?limit=5", Some("EU.K8s.example:8443"), Some("eu.k8s.example")), by_host);
        assert_eq!(route("/clusters/eu", Some("stub"), None), found("eu", "/", "/clusters/eu"));
        assert_eq!(route("/clusters/eu?x=1", Some("stub"), None), found("eu", "/?x=1", "/clusters/eu"));
        assert_eq!(route("/clusters/eu/", Some("[::1]:8443"), None), found("eu", "/", "/clusters/eu"));
    }

    #[test]
    fn a_host_that_is_not_the_connections_is_misdirected() {
        let misdirected = Err(StatusCode::MISDIRECTED_REQUEST);
        assert_eq!(route("/api", Some("us.k8s.example"), Some("eu.k8s.example")), misdirected);
        assert_eq!(route("/clusters/eu/api", Some("other"), Some("stub")), misdirected);
    }

    #[test]
    fn a_request_that_names_no_cluster_is_not_found() {
        for uri in ["/api", "/clusters", "/clusters/", "/clusters//api", "/clusters/EU/api", "/clusters/%65u/api"] {
            assert_eq!(route(uri, Some("stub"), None), Err(StatusCode::NOT_FOUND), "{uri}");
        }
        assert_eq!(route("/api", Some("a.b.k8s.example"), None), Err(StatusCode::NOT_FOUND));
        assert_eq!(route("/api", Some(".k8s.example"), None), Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let bad = Err(StatusCode::BAD_REQUEST);
        assert_eq!(route("/clusters/eu/api/%2e%2e/x", Some("stub"), None), bad);
        assert_eq!(route("/clusters/eu//api", Some("stub"), None), bad);
        assert_eq!(route("/clusters/eu/a%2Fb", Some("stub"), None), bad);
        assert_eq!(route("http://one/clusters/eu/api", Some("two"), None), bad);
        assert_eq!(route("/clusters/eu/api", Some("user@stub"), None), bad);
        assert_eq!(route("/clusters/eu/api", None, None), bad);
    }

    proptest! {
        #[test]
        fn a_target_is_what_follows_the_prefix_whatever_else_a_request_says(
            path in "(/clusters)?/[a-z]{0,3}[a-zA-Z0-9/%.?&=+~-]{0,30}",
            host in "([a-z]{0,3}[.]k8s[.]example|[ -~]{0,20})(:[0-9]{0,5})?",
        ) {
            if let Ok((_, target, prefix)) = route(&path, Some(&host), None) {
                let rest = path.strip_prefix(&prefix).unwrap();
                prop_assert!(target == rest || target == format!("/{rest}"), "{target}");
            }
        }
    }
}
