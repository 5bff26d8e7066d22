//! Streams as sequences of frames.
//!
//! [`FrameReader`] is a state machine that is fed whatever pieces a stream delivers and gives back frames. It knows what
//! may follow what, so those who use it never see a frame out of place. DATA is handed on as it arrives and never
//! gathered; every other frame is gathered up to its bound.

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;

use super::error::{WireError, check_length};
use super::frame::{Frame, FrameType, StreamKind, check_payload_length};
use super::head::RequestHead;
use super::limits::MAX_SKIPPED_LENGTH;
use super::varint::read_varint;

/// Reads the frames of one direction of one stream.
///
/// Feed it with [`FrameReader::push`], take frames with [`FrameReader::next_frame`] until there is none, and at the end
/// of the stream ask [`FrameReader::finish`] whether the end was allowed there. After an error it must not be used on.
#[derive(Debug)]
pub struct FrameReader {
    expects: Expects,
    /// Set while the stream's kind has still to come.
    kind: Option<StreamKind>,
    payload: Payload,
    /// What came last and is not read yet.
    input: Bytes,
    /// The beginning of something that spans several pieces of input.
    gathered: BytesMut,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// The agent's first message, and its further ones.
    Hello,
    AgentMessages,
    /// The stub's first message, and its further ones.
    Welcome,
    StubMessages,
    /// The two messages of an enrolment.
    Enroll,
    EnrollmentAnswer,
    RequestHead,
    ResponseHead {
        upgrade: bool,
    },
    Body,
    /// Only the end: trailers, a failure, or a last word has been read.
    End,
    /// Bytes without frames.
    Raw,
}

/// Where in a frame the reader is.
#[derive(Debug, Clone, Copy)]
enum Payload {
    None,
    Data { left: u64 },
    Skipped { left: u64 },
    Message { frame_type: FrameType, length: usize },
}

/// A type varint and a length varint.
const MAX_FRAME_HEADER_LENGTH: usize = 16;

impl FrameReader {
    /// For the control stream, at the stub: kind, HELLO, then the agent's messages.
    pub fn for_accepted_control() -> Self {
        Self::new(Expects::Hello, Some(StreamKind::Control))
    }

    /// For the control stream, at the agent: WELCOME or REFUSED, then the stub's messages.
    pub fn for_opened_control() -> Self {
        Self::new(Expects::Welcome, None)
    }

    /// For the one stream of an enrolment connection, at the stub: kind, ENROLL.
    pub fn for_accepted_enrollment() -> Self {
        Self::new(Expects::Enroll, Some(StreamKind::Control))
    }

    /// For the one stream of an enrolment connection, at the agent: CERTIFICATE or REFUSED.
    pub fn for_opened_enrollment() -> Self {
        Self::new(Expects::EnrollmentAnswer, None)
    }

    /// For a request stream, at the agent: kind, head, body.
    pub fn for_request() -> Self {
        Self::new(Expects::RequestHead, Some(StreamKind::Request))
    }

    /// For the answer to `request`, at the stub: head and body, or a failure. Status 101 is accepted only where the
    /// request asked for an upgrade.
    pub fn for_response_to(request: &RequestHead) -> Self {
        Self::new(Expects::ResponseHead { upgrade: request.upgrade.is_some() }, None)
    }

