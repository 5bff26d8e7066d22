//! Tests of the protocol as a whole: the vectors of the specification, and properties that hold for every stream.

mod arbitrary;
mod limits;
mod properties;
mod records;
mod rendering;
mod specification;
mod vectors;

use bytes::{Bytes, BytesMut};
use http::Method;
use http::uri::PathAndQuery;

use super::{Frame, FrameReader, Identity, RequestHead, StreamKind, UpgradeProtocol, WireError};

/// One direction of a stream of one kind: what the specification's vectors call `stream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
    ResponseToUpgrade,
    ControlFromAgent,
    ControlFromStub,
    EnrollmentFromAgent,
    EnrollmentFromStub,
    Dial,
    Dialed,
}

impl Direction {
    const ALL: [Self; 9] = [
        Self::Request,
        Self::Response,
        Self::ResponseToUpgrade,
        Self::ControlFromAgent,
        Self::ControlFromStub,
        Self::EnrollmentFromAgent,
        Self::EnrollmentFromStub,
        Self::Dial,
        Self::Dialed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
            Self::ResponseToUpgrade => "response-to-upgrade",
            Self::ControlFromAgent => "control-from-agent",
            Self::ControlFromStub => "control-from-stub",
            Self::EnrollmentFromAgent => "enrollment-from-agent",
            Self::EnrollmentFromStub => "enrollment-from-stub",
            Self::Dial => "dial",
            Self::Dialed => "answer-to-dial",
        }
    }

    fn reader(self) -> FrameReader {
        match self {
            Self::Request | Self::Dial => FrameReader::for_accepted_stream(),
            Self::Response => FrameReader::for_response_to(&request_head(None)),
            Self::ResponseToUpgrade => FrameReader::for_response_to(&request_head(Some(UpgradeProtocol::WebSocket))),
            Self::ControlFromAgent => FrameReader::for_accepted_control(),
            Self::ControlFromStub => FrameReader::for_opened_control(),
            Self::EnrollmentFromAgent => FrameReader::for_accepted_enrollment(),
            Self::EnrollmentFromStub => FrameReader::for_opened_enrollment(),
            Self::Dialed => FrameReader::for_dialed(),
        }
    }

    /// The kind that this direction begins with.
    fn kind(self) -> Option<StreamKind> {
        match self {
            Self::Request => Some(StreamKind::Request),
            Self::Dial => Some(StreamKind::Dial),
            Self::ControlFromAgent | Self::EnrollmentFromAgent => Some(StreamKind::Control),
            Self::Response
            | Self::ResponseToUpgrade
            | Self::ControlFromStub
            | Self::EnrollmentFromStub
            | Self::Dialed => None,
        }
    }
}

fn request_head(upgrade: Option<UpgradeProtocol>) -> RequestHead {
    RequestHead {
        audit_id: "a".to_owned(),
        method: Method::GET,
        target: PathAndQuery::from_static("/api"),
        headers: Default::default(),
        identity: Identity::named("alice"),
        requested: None,
        bearer_token: None,
        upgrade,
        client_address: None,
    }
}

/// What a reader made of a whole direction.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// What was read before the end or the error.
    frames: Vec<Frame>,
    /// What the reader said of the end, or before it.
    result: Result<(), WireError>,
    /// The most that the reader ever kept back for later.
    held_bytes: usize,
}

/// Reads `pieces` to their end, or to the first error.
fn read_all(direction: Direction, pieces: impl IntoIterator<Item = Bytes>) -> Outcome {
    let mut reader = direction.reader();
    let mut outcome = Outcome { frames: Vec::new(), result: Ok(()), held_bytes: 0 };
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => outcome.frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    outcome.result = Err(error);
                    return outcome;
                }
            }
        }
        outcome.held_bytes = outcome.held_bytes.max(reader.held_bytes());
    }
    outcome.result = reader.finish();
    outcome
}

/// Writes a direction as its sender would.
fn write_all(direction: Direction, frames: &[Frame]) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    if let Some(kind) = direction.kind() {
        kind.encode(&mut out);
    }
    let mut raw = false;
    for frame in frames {
        match frame {
            Frame::Data(bytes) if raw => out.extend_from_slice(bytes),
            _ => frame.encode(&mut out)?,
        }
        raw |= begins_raw_bytes(frame);
    }
    Ok(out.freeze())
}

fn begins_raw_bytes(frame: &Frame) -> bool {
    match frame {
        Frame::RequestHead(head) => head.upgrade.is_some(),
        Frame::ResponseHead(head) => head.status == http::StatusCode::SWITCHING_PROTOCOLS,
        Frame::Dial(_) | Frame::Dialed(_) => true,
        _ => false,
    }
}

/// Joins neighbouring DATA: where it was cut has no meaning.
fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut whole: Vec<Frame> = Vec::new();
    for frame in frames {
        match (whole.last_mut(), frame) {
            (Some(Frame::Data(before)), Frame::Data(more)) => *before = [before.as_ref(), &more].concat().into(),
            (_, Frame::Data(nothing)) if nothing.is_empty() => {}
            (_, frame) => whole.push(frame),
        }
    }
    whole
}
