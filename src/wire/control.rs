//! The messages of the control stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::error::{WireError, check_count};
use super::fields::{FieldReader, write_field, write_number};
use super::limits::{MAX_API_SERVER_LENGTH, MAX_LIST_ENTRIES, MAX_REPORT_INTERVAL, MIN_REPORT_INTERVAL};
use super::names::ClusterId;

mod field {
    //! The numbers of fields, per message. proto-spec/qtunnel-1.md, section "Messages", lists the same.
    pub const HELLO_CLUSTER: u64 = 0x01;
    pub const HELLO_INSTANCE: u64 = 0x02;
    pub const HELLO_SOFTWARE: u64 = 0x03;
    pub const HELLO_AUTH_MODE: u64 = 0x04;
    pub const HELLO_CONNECTED_STUB: u64 = 0x42;
    pub const WELCOME_STUB: u64 = 0x01;
    pub const WELCOME_REPORT_INTERVAL: u64 = 0x02;
    pub const WELCOME_OTHER_STUB: u64 = 0x40;
    pub const WELCOME_INSTANCE: u64 = 0x41;
    pub const REPORT_OPEN_STREAMS: u64 = 0x01;
    pub const REPORT_UPSTREAM_HEALTHY: u64 = 0x02;
    pub const REPORT_UPSTREAM_LATENCY: u64 = 0x03;
    pub const REPORT_UPSTREAM_ERROR: u64 = 0x40;
    pub const REPORT_API_SERVER: u64 = 0x41;
    pub const DRAIN_REASON: u64 = 0x01;
    pub const ENROLL_TOKEN: u64 = 0x01;
    pub const ENROLL_REQUEST: u64 = 0x02;
    pub const RENEW_REQUEST: u64 = 0x01;
    pub const CERTIFICATE_CHAIN: u64 = 0x01;
    pub const REFUSED_REASON: u64 = 0x01;
    pub const PACE_REPORT_INTERVAL: u64 = 0x01;
}

/// The agent's first message on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The cluster the agent serves. It must be the one its certificate names.
    pub cluster: ClusterId,
    /// A random number made when the agent's process started: tells a reconnect from another process with the same
    /// certificate.
    pub instance: u64,
    /// Name and version of the agent's software, for people.
    pub software: String,
    /// How the agent makes requests.
    pub auth_mode: AuthMode,
    /// The [`Welcome::instance`] of every stub to which the agent's process has a connection that is to stay. The stub that
    /// finds its own there does not let this connection take the place of that one.
    pub connected_stubs: Vec<u64>,
}

/// How an agent makes requests at its API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AuthMode {
    /// With its own credential, impersonating the user.
    #[default]
    Impersonate = 0,
    /// With the user's own token, impersonating nobody by itself.
    PassThrough = 1,
}

impl Hello {
    const NAME: &'static str = "hello";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        check_count(CONNECTED, self.connected_stubs.len(), MAX_LIST_ENTRIES)?;
        write_field(field::HELLO_CLUSTER, self.cluster.as_str().as_bytes(), out);
        write_field(field::HELLO_INSTANCE, &self.instance.to_be_bytes(), out);
        write_field(field::HELLO_SOFTWARE, self.software.as_bytes(), out);
        write_number(field::HELLO_AUTH_MODE, self.auth_mode as u64, out);
        for instance in &self.connected_stubs {
            write_field(field::HELLO_CONNECTED_STUB, &instance.to_be_bytes(), out);
        }
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut cluster, mut instance, mut software, mut auth_mode) = (None, None, None, None);
        let mut connected_stubs = Vec::new();
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::HELLO_CLUSTER => {
                    let id = field.text("cluster")?.parse().map_err(|_| field.malformed("cluster"))?;
                    field.set_once(&mut cluster, id, "cluster")?;
                }
                field::HELLO_INSTANCE => {
                    field.set_once(&mut instance, read_instance(&field)?, "instance")?;
                }
                field::HELLO_CONNECTED_STUB => {
                    check_count(CONNECTED, connected_stubs.len() + 1, MAX_LIST_ENTRIES)?;
                    connected_stubs.push(read_instance(&field)?);
                }
                field::HELLO_SOFTWARE => field.set_once(&mut software, field.text("software")?, "software")?,
                field::HELLO_AUTH_MODE => {
                    let mode = match field.number("authentication mode")? {
                        0 => AuthMode::Impersonate,
                        1 => AuthMode::PassThrough,
                        _ => return Err(field.malformed("authentication mode")),
                    };
                    field.set_once(&mut auth_mode, mode, "authentication mode")?;
                }
                _ => field.unknown()?,
            }
        }
        let missing = |field| WireError::NotExactlyOne { message: Self::NAME, field };
        Ok(Self {
            cluster: cluster.ok_or(missing("cluster"))?,
            instance: instance.ok_or(missing("instance"))?,
            software: software.unwrap_or_default(),
            auth_mode: auth_mode.unwrap_or_default(),
            connected_stubs,
        })
    }
}

