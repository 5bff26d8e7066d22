//! Streams as sequences of frames: type, length, payload.
//!
//! [`FrameReader`] is a state machine that is fed whatever pieces a stream delivers and gives back frames. It knows what
//! may follow what, so those who use it never see a frame out of place. DATA is handed on as it arrives and never
//! gathered; every other frame is gathered up to its bound.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::control::{Certificate, Drain, Enroll, Hello, Refused, Renew, Report, Welcome};
use super::error::{WireError, check_head_length, check_length};
use super::head::{Failure, RequestHead, ResponseHead, Trailers};
use super::limits::{MAX_DATA_LENGTH, MAX_HEAD_LENGTH, MAX_MESSAGE_LENGTH, MAX_SKIPPED_LENGTH};
use super::varint::{read_varint, write_varint};

macro_rules! frame_types {
    ($($name:ident = $value:literal, $what:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum FrameType { $($name = $value,)* }

        impl FrameType {
            fn from_value(value: u64) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            fn name(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

frame_types! {
    Data = 0x00, "DATA";
    RequestHead = 0x01, "REQUEST_HEAD";
    ResponseHead = 0x02, "RESPONSE_HEAD";
    Trailers = 0x03, "TRAILERS";
    Failure = 0x04, "FAILURE";
    Hello = 0x10, "HELLO";
    Welcome = 0x11, "WELCOME";
    Refused = 0x12, "REFUSED";
    Report = 0x13, "REPORT";
    Drain = 0x14, "DRAIN";
    Renew = 0x15, "RENEW";
    Certificate = 0x16, "CERTIFICATE";
    Enroll = 0x17, "ENROLL";
}

/// What a stream is for. Its number is the first thing on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// The one stream an agent opens: messages about the connection itself.
    Control = 0x01,
    /// One request, opened by the stub.
    Request = 0x02,
}

impl StreamKind {
    /// Appends the kind's number.
    pub fn encode(self, out: &mut BytesMut) {
        write_varint(self as u64, out);
    }
}

/// One frame, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A piece of the body, or of the raw bytes of an upgrade. Where DATA frames begin and end has no meaning.
    Data(Bytes),
    /// The head of a request.
    RequestHead(Box<RequestHead>),
    /// The head of a response.
    ResponseHead(Box<ResponseHead>),
    /// The end of a body that has trailer fields.
    Trailers(Trailers),
    /// The agent's answer in place of a response.
    Failure(Failure),
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Refused`].
    Refused(Refused),
    /// See [`Report`].
    Report(Report),
    /// See [`Drain`].
    Drain(Drain),
    /// See [`Renew`].
    Renew(Renew),
    /// See [`Certificate`].
    Certificate(Certificate),
    /// See [`Enroll`].
    Enroll(Enroll),
}

impl Frame {
    /// Appends the frame's bytes.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] when the frame would go past the bound that its reader enforces; `out` is as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        match self {
            Self::Data(data) => {
                check_length("a DATA frame", data.len() as u64, MAX_DATA_LENGTH)?;
                encode_data_header(data.len(), out);
                out.extend_from_slice(data);
                Ok(())
            }
            Self::RequestHead(head) => encode_message(FrameType::RequestHead, out, |out| head.write_fields(out)),
            Self::ResponseHead(head) => encode_message(FrameType::ResponseHead, out, |out| head.write_fields(out)),
            Self::Trailers(trailers) => encode_message(FrameType::Trailers, out, |out| trailers.write_fields(out)),
            Self::Failure(failure) => encode_message(FrameType::Failure, out, |out| failure.write_fields(out)),
            Self::Hello(hello) => encode_message(FrameType::Hello, out, |out| hello.write_fields(out)),
            Self::Welcome(welcome) => encode_message(FrameType::Welcome, out, |out| welcome.write_fields(out)),
            Self::Refused(refused) => encode_message(FrameType::Refused, out, |out| refused.write_fields(out)),
            Self::Report(report) => encode_message(FrameType::Report, out, |out| report.write_fields(out)),
            Self::Drain(drain) => encode_message(FrameType::Drain, out, |out| drain.write_fields(out)),
            Self::Renew(renew) => encode_message(FrameType::Renew, out, |out| renew.write_fields(out)),
            Self::Certificate(chain) => encode_message(FrameType::Certificate, out, |out| chain.write_fields(out)),
            Self::Enroll(enroll) => encode_message(FrameType::Enroll, out, |out| enroll.write_fields(out)),
        }
    }

    fn decode(frame_type: FrameType, payload: Bytes) -> Result<Self, WireError> {
        Ok(match frame_type {
            FrameType::Data => Self::Data(payload),
            FrameType::RequestHead => Self::RequestHead(Box::new(RequestHead::read_fields(payload)?)),
            FrameType::ResponseHead => Self::ResponseHead(Box::new(ResponseHead::read_fields(payload)?)),
            FrameType::Trailers => Self::Trailers(Trailers::read_fields(payload)?),
            FrameType::Failure => Self::Failure(Failure::read_fields(payload)?),
            FrameType::Hello => Self::Hello(Hello::read_fields(payload)?),
            FrameType::Welcome => Self::Welcome(Welcome::read_fields(payload)?),
            FrameType::Refused => Self::Refused(Refused::read_fields(payload)?),
            FrameType::Report => Self::Report(Report::read_fields(payload)?),
            FrameType::Drain => Self::Drain(Drain::read_fields(payload)?),
            FrameType::Renew => Self::Renew(Renew::read_fields(payload)?),
            FrameType::Certificate => Self::Certificate(Certificate::read_fields(payload)?),
            FrameType::Enroll => Self::Enroll(Enroll::read_fields(payload)?),
        })
    }
}

/// Appends the type and length of a DATA frame whose payload of `length` bytes follows by itself, so that a body is
/// never copied to be framed. `length` is at most [`MAX_DATA_LENGTH`].
pub fn encode_data_header(length: usize, out: &mut BytesMut) {
    write_varint(FrameType::Data as u64, out);
    write_varint(length as u64, out);
}

/// Writes the payload behind a length of fixed width, so that it need not be measured first.
fn encode_message(
    frame_type: FrameType,
    out: &mut BytesMut,
    write_fields: impl FnOnce(&mut BytesMut),
) -> Result<(), WireError> {
    const LENGTH_WIDTH: usize = 4;
    const FOUR_BYTE_VARINT: u32 = 0x8000_0000;

    let start = out.len();
    write_varint(frame_type as u64, out);
    let length_at = out.len();
    out.put_u32(0);
    write_fields(out);
    let length = out.len() - length_at - LENGTH_WIDTH;
    if let Err(error) = check_payload_length(frame_type, length as u64) {
        out.truncate(start);
        return Err(error);
    }
    out[length_at..length_at + LENGTH_WIDTH].copy_from_slice(&(length as u32 | FOUR_BYTE_VARINT).to_be_bytes());
    Ok(())
}

fn check_payload_length(frame_type: FrameType, length: u64) -> Result<(), WireError> {
    match frame_type {
        FrameType::Data => check_length("a DATA frame", length, MAX_DATA_LENGTH),
        FrameType::RequestHead | FrameType::ResponseHead => check_head_length(length.try_into().unwrap_or(usize::MAX)),
        _ => check_length("a message", length, MAX_MESSAGE_LENGTH),
    }
}

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
    Control,
    RequestHead,
    Response,
    Body,
    /// Only the end: trailers or a failure have been read.
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
    /// For a control stream, at the side that did not open it: the stream's kind comes first.
    pub fn for_accepted_control() -> Self {
        Self::new(Expects::Control, Some(StreamKind::Control))
    }

    /// For a control stream, at the side that opened it.
    pub fn for_opened_control() -> Self {
        Self::new(Expects::Control, None)
    }

    /// For a request stream, at the agent: kind, head, body.
    pub fn for_request() -> Self {
        Self::new(Expects::RequestHead, Some(StreamKind::Request))
    }

    /// For a request stream, at the stub: head and body, or a failure.
    pub fn for_response() -> Self {
        Self::new(Expects::Response, None)
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
                    self.expects = self.expects.after(&frame);
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// Whether the stream may end here.
    pub fn finish(&self) -> Result<(), WireError> {
        let between_frames =
            matches!(self.payload, Payload::None | Payload::Data { left: 0 } | Payload::Skipped { left: 0 });
        match self.expects {
            _ if !between_frames || !self.gathered.is_empty() => Err(WireError::Truncated("a frame")),
            Expects::RequestHead => Err(WireError::Truncated("its request head")),
            Expects::Response => Err(WireError::Truncated("its response head")),
            Expects::Control | Expects::Body | Expects::End | Expects::Raw => Ok(()),
        }
    }

    /// Whether the stream has become raw bytes.
    pub fn is_raw(&self) -> bool {
        self.expects == Expects::Raw
    }

    fn read_kind(&mut self, expected: StreamKind) -> Result<bool, WireError> {
        let Some(number) = self.read_header(|header| read_varint(header)) else { return Ok(false) };
        if number == expected as u64 { Ok(true) } else { Err(WireError::UnknownStreamKind(number)) }
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
        match self {
            Self::Control => frame_type as u64 >= FrameType::Hello as u64,
            Self::RequestHead => frame_type == FrameType::RequestHead,
            Self::Response => matches!(frame_type, FrameType::ResponseHead | FrameType::Failure),
            Self::Body => matches!(frame_type, FrameType::Data | FrameType::Trailers),
            Self::End | Self::Raw => false,
        }
    }

    fn after(self, frame: &Frame) -> Self {
        match frame {
            Frame::RequestHead(head) if head.upgrade.is_some() => Self::Raw,
            Frame::ResponseHead(head) if head.status == http::StatusCode::SWITCHING_PROTOCOLS => Self::Raw,
            Frame::RequestHead(_) | Frame::ResponseHead(_) => Self::Body,
            Frame::Trailers(_) | Frame::Failure(_) => Self::End,
            _ => self,
        }
    }
}

fn take_up_to(input: &mut Bytes, limit: u64) -> Option<Bytes> {
    let length = usize::try_from(limit).unwrap_or(usize::MAX).min(input.len());
    (length > 0).then(|| input.split_to(length))
}

/// The most bytes that [`encode_data_header`] adds.
pub const MAX_DATA_HEADER_LENGTH: usize = 1 + 4;

const _: () = assert!(MAX_HEAD_LENGTH < 1 << 30 && MAX_MESSAGE_LENGTH < 1 << 30 && MAX_DATA_LENGTH < 1 << 30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::varint::varint_length;

    #[test]
    fn the_data_header_stays_within_its_bound() {
        assert_eq!(1 + varint_length(MAX_DATA_LENGTH as u64), MAX_DATA_HEADER_LENGTH);
    }
}
