//! Redirects of the API server, seen from the client.

use http::uri::Authority;

use super::percent;

/// Rewrites a `Location` so that a client that follows it comes back through the tunnel.
///
/// `own_prefix` is the path under which the client sees the cluster (`/clusters/{id}`), or empty where the cluster has a host name
/// of its own. `upstream` is the API server's host, and port unless it is the default one.
///
/// # Errors
/// A location on another host: a client would send its credentials there (CVE-2022-3172, CVE-2018-1002102). So is one that climbs out
/// of its folder with `..`, which could lead out of the cluster's own prefix. It becomes a 502.
pub fn rewrite_location(location: &str, own_prefix: &str, upstream: &Authority) -> Result<String, ForeignLocation> {
    let foreign = || ForeignLocation { location: location.chars().take(MAX_QUOTED).collect() };
    // Browsers read a backslash as a slash, and skip control characters.
    if location.contains(|character: char| character == '\\' || character.is_control()) || climbs(location) {
        return Err(foreign());
    }
    let (authority, path) = split_authority(location);
    match authority {
        Some((scheme, authority)) if !is_upstream(scheme, authority, upstream) => Err(foreign()),
        // Without its own authority such a path would be a network-path reference, which leads to another host.
        Some(_) if path.starts_with("//") => Err(foreign()),
        Some(_) if path.starts_with(['?', '#']) || path.is_empty() => Ok(format!("{own_prefix}/{path}")),
        None if !path.starts_with('/') && has_scheme(path) => Err(foreign()),
        // Relative to the request's own path, which already has the prefix.
        None if !path.starts_with('/') => Ok(path.to_owned()),
        Some(_) | None => Ok(format!("{own_prefix}{path}")),
    }
}

/// A redirect that would lead the client away from the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the API server redirects to {location:?}, which is not a path of its own; the redirect was not passed on")]
pub struct ForeignLocation {
    location: String,
}

/// How much of a refused location the error quotes, in characters.
const MAX_QUOTED: usize = 200;

/// Splits a URL or a network-path reference (`//host/path`, RFC 3986, section 4.2) into scheme with authority, and the rest.
fn split_authority(location: &str) -> (Option<(&str, &str)>, &str) {
    let (scheme, after) = match location.split_once("//") {
        Some((scheme @ ("" | "http:" | "https:"), after)) => (scheme, after),
        Some((scheme, after)) if scheme.eq_ignore_ascii_case("https:") => ("https:", after),
        Some((scheme, after)) if scheme.eq_ignore_ascii_case("http:") => ("http:", after),
        _ => return (None, location),
    };
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, path) = after.split_at(end);
    (Some((scheme, authority)), path)
}

/// Whether text that does not begin with a slash begins with a scheme (RFC 3986, section 3.1), such as `javascript:`.
fn has_scheme(location: &str) -> bool {
    location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':'))
}

fn is_upstream(scheme: &str, authority: &str, upstream: &Authority) -> bool {
    let default_port = if scheme == "http:" { 80 } else { 443 };
    // User information in the authority is never the API server's own.
    authority.parse::<Authority>().is_ok_and(|authority| {
        !authority.as_str().contains('@')
            && authority.host().eq_ignore_ascii_case(upstream.host())
            && authority.port_u16().unwrap_or(default_port) == upstream.port_u16().unwrap_or(443)
    })
}

fn climbs(location: &str) -> bool {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    path.split('/').any(|segment| percent::decode(segment).is_none_or(|decoded| decoded == b".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewrite(location: &str, prefix: &str) -> Option<String> {
        rewrite_location(location, prefix, &Authority::from_static("10.0.0.1:6443")).ok()
    }

    #[test]
    fn a_redirect_within_the_api_server_stays_within_the_tunnel() {
        for (location, prefixed, plain) in [
            ("/openapi/v3/api/v1?hash=AB", "/clusters/c1/openapi/v3/api/v1?hash=AB", "/openapi/v3/api/v1?hash=AB"),
            ("https://10.0.0.1:6443/x?y=//z#f", "/clusters/c1/x?y=//z#f", "/x?y=//z#f"),
            ("HTTPS://10.0.0.1:6443", "/clusters/c1/", "/"),
            ("https://10.0.0.1:6443?x", "/clusters/c1/?x", "/?x"),
            ("//10.0.0.1:6443/x", "/clusters/c1/x", "/x"),
            ("./", "./", "./"),
            ("next?page=2", "next?page=2", "next?page=2"),
            ("?page=a:b//c", "?page=a:b//c", "?page=a:b//c"),
            (
                "/x?next=https://example.com/..",
                "/clusters/c1/x?next=https://example.com/..",
                "/x?next=https://example.com/..",
            ),
        ] {
            assert_eq!(rewrite(location, "/clusters/c1").as_deref(), Some(prefixed), "{location:?}");
            assert_eq!(rewrite(location, "").as_deref(), Some(plain), "{location:?}");
        }
    }

    #[test]
    fn a_redirect_to_another_host_is_refused() {
        for location in [
            "https://evil.example/",
            "https://10.0.0.1:443/",
            "https://10.0.0.1/",
            "http://10.0.0.1/",
            "https://10.0.0.1:6443@evil.example/",
            "https://user@10.0.0.1:6443/",
            "//evil.example/x",
            "https://10.0.0.1:6443//evil.example/x",
            "//10.0.0.1:6443//evil.example/x",
            "/\\evil.example/x",
            "\\\\evil.example/x",
            "https:evil.example",
            "javascript:alert(1)",
            "ftp://10.0.0.1:6443/",
            "https:///x",
            "/\t/evil.example",
            "../../other/api",
            "/../other",
            "/%2e%2E/other",
            "/%zz",
        ] {
            assert_eq!(rewrite(location, "/clusters/c1"), None, "{location:?}");
            assert_eq!(rewrite(location, ""), None, "{location:?}");
        }
    }

    #[test]
    fn the_default_port_may_be_left_out() {
        let upstream = Authority::from_static("API.example");
        assert_eq!(rewrite_location("https://api.example:443/x", "", &upstream).as_deref(), Ok("/x"));
        assert_eq!(rewrite_location("https://api.example/x", "", &upstream).as_deref(), Ok("/x"));
        assert!(rewrite_location("http://api.example/x", "", &upstream).is_err());
    }

    proptest! {
        #[test]
        fn no_location_panics_and_none_leaves_the_prefix(location in "[a-z:/.?#@%2eE\\\\ ]{0,24}") {
            if let Some(rewritten) = rewrite(&location, "/clusters/c1") {
                prop_assert!(!rewritten.starts_with("//"));
                prop_assert!(!rewritten.starts_with('/') || rewritten.starts_with("/clusters/c1/"), "{rewritten}");
            }
        }
    }
}
