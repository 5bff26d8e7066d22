//! Who asks at an admin address, and what that caller may see.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::header::{HOST, HeaderMap};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who may open the admin socket: the stub's owner.
    Owner,
    /// Somebody on this host.
    ThisHost,
    /// Somebody elsewhere.
    Elsewhere,
}

impl Caller {
    /// Who asks over TCP from this address.
    pub fn at(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::ThisHost } else { Self::Elsewhere }
    }

    /// Whether the request comes from somebody who means this address. A page of evil.example may have its own name resolve
    /// to 127.0.0.1 (DNS rebinding); then the browser of somebody on this host asks here, and lets the page read the
    /// answer. But it has to say whom it asks.
    pub fn means_us(self, headers: &HeaderMap, names: &[String]) -> bool {
        if self == Self::Owner {
            // No browser opens a Unix socket.
            return true;
        }
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Some(name) = host.to_str().ok().and_then(without_port) else { return false };
        is_address(name)
            || names.iter().map(String::as_str).chain(["localhost"]).any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// The name or address in a `Host`.
fn without_port(host: &str) -> Option<&str> {
    match host.strip_prefix('[') {
        Some(_) => Some(&host[..=host.find(']')?]),
        None => host.split(':').next(),
    }
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(host: &str) -> bool {
        let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        Caller::ThisHost.means_us(&headers, &["stub.internal".to_owned()])
    }

    #[test]
    fn a_name_that_a_web_page_could_have_is_refused() {
        for host in
            ["localhost", "LOCALHOST:9443", "127.0.0.1:9443", "10.0.0.1", "[::1]:9443", "[::1]", "stub.internal"]
        {
            assert!(accepted(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:9443", "127.0.0.1.evil.example", "", "[", "[evil]", "[::1"]
        {
            assert!(!accepted(host), "{host}");
        }
    }

    #[test]
    fn a_request_over_tcp_says_exactly_once_whom_it_asks() {
        assert!(!Caller::ThisHost.means_us(&HeaderMap::new(), &[]));
        let twice = HeaderMap::from_iter([(HOST, "localhost".parse().unwrap())]);
        let mut twice = twice;
        twice.append(HOST, "evil.example".parse().unwrap());
        assert!(!Caller::ThisHost.means_us(&twice, &[]));
        assert!(Caller::Owner.means_us(&HeaderMap::new(), &[]));
    }

    #[test]
    fn a_caller_on_this_host_is_known_by_its_address() {
        let at = |address: &str| Caller::at(address.parse().unwrap());
        assert_eq!(at("127.0.0.1:1"), Caller::ThisHost);
        assert_eq!(at("[::ffff:127.0.0.1]:1"), Caller::ThisHost);
        assert_eq!(at("[::1]:1"), Caller::ThisHost);
        assert_eq!(at("10.0.0.1:1"), Caller::Elsewhere);
    }
}
