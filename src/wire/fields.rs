//! Messages are lists of fields: number, length, value. A field below 64 has to be understood, one from 64 up may be
//! skipped, so that version 1 can grow in both ways.

use bytes::{Buf, Bytes, BytesMut};

use super::error::WireError;
use super::varint::{read_varint, varint_length, write_varint};

/// Fields with this number or a greater one are skipped by those who do not know them.
pub const FIRST_OPTIONAL_FIELD: u64 = 64;

/// Appends a field whose value is `value`.
pub fn write_field(number: u64, value: &[u8], out: &mut BytesMut) {
    write_field_start(number, value.len(), out);
    out.extend_from_slice(value);
}

/// Appends a field whose value is a varint.
pub fn write_number(number: u64, value: u64, out: &mut BytesMut) {
    write_field_start(number, varint_length(value), out);
    write_varint(value, out);
}

/// Appends a field whose value is a pair: the first part behind its length, the second up to the field's end.
pub fn write_pair(number: u64, first: &[u8], second: &[u8], out: &mut BytesMut) {
    write_field_start(number, varint_length(first.len() as u64) + first.len() + second.len(), out);
    write_varint(first.len() as u64, out);
    out.extend_from_slice(first);
    out.extend_from_slice(second);
}

fn write_field_start(number: u64, length: usize, out: &mut BytesMut) {
    write_varint(number, out);
    write_varint(length as u64, out);
}

/// Reads the fields of one message in order, without copying.
pub struct FieldReader {
    message: &'static str,
    rest: Bytes,
}

/// One field of a message.
pub struct Field {
    message: &'static str,
    /// The field's number.
    pub number: u64,
    /// The field's value.
    pub value: Bytes,
}

impl FieldReader {
    /// Reads `payload`, the fields of a `message` (named in errors).
    pub fn new(message: &'static str, payload: Bytes) -> Self {
        Self { message, rest: payload }
    }

    /// The next field, or `None` after the last.
    pub fn next_field(&mut self) -> Result<Option<Field>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let cut = || WireError::Malformed { message: self.message, field: "field" };
        let number = read_varint(&mut self.rest).ok_or_else(cut)?;
        let length = read_varint(&mut self.rest).ok_or_else(cut)?;
        if length > self.rest.len() as u64 {
            return Err(cut());
        }
        let value = self.rest.split_to(length as usize);
        Ok(Some(Field { message: self.message, number, value }))
    }
}

impl Field {
    /// What becomes of a field whose number the reader has no use for: skipped from 64 up, an error below.
    pub fn unknown(&self) -> Result<(), WireError> {
        if self.number >= FIRST_OPTIONAL_FIELD {
            Ok(())
        } else {
            Err(WireError::UnknownField { message: self.message, number: self.number })
        }
    }

    /// The value as UTF-8 text.
    pub fn text(&self, field: &'static str) -> Result<String, WireError> {
        text(&self.value).ok_or(self.malformed(field))
    }

    /// The value as one varint.
    pub fn number(&self, field: &'static str) -> Result<u64, WireError> {
        let mut value = self.value.clone();
        match read_varint(&mut value) {
            Some(number) if value.is_empty() => Ok(number),
            _ => Err(self.malformed(field)),
        }
    }

    /// The value as a boolean: the varint 0 or 1.
    pub fn boolean(&self, field: &'static str) -> Result<bool, WireError> {
        match self.number(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed(field)),
        }
    }

    /// The two parts of a pair.
    pub fn pair(&self, field: &'static str) -> Result<(Bytes, Bytes), WireError> {
        let mut second = self.value.clone();
        let length = read_varint(&mut second).ok_or(self.malformed(field))?;
        if length > second.remaining() as u64 {
            return Err(self.malformed(field));
        }
        let first = second.split_to(length as usize);
        Ok((first, second))
    }

    /// The two parts of a pair, both UTF-8 text.
    pub fn text_pair(&self, field: &'static str) -> Result<(String, String), WireError> {
        let (first, second) = self.pair(field)?;
        text(&first).zip(text(&second)).ok_or(self.malformed(field))
    }

    /// The error that this field's value is not what its definition says.
    pub fn malformed(&self, field: &'static str) -> WireError {
        WireError::Malformed { message: self.message, field }
    }

    /// Stores a value that may come once.
    pub fn set_once<T>(&self, slot: &mut Option<T>, value: T, field: &'static str) -> Result<(), WireError> {
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(WireError::NotExactlyOne { message: self.message, field }),
        }
    }
}

fn text(bytes: &Bytes) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}
