//! Frames: type, length, payload. How they are written; [`super::FrameReader`] is how they are read.

use bytes::{BufMut, Bytes, BytesMut};

use super::control::{Certificate, Drain, Enroll, Hello, Pace, Refused, Renew, Report, Welcome};
use super::dial::{Dial, Dialed};
use super::error::{WireError, check_length};
use super::head::{Failure, RequestHead, ResponseHead, Trailers};
use super::limits::{MAX_DATA_LENGTH, MAX_HEAD_LENGTH, MAX_MESSAGE_LENGTH};
use super::varint::write_varint;

macro_rules! frame_types {
    ($($name:ident = $value:literal, $what:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum FrameType { $($name = $value,)* }

        impl FrameType {
            pub(super) fn from_value(value: u64) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            /// The type's name in the specification.
            pub(super) fn name(self) -> &'static str {
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
    Dial = 0x05, "DIAL";
    Dialed = 0x06, "DIALED";
    Hello = 0x10, "HELLO";
    Welcome = 0x11, "WELCOME";
    Refused = 0x12, "REFUSED";
    Report = 0x13, "REPORT";
    Drain = 0x14, "DRAIN";
    Renew = 0x15, "RENEW";
    Certificate = 0x16, "CERTIFICATE";
    Enroll = 0x17, "ENROLL";
    Pace = 0x18, "PACE";
}

/// What a stream is for. Its number is the first thing on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// The one stream an agent opens: messages about the connection itself.
    Control = 0x01,
    /// One request, opened by the stub.
    Request = 0x02,
    /// One connection into the agent's network, opened by the stub.
    Dial = 0x03,
}

impl StreamKind {
    pub(super) fn from_value(value: u64) -> Option<Self> {
        [Self::Control, Self::Request, Self::Dial].into_iter().find(|kind| *kind as u64 == value)
    }

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
    /// See [`Dial`].
    Dial(Box<Dial>),
    /// See [`Dialed`].
    Dialed(Dialed),
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
    /// See [`Pace`].
    Pace(Pace),
}

impl Frame {
    /// Appends the frame's bytes.
    ///
    /// # Errors
    ///
    /// Whatever the peer's reader would refuse is refused here, with the same error: a length or a count past its bound,
    /// a value outside its definition. `out` is then as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        match self {
            Self::Data(data) => {
                check_length("a DATA frame", data.len() as u64, MAX_DATA_LENGTH)?;
                encode_data_header(data.len(), out);
                out.extend_from_slice(data);
                Ok(())
            }
            Self::RequestHead(head) => head.encode(out),
            Self::ResponseHead(head) => encode_message(FrameType::ResponseHead, out, |out| head.write_fields(out)),
            Self::Trailers(trailers) => encode_message(FrameType::Trailers, out, |out| trailers.write_fields(out)),
            Self::Failure(failure) => encode_message(FrameType::Failure, out, |out| failure.write_fields(out)),
            Self::Dial(dial) => encode_message(FrameType::Dial, out, |out| dial.write_fields(out)),
            Self::Dialed(Dialed) => encode_message(FrameType::Dialed, out, |_no_fields| Ok(())),
            Self::Hello(hello) => encode_message(FrameType::Hello, out, |out| hello.write_fields(out)),
            Self::Welcome(welcome) => encode_message(FrameType::Welcome, out, |out| welcome.write_fields(out)),
            Self::Refused(refused) => encode_message(FrameType::Refused, out, |out| refused.write_fields(out)),
            Self::Report(report) => encode_message(FrameType::Report, out, |out| report.write_fields(out)),
            Self::Drain(drain) => encode_message(FrameType::Drain, out, |out| drain.write_fields(out)),
            Self::Renew(renew) => encode_message(FrameType::Renew, out, |out| renew.write_fields(out)),
            Self::Certificate(chain) => encode_message(FrameType::Certificate, out, |out| chain.write_fields(out)),
            Self::Enroll(enroll) => encode_message(FrameType::Enroll, out, |out| enroll.write_fields(out)),
            Self::Pace(pace) => encode_message(FrameType::Pace, out, |out| pace.write_fields(out)),
        }
    }

    pub(super) fn decode(frame_type: FrameType, payload: Bytes) -> Result<Self, WireError> {
        Ok(match frame_type {
            FrameType::Data => Self::Data(payload),
            FrameType::RequestHead => Self::RequestHead(Box::new(RequestHead::read_fields(payload)?)),
            FrameType::ResponseHead => Self::ResponseHead(Box::new(ResponseHead::read_fields(payload)?)),
            FrameType::Trailers => Self::Trailers(Trailers::read_fields(payload)?),
            FrameType::Failure => Self::Failure(Failure::read_fields(payload)?),
            FrameType::Dial => Self::Dial(Box::new(Dial::read_fields(payload)?)),
            FrameType::Dialed => Self::Dialed(Dialed::read_fields(payload)?),
            FrameType::Hello => Self::Hello(Hello::read_fields(payload)?),
            FrameType::Welcome => Self::Welcome(Welcome::read_fields(payload)?),
            FrameType::Refused => Self::Refused(Refused::read_fields(payload)?),
            FrameType::Report => Self::Report(Report::read_fields(payload)?),
            FrameType::Drain => Self::Drain(Drain::read_fields(payload)?),
            FrameType::Renew => Self::Renew(Renew::read_fields(payload)?),
            FrameType::Certificate => Self::Certificate(Certificate::read_fields(payload)?),
            FrameType::Enroll => Self::Enroll(Enroll::read_fields(payload)?),
            FrameType::Pace => Self::Pace(Pace::read_fields(payload)?),
        })
    }
}

/// Appends the type and length of a DATA frame whose payload of `length` bytes follows by itself, so that a body is
/// never copied to be framed. `length` is at most [`MAX_DATA_LENGTH`].
pub fn encode_data_header(length: usize, out: &mut BytesMut) {
    write_varint(FrameType::Data as u64, out);
    write_varint(length as u64, out);
}

impl RequestHead {
    /// Appends the bytes of the frame that holds this head; see [`Frame::encode`].
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        encode_message(FrameType::RequestHead, out, |out| self.write_fields(out))
    }
}

/// Writes the payload behind a length of fixed width, so that it need not be measured first.
fn encode_message(
    frame_type: FrameType,
    out: &mut BytesMut,
    write_fields: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    const LENGTH_WIDTH: usize = 4;
    const FOUR_BYTE_VARINT: u32 = 0x8000_0000;

    let start = out.len();
    write_varint(frame_type as u64, out);
    let length_at = out.len();
    out.put_u32(0);
    let written = write_fields(out).and_then(|()| {
        let length = out.len() - length_at - LENGTH_WIDTH;
        check_payload_length(frame_type, length as u64).map(|()| length)
    });
    match written {
        Ok(length) => {
            let prefix = (length as u32 | FOUR_BYTE_VARINT).to_be_bytes();
            // The four bytes were put there above.
            out[length_at..length_at + LENGTH_WIDTH].copy_from_slice(&prefix);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Fails when a frame of this type announces, or has, more than its bound.
pub(super) fn check_payload_length(frame_type: FrameType, length: u64) -> Result<(), WireError> {
    match frame_type {
        FrameType::Data => check_length("a DATA frame", length, MAX_DATA_LENGTH),
        FrameType::RequestHead | FrameType::ResponseHead => check_length("a head", length, MAX_HEAD_LENGTH),
        _ => check_length("a message", length, MAX_MESSAGE_LENGTH),
    }
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
