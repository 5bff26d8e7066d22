//! Request targets that may be written to a log.

use super::percent;

/// The path and query without the values of parameters that carry credentials: those whose name holds `token`, and
/// `authorization`. Everything else stays byte for byte.
///
/// Kubernetes itself takes no credential from the query, but what is behind its `proxy` paths may.
pub fn without_secrets(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let mut safe = String::with_capacity(target.len());
    safe.push_str(path);
    let mut separator = "?";
    for pair in query.split('&') {
        safe.push_str(separator);
        match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => safe.extend([name, "=redacted"]),
            _ => safe.push_str(pair),
        }
        separator = "&";
    }
    safe
}

fn is_secret(name: &str) -> bool {
    // A name that cannot be decoded may be a secret's to a server that reads it otherwise.
    let Some(decoded) = percent::decode(name) else { return true };
    let name = String::from_utf8_lossy(&decoded).to_lowercase();
    name.contains("token") || name == "authorization"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_do_not_stay() {
        for (target, logged) in [
            ("/api/v1/pods", "/api/v1/pods"),
            ("/api/v1/pods?limit=5&continue=abc", "/api/v1/pods?limit=5&continue=abc"),
            ("/x?token=s", "/x?token=redacted"),
            ("/x?a=1&access_token=s&b", "/x?a=1&access_token=redacted&b"),
            ("/x?Access%5FToke%6E=s", "/x?Access%5FToke%6E=redacted"),
            ("/x?Authorization=Bearer+s", "/x?Authorization=redacted"),
            ("/x?tok%en=s", "/x?tok%en=redacted"),
            ("/x?", "/x?"),
        ] {
            assert_eq!(without_secrets(target), logged);
        }
    }
}
