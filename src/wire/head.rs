//! The heads of requests and responses, and what else begins or ends them.

use std::fmt;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use super::error::{WireError, check_count};
use super::fields::{Field, FieldReader, write_field, write_number, write_pair};
use super::identity::{Identity, IdentityFields};
use super::limits::{MAX_AUDIT_ID_LENGTH, MAX_HEADER_COUNT};

mod field {
    //! The numbers of fields. proto-spec/qtunnel-1.md, section "Messages", lists the same.
    pub const METHOD: u64 = 0x01;
    pub const TARGET: u64 = 0x02;
    pub const HEADER: u64 = 0x03;
    pub const AUDIT_ID: u64 = 0x04;
    pub const UPGRADE: u64 = 0x05;
    pub const BEARER_TOKEN: u64 = 0x06;
    pub const CLIENT_ADDRESS: u64 = 0x07;
    // 0x10 to 0x1b are the two identities: see `identity::IdentityFields`.
    pub const STATUS: u64 = 0x01;
    pub const REASON: u64 = 0x01;
    pub const DISPATCHED: u64 = 0x02;
    pub const MESSAGE: u64 = 0x03;
}

/// The head of a request: everything before its body.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHead {
    /// The request's id, made by the stub; the agent sends it on as `Audit-ID` so that both audit logs join on it.
    pub audit_id: String,
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent them, without the cluster's prefix.
    pub target: PathAndQuery,
    /// The header fields, without any that could claim an identity.
    pub headers: HeaderMap,
    /// Who makes the request, as the stub authenticated them.
    pub identity: Identity,
    /// Whom the request asks to be made as (`kubectl --as`); the cluster decides whether that is allowed.
    pub requested: Option<Identity>,
    /// The user's own token for the cluster; only for agents in pass-through mode.
    pub bearer_token: Option<BearerToken>,
    /// The protocol to upgrade to: both directions of the stream become raw bytes once the answer is 101.
    pub upgrade: Option<UpgradeProtocol>,
    /// The client's address as the stub saw it.
    pub client_address: Option<IpAddr>,
}

/// The protocols that Kubernetes upgrades HTTP/1.1 connections to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpgradeProtocol {
    /// `SPDY/3.1`: exec, attach and port-forward of older clients.
    Spdy,
    /// `websocket`.
    WebSocket,
}

impl UpgradeProtocol {
    /// The value of the `Upgrade` header field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spdy => "SPDY/3.1",
            Self::WebSocket => "websocket",
        }
    }

    /// The protocol that an `Upgrade` header field names (RFC 9110, section 7.8: case-insensitive).
    pub fn parse(value: &[u8]) -> Option<Self> {
        [Self::Spdy, Self::WebSocket]
            .into_iter()
            .find(|protocol| value.eq_ignore_ascii_case(protocol.as_str().as_bytes()))
    }
}

/// A secret that says who its bearer is. It is never shown: not by `Debug`, not in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(String);

impl BearerToken {
    /// A token as it stood behind `Bearer `; `None` for an empty text, and for one with a character that is not visible
    /// ASCII, which no header could carry.
    pub fn new(token: &str) -> Option<Self> {
        let carried = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        carried.then(|| Self(token.to_owned()))
    }

    /// The token itself, for the one header field it is written to.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(redacted)")
    }
}