/// The stub's answer to [`Hello`]. Only after it does the stub open request streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The stub's name, for people.
    pub stub: String,
    /// How often the agent reports at least: [`MIN_REPORT_INTERVAL`] to [`MAX_REPORT_INTERVAL`], in milliseconds.
    pub report_interval: Duration,
    /// Addresses (`host:port`) of other stubs that the agent may dial as well.
    pub other_stubs: Vec<String>,
    /// A random number made when the stub's process started: tells whether two addresses lead to the same stub.
    pub instance: Option<u64>,
}

impl Welcome {
    const NAME: &'static str = "welcome";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        check_count(STUBS, self.other_stubs.len(), MAX_LIST_ENTRIES)?;
        write_field(field::WELCOME_STUB, self.stub.as_bytes(), out);
        write_report_interval(field::WELCOME_REPORT_INTERVAL, self.report_interval, Self::NAME, out)?;
        for address in &self.other_stubs {
            write_field(field::WELCOME_OTHER_STUB, address.as_bytes(), out);
        }
        if let Some(instance) = self.instance {
            write_field(field::WELCOME_INSTANCE, &instance.to_be_bytes(), out);
        }
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut stub, mut report_interval, mut instance, mut other_stubs) = (None, None, None, Vec::new());
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::WELCOME_STUB => field.set_once(&mut stub, field.text("stub")?, "stub")?,
                field::WELCOME_REPORT_INTERVAL => {
                    let interval = read_report_interval(&field)?;
                    field.set_once(&mut report_interval, interval, REPORT_INTERVAL)?;
                }
                field::WELCOME_INSTANCE => field.set_once(&mut instance, read_instance(&field)?, "instance")?,
                field::WELCOME_OTHER_STUB => {
                    check_count(STUBS, other_stubs.len() + 1, MAX_LIST_ENTRIES)?;
                    other_stubs.push(field.text("other stub")?);
                }
                _ => field.unknown()?,
            }
        }
        let report_interval =
            report_interval.ok_or(WireError::NotExactlyOne { message: Self::NAME, field: REPORT_INTERVAL })?;
        Ok(Self { stub: stub.unwrap_or_default(), report_interval, other_stubs, instance })
    }
}

/// What the agent tells of itself, periodically and on change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Request streams open at the agent.
    pub open_streams: u64,
    /// Whether the last round trip to the API server worked.
    pub upstream_healthy: bool,
    /// How long that round trip took. Microsecond resolution.
    pub upstream_latency: Duration,
    /// What is wrong with the API server; empty when it is healthy.
    pub upstream_error: String,
    /// Which API server it is: the UID of its namespace kube-system, 1 to [`MAX_API_SERVER_LENGTH`] visible ASCII
    /// characters. `None` where the agent may not look.
    pub api_server: Option<Arc<str>>,
}

