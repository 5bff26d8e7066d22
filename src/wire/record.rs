//! Records: what travels on yamux streams, so that a stream over TCP means what a stream over QUIC means.
//!
//! Yamux knows neither error codes nor a way to stop a sender, and the end of one of its streams may be a clean one or not.
//! proto-spec/qtunnel-1.md, section "The TCP carrier", says how records make up for it.

use bytes::{Bytes, BytesMut};

use super::error::{ErrorCode, WireError, check_length};
use super::input::Input;
use super::limits::{MAX_DATA_LENGTH, MAX_REASON_LENGTH, MAX_SKIPPED_LENGTH};
use super::varint::{read_varint, varint_length, write_varint};

macro_rules! record_types {
    ($($name:ident = $value:literal, $what:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum RecordType { $($name = $value,)* }

        impl RecordType {
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

record_types! {
    Bytes = 0x00, "BYTES";
    End = 0x01, "END";
    Reset = 0x02, "RESET";
    Stop = 0x03, "STOP";
    Credit = 0x04, "CREDIT";
    Ping = 0x08, "PING";
    Pong = 0x09, "PONG";
    Close = 0x0a, "CLOSE";
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The next bytes of the sender's direction. Where one such record begins and ends has no meaning.
    Bytes(Bytes),
    /// The sender's direction is whole (QUIC: FIN).
    End,
    /// The sender's direction is broken off (QUIC: RESET_STREAM).
    Reset(ErrorCode),
    /// The other direction is not wanted any more (QUIC: STOP_SENDING).
    Stop(ErrorCode),
    /// How many bytes of the other direction, counted from its beginning, the sender takes (QUIC: MAX_STREAM_DATA).
    Credit(u64),
    /// A question of the connection stream, to be answered at once with the same number.
    Ping(u64),
    /// The answer to [`Record::Ping`].
    Pong(u64),
    /// The connection is over (QUIC: CONNECTION_CLOSE).
    Close {
        /// Why.
        code: ErrorCode,
        /// Why, for people.
        reason: String,
    },
}

impl Record {
    /// Appends the type and length of a [`Record::Bytes`] whose payload of `length` bytes follows by itself. `length` is at
    /// most [`MAX_DATA_LENGTH`].
    pub fn encode_bytes_header(length: usize, out: &mut BytesMut) {
        write_varint(RecordType::Bytes as u64, out);
        write_varint(length as u64, out);
    }

    /// Appends the record. A reason that is too long is cut.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Bytes(bytes) => {
                Self::encode_bytes_header(bytes.len(), out);
                out.extend_from_slice(bytes);
            }
            Self::End => encode_numbers(RecordType::End, &[], out),
            Self::Reset(code) => encode_numbers(RecordType::Reset, &[code.value().into()], out),
            Self::Stop(code) => encode_numbers(RecordType::Stop, &[code.value().into()], out),
            Self::Credit(offset) => encode_numbers(RecordType::Credit, &[*offset], out),
            Self::Ping(number) => encode_numbers(RecordType::Ping, &[*number], out),
            Self::Pong(number) => encode_numbers(RecordType::Pong, &[*number], out),
            Self::Close { code, reason } => {
                let code = code.value().into();
                let reason = cut(reason);
                write_varint(RecordType::Close as u64, out);
                write_varint((varint_length(code) + reason.len()) as u64, out);
                write_varint(code, out);
                out.extend_from_slice(reason.as_bytes());
            }
        }
    }
}

/// As much of `reason` as may travel, whole characters only.
fn cut(reason: &str) -> &str {
    let mut length = reason.len().min(MAX_REASON_LENGTH);
    while !reason.is_char_boundary(length) {
        length -= 1;
    }
    &reason[..length]
}

fn encode_numbers(record_type: RecordType, numbers: &[u64], out: &mut BytesMut) {
    write_varint(record_type as u64, out);
    write_varint(numbers.iter().map(|number| varint_length(*number) as u64).sum(), out);
    numbers.iter().for_each(|number| write_varint(*number, out));
}

/// Reads the records of one direction of one yamux stream.
///
/// Used like [`super::FrameReader`]: push a piece, take records until there is none. After an error it must not be used
/// on.
#[derive(Debug)]
pub struct RecordReader {
    expects: Expects,
    payload: Payload,
    input: Input,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// The connection stream: what concerns the connection.
    Connection,
    /// A stream whose sender's direction goes on.
    Bytes,
    /// A stream whose sender's direction has ended: only what concerns the other one.
    Signals,
}

/// Where in a record the reader is.
#[derive(Debug, Clone, Copy)]
enum Payload {
    None,
    Bytes { left: u64 },
    Skipped { left: u64 },
    Whole { record_type: RecordType, length: usize },
}

/// What a record other than BYTES may be long: a code and a reason.
const MAX_RECORD_LENGTH: usize = 8 + MAX_REASON_LENGTH;

impl RecordReader {
    /// For a stream.
    pub fn for_stream() -> Self {
        Self::new(Expects::Bytes)
    }

    /// For the connection stream.
    pub fn for_connection() -> Self {
        Self::new(Expects::Connection)
    }

    fn new(expects: Expects) -> Self {
        Self { expects, payload: Payload::None, input: Input::default() }
    }

    /// Adds the next piece. Call it only when [`RecordReader::next_record`] has given `None`.
    pub fn push(&mut self, piece: Bytes) {
        self.input.push(piece);
    }

    /// The next record, or `None` when more input is needed.
    pub fn next_record(&mut self) -> Result<Option<Record>, WireError> {
        loop {
            match self.payload {
                Payload::None => {
                    if !self.read_header()? {
                        return Ok(None);
                    }
                }
                Payload::Bytes { left: 0 } | Payload::Skipped { left: 0 } => self.payload = Payload::None,
                Payload::Bytes { left } => {
                    let Some(bytes) = self.input.take_up_to(left) else { return Ok(None) };
                    self.payload = Payload::Bytes { left: left - bytes.len() as u64 };
                    return Ok(Some(Record::Bytes(bytes)));
                }
                Payload::Skipped { left } => {
                    let Some(skipped) = self.input.take_up_to(left) else { return Ok(None) };
                    self.payload = Payload::Skipped { left: left - skipped.len() as u64 };
                }
                Payload::Whole { record_type, length } => {
                    let Some(payload) = self.input.gather(length) else { return Ok(None) };
                    self.payload = Payload::None;
                    let record = decode(record_type, payload)?;
                    if matches!(record, Record::End | Record::Reset(_)) {
                        self.expects = Expects::Signals;
                    }
                    return Ok(Some(record));
                }
            }
        }
    }

    fn read_header(&mut self) -> Result<bool, WireError> {
        let Some((number, length)) = self.input.header(|header| read_varint(header).zip(read_varint(header))) else {
            return Ok(false);
        };
        let Some(record_type) = RecordType::from_value(number) else {
            check_length("a record of an unknown type", length, MAX_SKIPPED_LENGTH)?;
            self.payload = Payload::Skipped { left: length };
            return Ok(true);
        };
        if !self.expects.allows(record_type) {
            return Err(WireError::UnexpectedFrame(record_type.name()));
        }
        self.payload = match record_type {
            RecordType::Bytes => {
                check_length("a BYTES record", length, MAX_DATA_LENGTH)?;
                Payload::Bytes { left: length }
            }
            _ => {
                check_length("a record", length, MAX_RECORD_LENGTH)?;
                Payload::Whole { record_type, length: length as usize }
            }
        };
        Ok(true)
    }
}

impl Expects {
    fn allows(self, record_type: RecordType) -> bool {
        use RecordType::*;
        match self {
            Self::Connection => matches!(record_type, Ping | Pong | Close),
            Self::Bytes => matches!(record_type, Bytes | End | Reset | Stop | Credit),
            Self::Signals => matches!(record_type, Stop | Credit),
        }
    }
}

fn decode(record_type: RecordType, mut payload: Bytes) -> Result<Record, WireError> {
    let malformed = |field| WireError::Malformed { message: record_type.name(), field };
    let mut number = |field| read_varint(&mut payload).ok_or(malformed(field));
    let record = match record_type {
        RecordType::Bytes => return Ok(Record::Bytes(payload)),
        RecordType::End => Record::End,
        RecordType::Reset => Record::Reset(ErrorCode::from_value(number("code")?)),
        RecordType::Stop => Record::Stop(ErrorCode::from_value(number("code")?)),
        RecordType::Credit => Record::Credit(number("offset")?),
        RecordType::Ping => Record::Ping(number("number")?),
        RecordType::Pong => Record::Pong(number("number")?),
        RecordType::Close => {
            let code = ErrorCode::from_value(number("code")?);
            let reason = String::from_utf8(payload.to_vec()).map_err(|_| malformed("reason"))?;
            return Ok(Record::Close { code, reason });
        }
    };
    if payload.is_empty() { Ok(record) } else { Err(malformed("end")) }
}