impl RequestHead {
    const NAME: &'static str = "request head";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        let malformed = |field| WireError::Malformed { message: Self::NAME, field };
        if !is_origin_form(self.target.as_str()) {
            return Err(malformed("target"));
        }
        if !is_audit_id(&self.audit_id) {
            return Err(malformed("audit id"));
        }
        write_field(field::METHOD, self.method.as_str().as_bytes(), out);
        write_field(field::TARGET, self.target.as_str().as_bytes(), out);
        write_field(field::AUDIT_ID, self.audit_id.as_bytes(), out);
        IdentityFields::USER.write(&self.identity, out)?;
        if let Some(requested) = &self.requested {
            IdentityFields::REQUESTED.write(requested, out)?;
        }
        if let Some(token) = &self.bearer_token {
            write_field(field::BEARER_TOKEN, token.reveal().as_bytes(), out);
        }
        if let Some(upgrade) = self.upgrade {
            write_field(field::UPGRADE, upgrade.as_str().as_bytes(), out);
        }
        if let Some(address) = self.client_address {
            write_field(field::CLIENT_ADDRESS, address.to_string().as_bytes(), out);
        }
        write_headers(&self.headers, out)
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut method, mut target, mut audit_id) = (None, None, None);
        let (mut bearer_token, mut upgrade, mut client_address) = (None, None, None);
        let (mut identity, mut requested) = (IdentityFields::USER.reader(), IdentityFields::REQUESTED.reader());
        let mut headers = HeaderMap::new();
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::METHOD => field.set_once(&mut method, read_method(&field)?, "method")?,
                field::TARGET => field.set_once(&mut target, read_target(&field)?, "target")?,
                field::HEADER => read_header(&field, &mut headers)?,
                field::AUDIT_ID => field.set_once(&mut audit_id, read_audit_id(&field)?, "audit id")?,
                field::UPGRADE => field.set_once(&mut upgrade, read_upgrade(&field)?, "upgrade")?,
                field::BEARER_TOKEN => {
                    let token = BearerToken::new(&field.text("bearer token")?);
                    let token = token.ok_or_else(|| field.malformed("bearer token"))?;
                    field.set_once(&mut bearer_token, token, "bearer token")?;
                }
                field::CLIENT_ADDRESS => {
                    field.set_once(&mut client_address, read_address(&field)?, "client address")?;
                }
                _ if identity.takes(&field)? || requested.takes(&field)? => {}
                _ => field.unknown()?,
            }
        }
        Ok(Self {
            audit_id: audit_id.ok_or_else(|| missing(Self::NAME, "audit id"))?,
            method: method.ok_or_else(|| missing(Self::NAME, "method"))?,
            target: target.ok_or_else(|| missing(Self::NAME, "target"))?,
            headers,
            identity: identity.finish(Self::NAME)?.ok_or_else(|| missing(Self::NAME, "user"))?,
            requested: requested.finish(Self::NAME)?,
            bearer_token,
            upgrade,
            client_address,
        })
    }
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseHead {
    /// The status. 101 answers an upgrade; no other 1xx travels.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
}

impl ResponseHead {
    const NAME: &'static str = "response head";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        if !is_final_or_upgrade(self.status) {
            return Err(WireError::Malformed { message: Self::NAME, field: "status" });
        }
        write_number(field::STATUS, u64::from(self.status.as_u16()), out);
        write_headers(&self.headers, out)
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let mut status = None;
        let mut headers = HeaderMap::new();
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::STATUS => field.set_once(&mut status, read_status(&field)?, "status")?,
                field::HEADER => read_header(&field, &mut headers)?,
                _ => field.unknown()?,
            }
        }
        Ok(Self { status: status.ok_or_else(|| missing(Self::NAME, "status"))?, headers })
    }
}

/// The trailer fields at the end of a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Trailers(pub HeaderMap);

impl Trailers {
    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        write_headers(&self.0, out)
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let mut headers = HeaderMap::new();
        let mut fields = FieldReader::new("trailers", payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::HEADER => read_header(&field, &mut headers)?,
                _ => field.unknown()?,
            }
        }
        Ok(Self(headers))
    }
}

/// The agent's answer when it has no response of the API server to pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub reason: FailureReason,
    /// Whether the request may have reached the API server: if so it may still take effect, and must not be repeated
    /// on the client's behalf.
    pub dispatched: bool,
    /// One sentence for the person who made the request.
    pub message: String,
}

