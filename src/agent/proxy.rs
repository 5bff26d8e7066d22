//! HTTP proxies on the way to the stub: `HTTPS_PROXY`, `NO_PROXY` and CONNECT (RFC 9110, section 9.3.6).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kube::percent_decode;

/// An HTTP proxy that makes connections for others.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

/// Which connections go through a proxy. Default: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    proxy: Option<Proxy>,
    exceptions: String,
}

/// Why a connection could not be made through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The text is no proxy's address.
    #[error("HTTPS_PROXY is not the address of an HTTP proxy ({0}): write http://[USER:PASSWORD@]HOST[:PORT]")]
    Invalid(&'static str),
    /// The proxy does not answer.
    #[error("cannot reach the proxy {proxy}: {source}")]
    Unreachable {
        /// The proxy.
        proxy: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The proxy wants to know who asks.
    #[error(
        "the proxy {0} does not accept the credentials: write them into HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT"
    )]
    Unauthorized(String),
    /// The proxy says no.
    #[error("the proxy {proxy} does not connect to {target}: it answers {status:?}")]
    Refused {
        /// The proxy.
        proxy: String,
        /// The stub.
        target: String,
        /// The proxy's words.
        status: String,
    },
    /// What answers is no HTTP proxy.
    #[error("the proxy {0} does not answer as an HTTP proxy does")]
    NoProxy(String),
}

/// The longest head of an answer that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;

impl ProxySettings {
    /// Those of the environment. `HTTPS_PROXY` goes before `https_proxy`, as in Go.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Invalid`].
    pub fn from_environment() -> Result<Self, ProxyError> {
        let variable = |names: [&str; 2]| names.into_iter().find_map(|name| std::env::var(name).ok().filter(is_text));
        let proxy = variable(["HTTPS_PROXY", "https_proxy"]).map(|text| text.parse()).transpose()?;
        Ok(Self { proxy, exceptions: variable(["NO_PROXY", "no_proxy"]).unwrap_or_default() })
    }

    /// The proxy for connections to `host` and `port`.
    pub fn proxy_for(&self, host: &str, port: u16) -> Option<&Proxy> {
        self.proxy.as_ref().filter(|_| !is_exception(&self.exceptions, host, port))
    }
}

impl Proxy {
    /// A connection to `host` and `port`, made by the proxy. Bound it with a deadline.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, ProxyError> {
        let unreachable = |source| ProxyError::Unreachable { proxy: self.to_string(), source };
        let mut socket = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        socket.write_all(self.request(&target).as_bytes()).await.map_err(unreachable)?;
        let status = self.answer(&mut socket).await?;
        match status.get(..3) {
            Some(code) if code.starts_with('2') => Ok(socket),
            Some("407") => Err(ProxyError::Unauthorized(self.to_string())),
            _ => Err(ProxyError::Refused { proxy: self.to_string(), target, status }),
        }
    }

    fn request(&self, target: &str) -> String {
        let authorization = self.authorization.as_ref();
        let authorization = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        let agent = concat!("qtunnel/", env!("CARGO_PKG_VERSION"));
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {agent}\r\n{authorization}\r\n")
    }

    /// The status of the proxy's answer: the code, and its words. Nothing behind the head is taken, because it would be the
    /// stub's already.
    async fn answer(&self, socket: &mut TcpStream) -> Result<String, ProxyError> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = socket.read_u8().await.map_err(|_| ProxyError::NoProxy(self.to_string()))?;
            head.push(byte);
            if head.len() > MAX_HEAD {
                return Err(ProxyError::NoProxy(self.to_string()));
            }
        }
        status_of(&head).ok_or_else(|| ProxyError::NoProxy(self.to_string()))
    }
}

/// The status in the head of an answer; `None` if it is no answer of HTTP/1.
fn status_of(head: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let (_minor_version, status) = head.lines().next()?.strip_prefix("HTTP/1.")?.split_once(' ')?;
    Some(status.to_owned())
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|_| ProxyError::Invalid("it is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(ProxyError::Invalid("its scheme is not http"));
        }
        let authority = uri.authority().ok_or(ProxyError::Invalid("it has no host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(ProxyError::Invalid("it has no host"));
        }
        let authorization = match authority.as_str().rsplit_once('@') {
            Some((credentials, _)) => Some(basic(credentials)?),
            None => None,
        };
        Ok(Self { host: host.to_owned(), port: authority.port_u16().unwrap_or(80), authorization })
    }
}

/// `user:password` of a URL as RFC 7617 wants it.
fn basic(credentials: &str) -> Result<String, ProxyError> {
    let decoded = percent_decode(credentials).ok_or(ProxyError::Invalid("its credentials have a broken escape"))?;
    let colon: &[u8] = if credentials.contains(':') { b"" } else { b":" };
    Ok(format!("Basic {}", STANDARD.encode([decoded.as_slice(), colon].concat())))
}

