//! Every parser of bytes that come from the network, as a function that must not panic whatever it is given.
//!
//! `tests/fuzzing.rs` runs all of them for a short time with any compiler; `cargo fuzz` runs one for as long as wanted (see
//! `fuzz/README.md`).

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Version};
use qtunnel::kube::{
    RequestInfo, RequestPath, StaticTokens, headers, impersonation, requested_upgrade, rewrite_location,
    take_bearer_token,
};
use qtunnel::pki::{AgentIdentity, JoinToken, Validity, user_identity};
use qtunnel::wire::{FrameReader, Identity, RecordReader, RequestHead, WireError, read_varint};
use rustls::pki_types::CertificateDer;

/// A parser.
pub struct Target {
    /// Its name for `cargo fuzz`.
    pub name: &'static str,
    /// Gives it bytes.
    pub run: fn(&[u8]),
    /// Bytes that it understands, to begin with.
    pub seeds: &'static [&'static [u8]],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: frames, seeds: &[HELLO, HEAD] },
    Target { name: "records", run: records, seeds: &[&[0, 3, 1, 2, 3], &[1, 1, 5]] },
    Target { name: "varints", run: varints, seeds: &[&[0xc0, 0, 0, 0, 0, 0, 0, 1]] },
    Target { name: "request_paths", run: request_paths, seeds: &[b"/api/v1/namespaces/demo/pods/x?watch=true"] },
    Target {
        name: "header_fields",
        run: header_fields,
        seeds: &[
            b"Connection: Upgrade, Impersonate-User\nUpgrade: SPDY/3.1\nContent-Length: 5",
            b"Impersonate-User: a\nImpersonate-Extra-x%2fy: b\nAuthorization: Bearer c",
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io",
        ],
    },
    Target { name: "locations", run: locations, seeds: &[b"https://api:6443/openapi/v3?hash=1", b"//elsewhere/x"] },
    Target { name: "join_tokens", run: join_tokens, seeds: &[b"qtj1.c1.aaaaaaaa.bbbbbbbb"] },
    Target { name: "static_tokens", run: static_tokens, seeds: &[b"token,user,uid,\"a,b\"\n"] },
    Target {
        name: "certificates",
        run: certificates,
        seeds: &[&[0x30, 0x82, 1, 0, 0x30, 0x81, 0xa7, 0xa0, 3, 2, 1, 2]],
    },
];

/// A control stream with a hello.
const HELLO: &[u8] = &[0x01, 0x10, 0x04, 0x01, 0x02, b'c', b'1'];

/// A request stream with a head.
const HEAD: &[u8] = &[0x02, 0x01, 0x0c, 0x01, 0x03, b'G', b'E', b'T', 0x02, 0x04, b'/', b'a', b'p', b'i'];

/// The reader of frames in each of its roles. The first byte says where the bytes are cut.
fn frames(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let request = RequestHead {
        audit_id: "fuzz".to_owned(),
        method: Method::GET,
        target: "/".parse().expect("a path"),
        headers: HeaderMap::new(),
        identity: Identity::named("fuzz"),
        requested: None,
        bearer_token: None,
        upgrade: None,
        client_address: None,
    };
    let readers = [
        FrameReader::for_accepted_control(),
        FrameReader::for_opened_control(),
        FrameReader::for_accepted_enrollment(),
        FrameReader::for_opened_enrollment(),
        FrameReader::for_accepted_stream(),
        FrameReader::for_response_to(&request),
    ];
    let (first, second) = data.split_at(usize::from(*cut).min(data.len()));
    for mut reader in readers {
        if read_all(&mut reader, [first, second]).is_ok() {
            let _ = reader.finish();
        }
    }
}

/// A reader that has found fault with its stream is given nothing more.
fn read_all(reader: &mut FrameReader, pieces: [&[u8]; 2]) -> Result<(), WireError> {
    for piece in pieces {
        reader.push(Bytes::copy_from_slice(piece));
        while reader.next_frame()?.is_some() {}
    }
    Ok(())
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
    for method in [Method::GET, Method::POST, Method::DELETE] {
        if let Ok(info) = RequestInfo::new(&method, &path) {
            let _ = (info.effective_verb(), info.is_long_running(), info.resource_and_subresource());
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
    if let Ok(Some(identity)) = impersonation::requested(&fields) {
        let _ = impersonation::write(&identity, &mut HeaderMap::new());
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
    let _ = Validity::of(&certificate);
}