macro_rules! failure_reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why there is no response of the API server. Unknown reasons count as [`FailureReason::Internal`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FailureReason { $($(#[$doc])* $name = $value,)* }

        impl FailureReason {
            /// Every reason of this version.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason's name in the specification.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

failure_reasons! {
    /// The agent failed.
    Internal = 0, "INTERNAL";
    /// No connection to the API server.
    UpstreamUnreachable = 1, "UPSTREAM_UNREACHABLE";
    /// The API server's connection broke before its answer.
    UpstreamLost = 2, "UPSTREAM_LOST";
    /// The API server did not answer in time.
    UpstreamTimeout = 3, "UPSTREAM_TIMEOUT";
    /// The agent's policy or the cluster refuses the identity.
    Forbidden = 4, "FORBIDDEN";
    /// The agent cannot make a request out of the head.
    BadRequest = 5, "BAD_REQUEST";
    /// The API server answered what must not be passed on.
    BadUpstreamAnswer = 6, "BAD_UPSTREAM_ANSWER";
    /// The agent takes no new requests.
    Draining = 7, "DRAINING";
    /// Pass-through mode, and the request carries no token for the cluster.
    Unauthenticated = 8, "UNAUTHENTICATED";
}

impl Failure {
    const NAME: &'static str = "failure";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        write_number(field::REASON, self.reason as u64, out);
        write_number(field::DISPATCHED, u64::from(self.dispatched), out);
        write_field(field::MESSAGE, self.message.as_bytes(), out);
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut reason, mut dispatched, mut message) = (None, None, None);
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::REASON => field.set_once(&mut reason, read_reason(&field)?, "reason")?,
                field::DISPATCHED => field.set_once(&mut dispatched, field.boolean("dispatched")?, "dispatched")?,
                field::MESSAGE => field.set_once(&mut message, field.text("message")?, "message")?,
                _ => field.unknown()?,
            }
        }
        Ok(Self {
            reason: reason.ok_or_else(|| missing(Self::NAME, "reason"))?,
            dispatched: dispatched.ok_or_else(|| missing(Self::NAME, "dispatched"))?,
            message: message.unwrap_or_default(),
        })
    }
}

fn write_headers(headers: &HeaderMap, out: &mut BytesMut) -> Result<(), WireError> {
    check_count(HEADER_FIELDS, headers.len(), MAX_HEADER_COUNT)?;
    for (name, value) in headers {
        write_pair(field::HEADER, name.as_str().as_bytes(), value.as_bytes(), out);
    }
    Ok(())
}

fn read_header(field: &Field, headers: &mut HeaderMap) -> Result<(), WireError> {
    check_count(HEADER_FIELDS, headers.len() + 1, MAX_HEADER_COUNT)?;
    let (name, value) = field.pair("header")?;
    let name = HeaderName::from_bytes(&name).map_err(|_| field.malformed("header name"))?;
    let value = HeaderValue::from_maybe_shared(value).map_err(|_| field.malformed("header value"))?;
    headers.append(name, value);
    Ok(())
}

const HEADER_FIELDS: &str = "the header fields";

fn read_method(field: &Field) -> Result<Method, WireError> {
    Method::from_bytes(&field.value).map_err(|_| field.malformed("method"))
}

fn read_target(field: &Field) -> Result<PathAndQuery, WireError> {
    let target = PathAndQuery::from_maybe_shared(field.value.clone()).map_err(|_| field.malformed("target"))?;
    // A fragment is cut off by the parser; what was not taken whole is not a target (RFC 9112, section 3.2).
    let whole = target.as_str().len() == field.value.len();
    if whole && is_origin_form(target.as_str()) { Ok(target) } else { Err(field.malformed("target")) }
}

/// Only the origin form (RFC 9112, section 3.2.1): the agent knows by itself which server it talks to.
fn is_origin_form(target: &str) -> bool {
    target.starts_with('/')
}

fn read_audit_id(field: &Field) -> Result<String, WireError> {
    let id = field.text("audit id")?;
    if is_audit_id(&id) { Ok(id) } else { Err(field.malformed("audit id")) }
}

pub(super) fn is_audit_id(id: &str) -> bool {
    (1..=MAX_AUDIT_ID_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_upgrade(field: &Field) -> Result<UpgradeProtocol, WireError> {
    UpgradeProtocol::parse(&field.value).ok_or(field.malformed("upgrade"))
}

fn read_address(field: &Field) -> Result<IpAddr, WireError> {
    field.text("client address")?.parse().map_err(|_| field.malformed("client address"))
}

fn read_status(field: &Field) -> Result<StatusCode, WireError> {
    let status = u16::try_from(field.number("status")?).map_err(|_| field.malformed("status"))?;
    match StatusCode::from_u16(status) {
        Ok(status) if is_final_or_upgrade(status) => Ok(status),
        _ => Err(field.malformed("status")),
    }
}

fn is_final_or_upgrade(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

fn read_reason(field: &Field) -> Result<FailureReason, WireError> {
    let number = field.number("reason")?;
    let known = FailureReason::ALL.iter().copied().find(|reason| *reason as u64 == number);
    Ok(known.unwrap_or(FailureReason::Internal))
}

fn missing(message: &'static str, field: &'static str) -> WireError {
    WireError::NotExactlyOne { message, field }
}
