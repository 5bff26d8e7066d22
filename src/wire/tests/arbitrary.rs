//! Arbitrary frames, and arbitrary streams made of them.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Direction, begins_raw_bytes};
use crate::wire::{
    AuthMode, BearerToken, Certificate, Dial, Dialed, Drain, Enroll, Failure, FailureReason, Frame, Hello, Identity,
    MAX_VARINT, Network, Pace, Refused, Renew, Report, RequestHead, ResponseHead, Trailers, UpgradeProtocol, Welcome,
    write_varint,
};

/// One direction of a stream as its sender would make it: which one, its frames, its bytes.
///
/// Frames of unknown types stand between the others, as a later version might send them.
pub fn conversation() -> impl Strategy<Value = (Direction, Vec<Frame>, Bytes)> {
    select(&Direction::ALL[..]).prop_flat_map(|direction| {
        (frames(direction), vec(option::weighted(0.2, unknown_frame()), 8))
            .prop_map(move |(frames, unknown)| (direction, frames.clone(), encoded(direction, &frames, &unknown)))
    })
}

/// Any frame, wherever it may stand. Some break a bound or a definition, so that they cannot be encoded.
pub fn any_frame() -> impl Strategy<Value = Frame> {
    let invalid = prop_oneof![
        Just(Frame::Certificate(Certificate { chain: Vec::new() })),
        Just(Frame::Certificate(Certificate { chain: vec![Bytes::from_static(b"0"); 65] })),
        Just(Frame::Refused(Refused { reason: "x".repeat(70_000) })),
        Just(Frame::RequestHead(Box::new(RequestHead { audit_id: String::new(), ..super::request_head(None) }))),
    ];
    prop_oneof![
        1 => invalid,
        8 => select(&Direction::ALL[..]).prop_flat_map(|direction| {
            (frames(direction), any::<Index>()).prop_map(|(frames, index)| index.get(&frames).clone())
        }),
    ]
}

/// `bytes` cut into pieces at arbitrary places.
pub fn cut(bytes: &Bytes, places: &[Index]) -> Vec<Bytes> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for place in places.into_iter().chain([bytes.len()]) {
        pieces.push(bytes.slice(start..place));
        start = place;
    }
    pieces
}

fn frames(direction: Direction) -> BoxedStrategy<Vec<Frame>> {
    let exchange = |first: BoxedStrategy<Frame>, rest: BoxedStrategy<Frame>| {
        (first, vec(rest, 0..4)).prop_map(|(first, rest)| [vec![first], rest].concat()).boxed()
    };
    let refused = || text().prop_map(|reason| Frame::Refused(Refused { reason })).boxed();
    let drain = || text().prop_map(|reason| Frame::Drain(Drain { reason })).boxed();
    let renew = || blob().prop_map(|request| Frame::Renew(Renew { request })).boxed();
    let pace = || report_interval().prop_map(|report_interval| Frame::Pace(Pace { report_interval })).boxed();
    let certificate = || vec(blob(), 1..4).prop_map(|chain| Frame::Certificate(Certificate { chain })).boxed();
    match direction {
        Direction::Request => with_body(request_head()),
        Direction::Response => prop_oneof![
            4 => with_body(response_head(200..=999)),
            1 => failure().prop_map(|failure| vec![failure]),
        ]
        .boxed(),
        Direction::ResponseToUpgrade => with_body(response_head(101..=101)),
        Direction::ControlFromAgent => exchange(hello(), prop_oneof![report(), drain(), renew()].boxed()),
        Direction::ControlFromStub => prop_oneof![
            4 => exchange(welcome(), prop_oneof![drain(), certificate(), refused(), pace()].boxed()),
            1 => refused().prop_map(|refused| vec![refused]),
        ]
        .boxed(),
        Direction::Dial => with_body(dial()),
        Direction::Dialed => prop_oneof![
            4 => with_body(Just(Frame::Dialed(Dialed)).boxed()),
            1 => failure().prop_map(|failure| vec![failure]),
        ]
        .boxed(),
        Direction::EnrollmentFromAgent => enroll().prop_map(|enroll| vec![enroll]).boxed(),
        Direction::EnrollmentFromStub => prop_oneof![certificate(), refused()].prop_map(|answer| vec![answer]).boxed(),
    }
}

/// A head, and DATA and trailers where they may follow it.
fn with_body(head: BoxedStrategy<Frame>) -> BoxedStrategy<Vec<Frame>> {
    let data = vec(any::<u8>(), 1..300).prop_map(|bytes| Frame::Data(bytes.into()));
    let trailers = headers().prop_map(|headers| Frame::Trailers(Trailers(headers)));
    (head, vec(data, 0..4), option::of(trailers))
        .prop_map(|(head, data, trailers)| {
            let trailers = trailers.filter(|_| !begins_raw_bytes(&head));
            [vec![head], data, trailers.into_iter().collect()].concat()
        })
        .boxed()
}

fn encoded(direction: Direction, frames: &[Frame], unknown: &[Option<Bytes>]) -> Bytes {
    let mut out = BytesMut::new();
    if let Some(kind) = direction.kind() {
        kind.encode(&mut out);
    }
    let mut unknown = unknown.iter().flatten();
    let mut raw = false;
    for frame in frames {
        match frame {
            Frame::Data(bytes) if raw => out.put_slice(bytes),
            _ => {
                out.extend(unknown.next().into_iter().flatten());
                frame.encode(&mut out).expect("frames of a conversation can be encoded");
            }
        }
        raw |= begins_raw_bytes(frame);
    }
    out.freeze()
}

