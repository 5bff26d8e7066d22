//! Streams as sequences of frames.
//!
//! [`FrameReader`] is a state machine that is fed whatever pieces a stream delivers and gives back frames. It knows what
//! may follow what, so those who use it never see a frame out of place. DATA is handed on as it arrives and never
//! gathered; every other frame is gathered up to its bound.

use bytes::Bytes;
use http::StatusCode;

use super::error::{WireError, check_length};
use super::frame::{Frame, FrameType, StreamKind, check_payload_length};
use super::head::RequestHead;
use super::input::Input;
use super::limits::MAX_SKIPPED_LENGTH;
use super::varint::read_varint;

/// Reads the frames of one direction of one stream.
///
/// Feed it with [`FrameReader::push`], take frames with [`FrameReader::next_frame`] until there is none, and at the end
/// of the stream ask [`FrameReader::finish`] whether the end was allowed there. After an error it must not be used on.
#[derive(Debug)]
pub struct FrameReader {
    expects: Expects,
    payload: Payload,
    input: Input,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// The stream's kind: one of these, and what follows it.
    Kind(&'static [(StreamKind, Self)]),
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
    Dial,
    Dialed,
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

impl FrameReader {
    /// For the control stream, at the stub: kind, HELLO, then the agent's messages.
    pub fn for_accepted_control() -> Self {
        Self::new(Expects::Kind(&[(StreamKind::Control, Expects::Hello)]))
    }

    /// For the control stream, at the agent: WELCOME or REFUSED, then the stub's messages.
    pub fn for_opened_control() -> Self {
        Self::new(Expects::Welcome)
    }

    /// For the one stream of an enrolment connection, at the stub: kind, ENROLL.
    pub fn for_accepted_enrollment() -> Self {
        Self::new(Expects::Kind(&[(StreamKind::Control, Expects::Enroll)]))
    }

    /// For the one stream of an enrolment connection, at the agent: CERTIFICATE or REFUSED.
    pub fn for_opened_enrollment() -> Self {
        Self::new(Expects::EnrollmentAnswer)
    }

    /// For a stream that the stub has opened, at the agent: the kind, then a request's head and body, or DIAL and raw bytes.
    pub fn for_accepted_stream() -> Self {
        Self::new(Expects::Kind(&[(StreamKind::Request, Expects::RequestHead), (StreamKind::Dial, Expects::Dial)]))
    }

    /// For the answer to `request`, at the stub: head and body, or a failure. Status 101 is accepted only where the
    /// request asked for an upgrade.
    pub fn for_response_to(request: &RequestHead) -> Self {
        Self::new(Expects::ResponseHead { upgrade: request.upgrade.is_some() })
    }

    /// For the answer to DIAL, at the stub: DIALED and raw bytes, or a failure.
    pub fn for_dialed() -> Self {
        Self::new(Expects::Dialed)
    }

    /// How many bytes are kept for later, counting what is allocated for them.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.input.held_bytes()
    }

    fn new(expects: Expects) -> Self {
        Self { expects, payload: Payload::None, input: Input::default() }
    }

    /// Adds the next piece of the stream. Call it only when [`FrameReader::next_frame`] has given `None`.
    pub fn push(&mut self, piece: Bytes) {
        self.input.push(piece);
    }

    /// The next frame, or `None` when more input is needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if let Expects::Kind(kinds) = self.expects {
            match self.read_kind(kinds)? {
                Some(expects) => self.expects = expects,
                None => return Ok(None),
            }
        }
        loop {
            if self.expects == Expects::Raw {
                return Ok(self.input.take_up_to(u64::MAX).map(Frame::Data));
            }
            match self.payload {
                Payload::None => {
                    if !self.read_frame_header()? {
                        return Ok(None);
                    }
                }
                Payload::Data { left: 0 } | Payload::Skipped { left: 0 } => self.payload = Payload::None,
                Payload::Data { left } => {
                    let Some(data) = self.input.take_up_to(left) else { return Ok(None) };
                    self.payload = Payload::Data { left: left - data.len() as u64 };
                    return Ok(Some(Frame::Data(data)));
                }
                Payload::Skipped { left } => {
                    let Some(skipped) = self.input.take_up_to(left) else { return Ok(None) };
                    self.payload = Payload::Skipped { left: left - skipped.len() as u64 };
                }
                Payload::Message { frame_type, length } => {
                    let Some(payload) = self.input.gather(length) else { return Ok(None) };
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
            _ if !between_frames || !self.input.is_between() => Err(WireError::Truncated("a frame")),
            Expects::Kind(_) => Err(WireError::Truncated("its kind")),
            Expects::RequestHead => Err(WireError::Truncated("its request head")),
            Expects::ResponseHead { .. } => Err(WireError::Truncated("its response head")),
            Expects::Dial => Err(WireError::Truncated("its DIAL")),
            Expects::Dialed => Err(WireError::Truncated("its DIALED")),
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

    /// What follows the kind, once that has come.
    fn read_kind(&mut self, kinds: &[(StreamKind, Expects)]) -> Result<Option<Expects>, WireError> {
        let Some(number) = self.input.header(read_varint) else { return Ok(None) };
        let kind = StreamKind::from_value(number).ok_or(WireError::UnknownStreamKind(number))?;
        match kinds.iter().find(|(allowed, _)| *allowed == kind) {
            Some((_, expects)) => Ok(Some(*expects)),
            None => Err(WireError::UnexpectedStreamKind(kind)),
        }
    }

    fn read_frame_header(&mut self) -> Result<bool, WireError> {
        let Some((number, length)) = self.input.header(|header| read_varint(header).zip(read_varint(header))) else {
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
}

impl Expects {
    fn allows(self, frame_type: FrameType) -> bool {
        use FrameType::*;
        match self {
            Self::Hello => frame_type == Hello,
            Self::AgentMessages => matches!(frame_type, Report | Drain | Renew),
            Self::Welcome => matches!(frame_type, Welcome | Refused),
            Self::StubMessages => matches!(frame_type, Drain | Certificate | Refused | Pace),
            Self::Enroll => frame_type == Enroll,
            Self::EnrollmentAnswer => matches!(frame_type, Certificate | Refused),
            Self::RequestHead => frame_type == RequestHead,
            Self::ResponseHead { .. } => matches!(frame_type, ResponseHead | Failure),
            Self::Dial => frame_type == Dial,
            Self::Dialed => matches!(frame_type, Dialed | Failure),
            Self::Body => matches!(frame_type, Data | Trailers),
            Self::Kind(_) | Self::End | Self::Raw => false,
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
            (_, Frame::Dial(_) | Frame::Dialed(_)) => Self::Raw,
            (_, Frame::RequestHead(head)) if head.upgrade.is_some() => Self::Raw,
            (_, Frame::RequestHead(_) | Frame::ResponseHead(_)) => Self::Body,
            (_, Frame::Trailers(_) | Frame::Failure(_)) => Self::End,
            _ => self,
        })
    }
}
