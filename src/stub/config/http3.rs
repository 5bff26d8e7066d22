//! HTTP/3 for clients.

use http::HeaderValue;
use serde::Deserialize;

/// The `[http3]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http3Config {
    /// Whether clients may use HTTP/3 on the UDP port. Upgrades (exec, attach, port-forward) need HTTP/1.1 all the same.
    /// Default true.
    pub enabled: bool,
    /// Whether answers over HTTP/1.1 and HTTP/2 say so (`Alt-Svc`), naming the port of `public_address`. Default true.
    pub advertise: bool,
}

impl Default for Http3Config {
    fn default() -> Self {
        Self { enabled: true, advertise: true }
    }
}

/// For how many seconds a client may remember that there is HTTP/3.
const MAX_AGE: u32 = 3600;

impl Http3Config {
    /// The `Alt-Svc` of answers by a stub that is reached at `public_address`: the same host, another protocol (RFC 7838,
    /// section 3). `None` where nothing is to be said.
    pub fn alternative(&self, public_address: &str) -> Option<HeaderValue> {
        let port: u16 = public_address.rsplit_once(':')?.1.parse().ok()?;
        let advertised = self.enabled && self.advertise;
        advertised.then(|| HeaderValue::try_from(format!("h3=\":{port}\"; ma={MAX_AGE}")).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_http3_names_the_public_port() {
        let config = Http3Config::default();
        assert_eq!(config.alternative("stub.example:8443").unwrap(), "h3=\":8443\"; ma=3600");
        assert_eq!(config.alternative("[::1]:443").unwrap(), "h3=\":443\"; ma=3600");
        assert_eq!(config.alternative("stub.example"), None);
        assert_eq!(Http3Config { advertise: false, ..config.clone() }.alternative("stub.example:8443"), None);
        assert_eq!(Http3Config { enabled: false, ..config }.alternative("stub.example:8443"), None);
    }
}