    /// How many bytes are kept for later, counting what is allocated for them.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.input.len() + self.gathered.capacity()
    }

    fn new(expects: Expects, kind: Option<StreamKind>) -> Self {
        Self { expects, kind, payload: Payload::None, input: Bytes::new(), gathered: BytesMut::new() }
    }

    /// Adds the next piece of the stream. Call it only when [`FrameReader::next_frame`] has given `None`.
    pub fn push(&mut self, piece: Bytes) {
        debug_assert!(self.input.is_empty(), "frames are taken out before more is pushed in");
        self.input = piece;
    }

    /// The next frame, or `None` when more input is needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(kind) = self.kind {
            match self.read_kind(kind)? {
                true => self.kind = None,
                false => return Ok(None),
            }
        }
        loop {
            if self.expects == Expects::Raw {
                return Ok(take_up_to(&mut self.input, u64::MAX).map(Frame::Data));
            }
            match self.payload {
                Payload::None => {
                    if !self.read_frame_header()? {
                        return Ok(None);
                    }
                }
                Payload::Data { left: 0 } | Payload::Skipped { left: 0 } => self.payload = Payload::None,
                Payload::Data { left } => {
                    let Some(data) = take_up_to(&mut self.input, left) else { return Ok(None) };
                    self.payload = Payload::Data { left: left - data.len() as u64 };
                    return Ok(Some(Frame::Data(data)));
                }
                Payload::Skipped { left } => {
                    let Some(skipped) = take_up_to(&mut self.input, left) else { return Ok(None) };
                    self.payload = Payload::Skipped { left: left - skipped.len() as u64 };
                }
                Payload::Message { frame_type, length } => {
                    let Some(payload) = self.gather(length) else { return Ok(None) };
                    self.payload = Payload::None;
                    let frame = Frame::decode(frame_type, payload)?;
                    self.expects = self.expects.after(&frame)?;
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] within a frame, and before what the stream was opened for.
    pub fn finish(&self) -> Result<(), WireError> {
        let between_frames =
            matches!(self.payload, Payload::None | Payload::Data { left: 0 } | Payload::Skipped { left: 0 });
        match self.expects {
            _ if !between_frames || !self.gathered.is_empty() => Err(WireError::Truncated("a frame")),
            _ if self.kind.is_some() => Err(WireError::Truncated("its kind")),
            Expects::RequestHead => Err(WireError::Truncated("its request head")),
            Expects::ResponseHead { .. } => Err(WireError::Truncated("its response head")),
            Expects::Hello | Expects::Welcome | Expects::Enroll | Expects::EnrollmentAnswer => {
                Err(WireError::Truncated("its first message"))
            }
            Expects::AgentMessages | Expects::StubMessages | Expects::Body | Expects::End | Expects::Raw => Ok(()),
        }
    }

    /// Whether the stream has become raw bytes.
    pub fn is_raw(&self) -> bool {
        self.expects == Expects::Raw
    }

    fn read_kind(&mut self, expected: StreamKind) -> Result<bool, WireError> {
        let Some(number) = self.read_header(read_varint) else { return Ok(false) };
        match StreamKind::from_value(number) {
            Some(kind) if kind == expected => Ok(true),
            Some(kind) => Err(WireError::UnexpectedStreamKind(kind)),
            None => Err(WireError::UnknownStreamKind(number)),
        }
    }

    fn read_frame_header(&mut self) -> Result<bool, WireError> {
        let Some((number, length)) = self.read_header(|header| read_varint(header).zip(read_varint(header))) else {
            return Ok(false);
        };
        let Some(frame_type) = FrameType::from_value(number) else {
            check_length("a frame of an unknown type", length, MAX_SKIPPED_LENGTH)?;
            self.payload = Payload::Skipped { left: length };
            return Ok(true);
        };
        if !self.expects.allows(frame_type) {
            return Err(WireError::UnexpectedFrame(frame_type.name()));
        }
        check_payload_length(frame_type, length)?;
        self.payload = match frame_type {
            FrameType::Data => Payload::Data { left: length },
            _ => Payload::Message { frame_type, length: length as usize },
        };
        Ok(true)
    }

    /// Reads varints that may span pieces of input; what is incomplete is kept for the next piece.
    fn read_header<T>(&mut self, read: impl Fn(&mut Bytes) -> Option<T>) -> Option<T> {
        let kept = self.gathered.len();
        let added = self.input.len().min(MAX_FRAME_HEADER_LENGTH - kept);
        let mut header = match kept {
            0 => self.input.clone(),
            _ => {
                self.gathered.extend_from_slice(&self.input[..added]);
                self.gathered.clone().freeze()
            }
        };
        let available = header.len();
        match read(&mut header) {
            Some(value) => {
                let used = available - header.remaining();
                self.gathered.clear();
                self.input.advance(used - kept);
                Some(value)
            }
            None => {
                if kept == 0 {
                    self.gathered.extend_from_slice(&self.input[..added]);
                }
                self.input.clear();
                None
            }
        }
    }

    /// A message's payload once it is whole. Memory grows with what has arrived, not with what was announced.
    fn gather(&mut self, length: usize) -> Option<Bytes> {
        if self.gathered.is_empty() && self.input.len() >= length {
            return Some(self.input.split_to(length));
        }
        let added = self.input.len().min(length - self.gathered.len());
        self.gathered.extend_from_slice(&self.input.split_to(added));
        (self.gathered.len() == length).then(|| std::mem::take(&mut self.gathered).freeze())
    }
}

impl Expects {
    fn allows(self, frame_type: FrameType) -> bool {
        use FrameType::*;
        match self {
            Self::Hello => frame_type == Hello,
            Self::AgentMessages => matches!(frame_type, Report | Drain | Renew),
            Self::Welcome => matches!(frame_type, Welcome | Refused),
            Self::StubMessages => matches!(frame_type, Drain | Certificate | Refused),
            Self::Enroll => frame_type == Enroll,
            Self::EnrollmentAnswer => matches!(frame_type, Certificate | Refused),
            Self::RequestHead => frame_type == RequestHead,
            Self::ResponseHead { .. } => matches!(frame_type, ResponseHead | Failure),
            Self::Body => matches!(frame_type, Data | Trailers),
            Self::End | Self::Raw => false,
        }
    }

    /// What may come after `frame`, which was allowed here.
    fn after(self, frame: &Frame) -> Result<Self, WireError> {
        Ok(match (self, frame) {
            (Self::Hello, _) => Self::AgentMessages,
            (Self::Welcome, Frame::Welcome(_)) => Self::StubMessages,
            (Self::Welcome | Self::Enroll | Self::EnrollmentAnswer, _) => Self::End,
            (Self::ResponseHead { upgrade }, Frame::ResponseHead(head))
                if head.status == StatusCode::SWITCHING_PROTOCOLS =>
            {
                if !upgrade {
                    return Err(WireError::UnrequestedUpgrade);
                }
                Self::Raw
            }
            (_, Frame::RequestHead(head)) if head.upgrade.is_some() => Self::Raw,
            (_, Frame::RequestHead(_) | Frame::ResponseHead(_)) => Self::Body,
            (_, Frame::Trailers(_) | Frame::Failure(_)) => Self::End,
            _ => self,
        })
    }
}

fn take_up_to(input: &mut Bytes, limit: u64) -> Option<Bytes> {
    let length = usize::try_from(limit).unwrap_or(usize::MAX).min(input.len());
    (length > 0).then(|| input.split_to(length))
}
