//! Every parser of bytes that come from the network, as a function that must not panic whatever it is given.
//!
//! `tests/fuzzing.rs` runs all of them for a short time; `fuzz/run` runs one for as long as wanted (see `fuzz/README.md`).

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Version};
use qtunnel::kube::{
    RequestInfo, RequestPath, StaticTokens, headers, impersonation, requested_upgrade, rewrite_location,
    take_bearer_token, without_secrets,
};
use qtunnel::pki::{
    AgentIdentity, CertificateAuthority, HostName, JoinToken, Validity, not_after, serial_number, user_identity,
};
use qtunnel::stub::authenticate::ClientCertificate;
use qtunnel::trace::TraceContext;
use qtunnel::wire::{
    AgentName, ClusterId, DialAddress, Frame, FrameReader, Identity, RecordReader, RequestHead, UpgradeProtocol,
    WireError, read_varint,
};
use rustls::pki_types::CertificateDer;

/// A parser.
pub struct Target {
    /// Its name for `fuzz/run`.
    pub name: &'static str,
    /// Gives it bytes.
    pub run: fn(&[u8]),
    seeds: Seeds,
}

/// Bytes that a parser understands, to begin with.
enum Seeds {
    These(&'static [&'static [u8]]),
    /// Those of files in `proto-spec/vectors`.
    Vectors(&'static [&'static str]),
}

impl Target {
    /// Bytes that the parser understands, to begin with.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        match self.seeds {
            Seeds::These(seeds) => seeds.iter().map(|seed| seed.to_vec()).collect(),
            Seeds::Vectors(files) => files.iter().flat_map(|file| file.split("\n\n")).map(vector).collect(),
        }
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frames",
        run: frames,
        seeds: Seeds::Vectors(&[
            include_str!("../proto-spec/vectors/control.txt"),
            include_str!("../proto-spec/vectors/dial.txt"),
            include_str!("../proto-spec/vectors/enrollment.txt"),
            include_str!("../proto-spec/vectors/extension.txt"),
            include_str!("../proto-spec/vectors/refused.txt"),
            include_str!("../proto-spec/vectors/request.txt"),
            include_str!("../proto-spec/vectors/response.txt"),
        ]),
    },
    Target {
        name: "records",
        run: records,
        seeds: Seeds::Vectors(&[include_str!("../proto-spec/vectors/tcp.txt")]),
    },
    Target {
        name: "varints",
        run: varints,
        seeds: Seeds::Vectors(&[include_str!("../proto-spec/vectors/varint.txt")]),
    },
    Target {
        name: "request_paths",
        run: request_paths,
        seeds: Seeds::These(&[
            b"/api/v1/namespaces/demo/pods/x?watch=true",
            b"/apis/apps/v1/deployments?fieldSelector=metadata.name%3Dx&access_token=s",
        ]),
    },
    Target {
        name: "header_fields",
        run: header_fields,
        seeds: Seeds::These(&[
            b"Connection: Upgrade, Impersonate-User\nUpgrade: SPDY/3.1\nContent-Length: 5",
            b"Impersonate-User: a\nImpersonate-Extra-x%2fy: b\nAuthorization: Bearer c",
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io",
            b"traceparent:00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ]),
    },
    Target {
        name: "locations",
        run: locations,
        seeds: Seeds::These(&[b"https://api:6443/openapi/v3?hash=1", b"//elsewhere/x"]),
    },
    Target {
        name: "access_reviews",
        run: access_reviews,
        seeds: Seeds::These(&[
            br#"{"kind":"SubjectAccessReview","status":{"allowed":true}}"#,
            br#"{"kind":"SubjectAccessReview","status":{"allowed":false,"denied":true,"reason":"no"}}"#,
        ]),
    },
    Target {
        name: "names",
        run: names,
        seeds: Seeds::These(&[
            b"prod-eu",
            b"qtunnel://prod/agent/a1",
            b"*.k8s.example.com",
            b"192.0.2.1",
            b"db.internal:5432",
            b"[fd00::1]:22",
        ]),
    },
    Target {
        name: "join_tokens",
        run: join_tokens,
        seeds: Seeds::These(&[
            b"qtj1.AAECAwQFBgcAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHwABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fcHJvZC1ldTWjIBE",
        ]),
    },
    Target { name: "static_tokens", run: static_tokens, seeds: Seeds::These(&[b"token,user,uid,\"a,b\"\n"]) },
    Target {
        name: "certificates",
        run: certificates,
        seeds: Seeds::These(&[include_bytes!("seeds/agent.der"), include_bytes!("seeds/user.der")]),
    },
    Target {
        name: "signing_requests",
        run: signing_requests,
        seeds: Seeds::These(&[
            include_bytes!("seeds/agent-request.der"),
            include_bytes!("seeds/named-agent-request.der"),
        ]),
    },
];

/// The bytes of a vector, whose format is in proto-spec/qtunnel-1.md, appendix A.
fn vector(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter_map(|line| line.strip_prefix("hex:")).collect();
    let digits: Vec<u32> = digits.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|byte| byte.iter().fold(0, |value, digit| value << 4 | *digit as u8)).collect()
}

/// The reader of frames in each of its roles: where the bytes are cut makes no difference to it.
fn frames(data: &[u8]) {
    for (whole, piecemeal) in readers().into_iter().zip(readers()) {
        let (one, other) = (read_all(whole, [data]), read_all(piecemeal, data.chunks(1)));
        assert_eq!(one, other, "whole, and byte by byte");
    }
}