impl Report {
    const NAME: &'static str = "report";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        write_number(field::REPORT_OPEN_STREAMS, self.open_streams, out);
        write_number(field::REPORT_UPSTREAM_HEALTHY, u64::from(self.upstream_healthy), out);
        write_number(field::REPORT_UPSTREAM_LATENCY, saturating(self.upstream_latency.as_micros()), out);
        if !self.upstream_error.is_empty() {
            write_field(field::REPORT_UPSTREAM_ERROR, self.upstream_error.as_bytes(), out);
        }
        if let Some(api_server) = &self.api_server {
            if !is_api_server(api_server) {
                return Err(WireError::Malformed { message: Self::NAME, field: API_SERVER });
            }
            write_field(field::REPORT_API_SERVER, api_server.as_bytes(), out);
        }
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut open_streams, mut healthy, mut latency, mut error) = (None, None, None, None);
        let mut api_server = None;
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::REPORT_OPEN_STREAMS => {
                    field.set_once(&mut open_streams, field.number("open streams")?, "open streams")?;
                }
                field::REPORT_UPSTREAM_HEALTHY => {
                    field.set_once(&mut healthy, field.boolean("upstream health")?, "upstream health")?;
                }
                field::REPORT_UPSTREAM_LATENCY => {
                    let value = Duration::from_micros(field.number("upstream latency")?);
                    field.set_once(&mut latency, value, "upstream latency")?;
                }
                field::REPORT_UPSTREAM_ERROR => {
                    field.set_once(&mut error, field.text("upstream error")?, "upstream error")?;
                }
                field::REPORT_API_SERVER => {
                    let uid = Some(field.text(API_SERVER)?).filter(|uid| is_api_server(uid));
                    let uid = uid.ok_or_else(|| field.malformed(API_SERVER))?;
                    field.set_once(&mut api_server, uid.into(), API_SERVER)?;
                }
                _ => field.unknown()?,
            }
        }
        let missing = |field| WireError::NotExactlyOne { message: Self::NAME, field };
        Ok(Self {
            open_streams: open_streams.ok_or(missing("open streams"))?,
            upstream_healthy: healthy.ok_or(missing("upstream health"))?,
            upstream_latency: latency.unwrap_or_default(),
            upstream_error: error.unwrap_or_default(),
            api_server,
        })
    }
}

/// The stub asks for another report interval than in [`Welcome`]: it has more agents to listen to by now, or fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How often the agent reports at least from now on: as [`Welcome::report_interval`].
    pub report_interval: Duration,
}

impl Pace {
    const NAME: &'static str = "pace";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        write_report_interval(field::PACE_REPORT_INTERVAL, self.report_interval, Self::NAME, out)
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let mut report_interval = None;
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::PACE_REPORT_INTERVAL => {
                    let interval = read_report_interval(&field)?;
                    field.set_once(&mut report_interval, interval, REPORT_INTERVAL)?;
                }
                _ => field.unknown()?,
            }
        }
        let report_interval =
            report_interval.ok_or(WireError::NotExactlyOne { message: Self::NAME, field: REPORT_INTERVAL })?;
        Ok(Self { report_interval })
    }
}

/// Either side is about to stop: from the agent, that it takes no new requests; from the stub, that the agent should
/// connect elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// One sentence for the peer's log.
    pub reason: String,
}

/// An agent without a certificate trades a join token for one. The first and only message of an enrolment connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Enroll {
    /// The join token as it was given to the agent.
    pub token: String,
    /// A PKCS #10 certificate signing request, DER. Its public key counts; names in it are not believed.
    pub request: Bytes,
}

impl std::fmt::Debug for Enroll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enroll").field("token", &"redacted").field("request", &self.request.len()).finish()
    }
}

impl Enroll {
    const NAME: &'static str = "enroll";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        write_field(field::ENROLL_TOKEN, self.token.as_bytes(), out);
        write_field(field::ENROLL_REQUEST, &self.request, out);
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let (mut token, mut request) = (None, None);
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::ENROLL_TOKEN => field.set_once(&mut token, field.text("token")?, "token")?,
                field::ENROLL_REQUEST => field.set_once(&mut request, field.value.clone(), "certificate request")?,
                _ => field.unknown()?,
            }
        }
        let missing = |field| WireError::NotExactlyOne { message: Self::NAME, field };
        Ok(Self { token: token.ok_or(missing("token"))?, request: request.ok_or(missing("certificate request"))? })
    }
}

/// The agent asks for a new certificate in place of the one it connected with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renew {
    /// A PKCS #10 certificate signing request, DER.
    pub request: Bytes,
}