/// Without the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.to_string()).finish()
    }
}

#[expect(clippy::ptr_arg, reason = "it is the filter of an Option<String>")]
fn is_text(text: &String) -> bool {
    !text.trim().is_empty()
}

/// Whether `NO_PROXY` has the host: names with everything below them (`.name`: only what is below), addresses, networks,
/// or `*`; each perhaps with a port (compare Go's `golang.org/x/net/http/httpproxy`). Unlike there, loopback is no
/// exception by itself.
fn is_exception(exceptions: &str, host: &str, port: u16) -> bool {
    exceptions.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let address: Option<IpAddr> = host.parse().ok();
        if entry == "*" {
            return true;
        }
        if let Some((network, length)) = entry.split_once('/') {
            return address.is_some_and(|address| is_in_network(address, network, length));
        }
        let (name, entry_port) = match entry.rsplit_once(':') {
            Some((name, digits)) if !name.contains(':') || name.ends_with(']') => (name, digits.parse().ok()),
            _ => (entry, None),
        };
        if entry_port.is_some_and(|entry_port: u16| entry_port != port) {
            return false;
        }
        let name = name.trim_start_matches('[').trim_end_matches(']').trim_start_matches('*').to_ascii_lowercase();
        match (address, name.parse::<IpAddr>()) {
            (Some(address), Ok(exception)) => address == exception,
            (Some(_), Err(_)) | (None, Ok(_)) => false,
            (None, Err(_)) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                let below = if name.starts_with('.') { name.clone() } else { format!(".{name}") };
                host == name || host.ends_with(&below)
            }
        }
    })
}

fn is_in_network(address: IpAddr, network: &str, length: &str) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if length <= 32 => {
            let beyond = 32 - length;
            u64::from(address.to_bits()) >> beyond == u64::from(network.to_bits()) >> beyond
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if length <= 128 => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= length
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_answers_of_http_1_have_a_status() {
        for (head, status) in [
            ("HTTP/1.1 200 Connection established\r\nVia: a\r\n\r\n", Some("200 Connection established")),
            ("HTTP/1.0 407 Who are you?\r\n\r\n", Some("407 Who are you?")),
            ("HTTP/1.1\r\n\r\n", None),
            ("HTTP/2 200\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
            ("\r\n\r\n", None),
        ] {
            assert_eq!(status_of(head.as_bytes()).as_deref(), status, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn the_status_is_one_line_whatever_a_proxy_sends(rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let head = [b"HTTP/1.".as_slice(), &rest, b"\r\n\r\n"].concat();
            prop_assert!(status_of(&head).is_none_or(|status| !status.contains('\n')));
        }
    }

    #[test]
    fn addresses_of_proxies_are_read() {
        for (text, shown) in [
            ("http://proxy.example.com:3128", "http://proxy.example.com:3128"),
            ("http://proxy.example.com", "http://proxy.example.com:80"),
            ("proxy:3128", "http://proxy:3128"),
            ("http://[2001:db8::1]:3128/", "http://[2001:db8::1]:3128"),
        ] {
            assert_eq!(text.parse::<Proxy>().unwrap().to_string(), shown);
        }
        for text in ["https://proxy:3128", "socks5://proxy:1080", "http://", "http://a b/", "http://a%zz@proxy"] {
            assert!(text.parse::<Proxy>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn credentials_go_into_the_request_and_nowhere_else() {
        let proxy: Proxy = "http://alice:p%40ss%3A@proxy:3128".parse().unwrap();
        let request = proxy.request("stub:8443");
        assert!(request.starts_with("CONNECT stub:8443 HTTP/1.1\r\nHost: stub:8443\r\n"));
        // alice:p@ss:
        assert!(request.contains("Proxy-Authorization: Basic YWxpY2U6cEBzczo=\r\n"), "{request}");
        assert!(!format!("{proxy} {proxy:?}").contains("alice"));
    }

    #[test]
    fn exceptions_are_names_addresses_and_networks() {
        let exceptions = "10.0.0.0/8, example.com,.internal, 192.0.2.7:8443,[2001:db8::1],fd00::/8";
        for (host, port) in [
            ("10.1.2.3", 1),
            ("example.com", 1),
            ("STUB.example.com", 1),
            ("a.internal", 1),
            ("192.0.2.7", 8443),
            ("2001:db8::1", 1),
            ("fd12::1", 1),
        ] {
            assert!(is_exception(exceptions, host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("11.1.2.3", 1),
            ("badexample.com", 1),
            ("internal", 1),
            ("192.0.2.7", 443),
            ("fe80::1", 1),
            ("localhost", 1),
        ] {
            assert!(!is_exception(exceptions, host, port), "{host}:{port}");
        }
        assert!(is_exception("*", "anything", 1));
        assert!(!is_exception("", "anything", 1));
        assert!(is_exception("0.0.0.0/0", "1.2.3.4", 1));
    }
}