fn readers() -> [FrameReader; 8] {
    let request = |upgrade| RequestHead {
        audit_id: "fuzz".to_owned(),
        method: Method::GET,
        target: "/".parse().expect("a path"),
        headers: HeaderMap::new(),
        identity: Identity::named("fuzz"),
        requested: None,
        bearer_token: None,
        upgrade,
        client_address: None,
    };
    [
        FrameReader::for_accepted_control(),
        FrameReader::for_opened_control(),
        FrameReader::for_accepted_enrollment(),
        FrameReader::for_opened_enrollment(),
        FrameReader::for_accepted_stream(),
        FrameReader::for_response_to(&request(None)),
        FrameReader::for_response_to(&request(Some(UpgradeProtocol::WebSocket))),
        FrameReader::for_dialed(),
    ]
}

/// What was read: the messages, the bytes between them, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    messages: Vec<Frame>,
    bytes: Vec<u8>,
    error: Option<WireError>,
}

/// A reader that has found fault with its stream is given nothing more.
fn read_all<'a>(mut reader: FrameReader, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut outcome = Outcome::default();
    for piece in pieces {
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.next_frame() {
                Ok(Some(Frame::Data(bytes))) => outcome.bytes.extend(bytes),
                Ok(Some(message)) => outcome.messages.push(message),
                Ok(None) => break,
                Err(error) => return Outcome { error: Some(error), ..outcome },
            }
        }
    }
    Outcome { error: reader.finish().err(), ..outcome }
}

fn records(data: &[u8]) {
    for mut reader in [RecordReader::for_stream(), RecordReader::for_connection()] {
        reader.push(Bytes::copy_from_slice(data));
        while let Ok(Some(_record)) = reader.next_record() {}
    }
}

fn varints(mut data: &[u8]) {
    while read_varint(&mut data).is_some() {}
}

fn request_paths(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(path) = RequestPath::parse(text) else { return };
    assert_eq!(path.as_str(), text, "a path is passed on as it came");
    let logged = without_secrets(text);
    assert_eq!(without_secrets(&logged), logged, "no secret is left");
    for method in [Method::GET, Method::POST, Method::DELETE] {
        if let Ok(info) = RequestInfo::new(&method, &path) {
            let _ = (info.effective_verb(), info.is_long_running(), info.is_streaming());
            let _ = info.resource_and_subresource();
        }
    }
}

fn header_fields(data: &[u8]) {
    let mut fields = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    }
    for version in [Version::HTTP_11, Version::HTTP_2, Version::HTTP_3] {
        let _ = requested_upgrade(&fields, version);
    }
    let _ = headers::content_length(&fields);
    let _ = TraceContext::read(&fields);
    if let Ok(Some(identity)) = impersonation::requested(&fields) {
        let mut written = HeaderMap::new();
        if impersonation::write(&identity, &mut written).is_ok() {
            assert_eq!(impersonation::requested(&written), Ok(Some(identity)), "the API server reads what was meant");
        }
    }
    let _ = take_bearer_token(&mut fields);
    if headers::strip_hop_by_hop(&mut fields).is_ok() {
        headers::strip_identity(&mut fields);
        assert!(!fields.keys().any(headers::is_identity), "an identity is left");
        assert!(!fields.contains_key("connection"), "a field of the connection is left");
    }
}

fn locations(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let upstream = Authority::from_static("api:6443");
    if let Ok(location) = rewrite_location(text, "", &upstream) {
        assert!(!location.starts_with("//"), "another host: {location}");
    }
    if let Ok(location) = rewrite_location(text, "/clusters/eu", &upstream) {
        let is_inside = !location.starts_with('/') || location.starts_with("/clusters/eu/");
        assert!(is_inside, "another cluster: {location}");
    }
}

fn access_reviews(data: &[u8]) {
    let _ = impersonation::allowed(data);
}

fn names(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    name::<ClusterId>(text);
    name::<AgentName>(text);
    name::<AgentIdentity>(text);
    name::<HostName>(text);
    name::<DialAddress>(text);
}

fn name<T: FromStr + Display + Debug + PartialEq>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        assert_eq!(name.to_string().parse().ok(), Some(name), "what is written is read back");
    }
}

fn join_tokens(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(token) = text.parse::<JoinToken>()
    {
        assert!(token.to_string().parse::<JoinToken>().is_ok(), "a token is read back");
    }
}

fn static_tokens(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        let _ = StaticTokens::parse(text);
    }
}

fn certificates(data: &[u8]) {
    let certificate = CertificateDer::from(data);
    let user = user_identity(&certificate);
    let agent = AgentIdentity::from_certificate(&certificate);
    assert!(user.is_err() || agent.is_err(), "nobody is both");
    if let Ok(validity) = Validity::of(&certificate) {
        let now = SystemTime::now();
        let _ = (validity.is_expired(now), validity.renewal_due(now));
    }
    let _ = (not_after(&certificate), serial_number(&certificate), ClientCertificate::of(&[certificate]));
}

static AUTHORITY: LazyLock<CertificateAuthority> =
    LazyLock::new(|| CertificateAuthority::create("fuzz", SystemTime::now()).expect("an authority"));

/// Whatever a request asks for, the certificate is the sender's.
fn signing_requests(data: &[u8]) {
    let sender: AgentIdentity = "qtunnel://prod/agent/a1".parse().expect("an identity");
    if let Ok(issued) = AUTHORITY.issue_agent(data, &sender, Duration::from_secs(3600), SystemTime::now()) {
        let identity = AgentIdentity::from_certificate(&issued).expect("an agent's certificate");
        assert_eq!(identity, sender, "another agent");
    }
}