/// The stub's answer to [`Enroll`] and [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, DER, the agent's own certificate first. Never empty.
    pub chain: Vec<Bytes>,
}

impl Certificate {
    const NAME: &'static str = "certificate";

    pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
        if self.chain.is_empty() {
            return Err(WireError::Malformed { message: Self::NAME, field: "chain" });
        }
        check_count(CHAIN, self.chain.len(), MAX_LIST_ENTRIES)?;
        for certificate in &self.chain {
            write_field(field::CERTIFICATE_CHAIN, certificate, out);
        }
        Ok(())
    }

    pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
        let mut chain = Vec::new();
        let mut fields = FieldReader::new(Self::NAME, payload);
        while let Some(field) = fields.next_field()? {
            match field.number {
                field::CERTIFICATE_CHAIN => {
                    check_count(CHAIN, chain.len() + 1, MAX_LIST_ENTRIES)?;
                    chain.push(field.value.clone());
                }
                _ => field.unknown()?,
            }
        }
        if chain.is_empty() {
            return Err(WireError::Malformed { message: Self::NAME, field: "chain" });
        }
        Ok(Self { chain })
    }
}

/// The stub's refusal of [`Hello`], [`Enroll`] or [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One sentence that says what to do about it.
    pub reason: String,
}

/// Messages that are one field of bytes or text.
macro_rules! one_field_message {
    ($name:ident, $message:literal, $field:ident, $number:expr, $slot:literal, $write:expr, $read:expr) => {
        impl $name {
            pub(super) fn write_fields(&self, out: &mut BytesMut) -> Result<(), WireError> {
                write_field($number, $write(&self.$field), out);
                Ok(())
            }

            pub(super) fn read_fields(payload: Bytes) -> Result<Self, WireError> {
                let mut value = None;
                let mut fields = FieldReader::new($message, payload);
                while let Some(field) = fields.next_field()? {
                    if field.number == $number {
                        field.set_once(&mut value, $read(&field)?, $slot)?;
                    } else {
                        field.unknown()?;
                    }
                }
                let $field = value.ok_or(WireError::NotExactlyOne { message: $message, field: $slot })?;
                Ok(Self { $field })
            }
        }
    };
}

one_field_message!(Drain, "drain", reason, field::DRAIN_REASON, "reason", str::as_bytes, read_reason);
one_field_message!(Refused, "refusal", reason, field::REFUSED_REASON, "reason", str::as_bytes, read_reason);
one_field_message!(Renew, "renewal", request, field::RENEW_REQUEST, "certificate request", Bytes::as_ref, read_bytes);

fn read_instance(field: &super::fields::Field) -> Result<u64, WireError> {
    let bytes = field.value.as_ref().try_into().map_err(|_| field.malformed("instance"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn read_reason(field: &super::fields::Field) -> Result<String, WireError> {
    field.text("reason")
}

fn read_bytes(field: &super::fields::Field) -> Result<Bytes, WireError> {
    Ok(field.value.clone())
}

fn saturating(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn write_report_interval(
    number: u64,
    interval: Duration,
    message: &'static str,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    if !is_report_interval(interval) {
        return Err(WireError::Malformed { message, field: REPORT_INTERVAL });
    }
    write_number(number, saturating(interval.as_millis()), out);
    Ok(())
}

fn read_report_interval(field: &super::fields::Field) -> Result<Duration, WireError> {
    let interval = Duration::from_millis(field.number(REPORT_INTERVAL)?);
    Some(interval).filter(|interval| is_report_interval(*interval)).ok_or_else(|| field.malformed(REPORT_INTERVAL))
}

fn is_report_interval(interval: Duration) -> bool {
    (MIN_REPORT_INTERVAL..=MAX_REPORT_INTERVAL).contains(&interval)
}

fn is_api_server(uid: &str) -> bool {
    (1..=MAX_API_SERVER_LENGTH).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_graphic())
}

const REPORT_INTERVAL: &str = "report interval";
const API_SERVER: &str = "API server";
const CONNECTED: &str = "the connected stubs of a hello";
const STUBS: &str = "the stubs of a welcome";
const CHAIN: &str = "the chain of a certificate";