/// A frame of a type that version 1 does not define.
fn unknown_frame() -> impl Strategy<Value = Bytes> {
    (0x18..=MAX_VARINT, vec(any::<u8>(), 0..100)).prop_map(|(frame_type, payload)| {
        let mut out = BytesMut::new();
        write_varint(frame_type, &mut out);
        write_varint(payload.len() as u64, &mut out);
        out.put_slice(&payload);
        out.freeze()
    })
}

fn request_head() -> BoxedStrategy<Frame> {
    let target = "/[a-zA-Z0-9._~%/-]{0,40}(\\?[a-zA-Z0-9=&%+-]{0,20})?";
    let upgrade = option::weighted(0.2, select(vec![UpgradeProtocol::Spdy, UpgradeProtocol::WebSocket]));
    let first = ("[!-~]{1,64}", "[A-Z]{1,10}", target, headers(), identity());
    let second = (option::of(identity()), option::of("[!-~]{1,50}"), upgrade, any::<Option<std::net::IpAddr>>());
    (first, second)
        .prop_map(|((audit_id, method, target, headers, identity), (requested, token, upgrade, client_address))| {
            Frame::RequestHead(Box::new(RequestHead {
                audit_id,
                method: Method::from_bytes(method.as_bytes()).expect("letters are a method"),
                target: PathAndQuery::try_from(target).expect("the pattern makes targets"),
                headers,
                identity,
                requested,
                bearer_token: token.and_then(|token| BearerToken::new(&token)),
                upgrade,
                client_address,
            }))
        })
        .boxed()
}

fn response_head(statuses: std::ops::RangeInclusive<u16>) -> BoxedStrategy<Frame> {
    (statuses, headers())
        .prop_map(|(status, headers)| {
            let status = StatusCode::from_u16(status).expect("three digits are a status");
            Frame::ResponseHead(Box::new(ResponseHead { status, headers }))
        })
        .boxed()
}

fn failure() -> BoxedStrategy<Frame> {
    (select(FailureReason::ALL), any::<bool>(), text())
        .prop_map(|(reason, dispatched, message)| Frame::Failure(Failure { reason, dispatched, message }))
        .boxed()
}

fn dial() -> BoxedStrategy<Frame> {
    let host = prop_oneof![
        "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,2}",
        any::<std::net::Ipv6Addr>().prop_map(|ip| format!("[{ip}]"))
    ];
    (host, 1..=u16::MAX, "[!-~]{1,64}")
        .prop_map(|(host, port, audit_id)| {
            let address = format!("{host}:{port}").parse().expect("the pattern makes addresses");
            Frame::Dial(Box::new(Dial { network: Network::Tcp, address, audit_id }))
        })
        .boxed()
}

fn hello() -> BoxedStrategy<Frame> {
    let modes = select(vec![AuthMode::Impersonate, AuthMode::PassThrough]);
    (label(), any::<u64>(), text(), modes, vec(any::<u64>(), 0..4))
        .prop_map(|(cluster, instance, software, auth_mode, connected_stubs)| {
            let cluster = cluster.parse().expect("the pattern makes cluster ids");
            Frame::Hello(Hello { cluster, instance, software, auth_mode, connected_stubs })
        })
        .boxed()
}

fn welcome() -> BoxedStrategy<Frame> {
    (text(), report_interval(), vec(text(), 0..4), any::<Option<u64>>())
        .prop_map(|(stub, report_interval, other_stubs, instance)| {
            Frame::Welcome(Welcome { stub, report_interval, other_stubs, instance })
        })
        .boxed()
}

fn report_interval() -> impl Strategy<Value = Duration> {
    (10_u64..=3_600_000).prop_map(Duration::from_millis)
}

fn report() -> BoxedStrategy<Frame> {
    (0..=MAX_VARINT, any::<bool>(), 0..=MAX_VARINT, text(), proptest::option::of("[!-~]{1,64}"))
        .prop_map(|(open_streams, upstream_healthy, latency, upstream_error, api_server)| {
            let upstream_latency = Duration::from_micros(latency);
            let api_server = api_server.map(Into::into);
            Frame::Report(Report { open_streams, upstream_healthy, upstream_latency, upstream_error, api_server })
        })
        .boxed()
}

fn enroll() -> BoxedStrategy<Frame> {
    (text(), blob()).prop_map(|(token, request)| Frame::Enroll(Enroll { token, request })).boxed()
}

fn identity() -> impl Strategy<Value = Identity> {
    (".{1,20}", option::of(text()), vec(text(), 0..4), vec((".{1,10}", text()), 0..4))
        .prop_map(|(user, uid, groups, extra)| Identity { user, uid, groups, extra })
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let value = vec(prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xffu8], 0..30);
    vec(("[a-z][a-z0-9-]{0,15}", value), 0..6).prop_map(|fields| {
        let field = |(name, value): (String, Vec<u8>)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("the pattern makes names");
            (name, HeaderValue::from_bytes(&value).expect("the bytes make values"))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.into_iter().map(field) {
            headers.append(name, value);
        }
        headers
    })
}

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
}

fn text() -> impl Strategy<Value = String> {
    ".{0,30}"
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}
