//! The records of the TCP carrier.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::rendering::render_record;
use crate::wire::limits::MAX_REASON_LENGTH;
use crate::wire::{ErrorCode, MAX_VARINT, Record, RecordReader, WireError};

/// A reader for what the specification's vectors call `stream`, if that is one of records.
pub fn reader_for(stream: &str) -> Option<RecordReader> {
    match stream {
        "tcp-stream" => Some(RecordReader::for_stream()),
        "tcp-connection" => Some(RecordReader::for_connection()),
        _ => None,
    }
}

/// The records of `pieces` up to their end or the first error.
pub fn read_all(
    mut reader: RecordReader,
    pieces: impl IntoIterator<Item = Bytes>,
) -> (Vec<Record>, Result<(), WireError>) {
    let mut records = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_record() {
                Ok(Some(record)) => push_joined(&mut records, record),
                Ok(None) => break,
                Err(error) => return (records, Err(error)),
            }
        }
    }
    (records, Ok(()))
}

/// The same as the lines and the code of a vector.
pub fn read_vector(reader: RecordReader, bytes: Bytes) -> (Vec<String>, Option<ErrorCode>) {
    let (records, result) = read_all(reader, [bytes]);
    (records.iter().map(render_record).collect(), result.err().map(|error| error.code()))
}

/// Where a BYTES record is cut has no meaning.
fn push_joined(records: &mut Vec<Record>, record: Record) {
    match (records.last_mut(), record) {
        (Some(Record::Bytes(before)), Record::Bytes(more)) => *before = [before.as_ref(), &more].concat().into(),
        (_, record) => records.push(record),
    }
}

fn encoded(records: &[Record]) -> Bytes {
    let mut out = BytesMut::new();
    records.iter().for_each(|record| record.encode(&mut out));
    out.freeze()
}

/// What is written for a vector's records.
pub fn written(reader: RecordReader, bytes: Bytes) -> Bytes {
    encoded(&read_all(reader, [bytes]).0)
}

#[test]
fn a_reason_that_is_too_long_is_cut_between_characters() {
    let reason = format!("a{}", "é".repeat(MAX_REASON_LENGTH));
    let bytes = encoded(&[Record::Close { code: ErrorCode::NoError, reason: reason.clone() }]);
    let (records, result) = read_all(RecordReader::for_connection(), [bytes]);
    assert_eq!(result, Ok(()));
    let [Record::Close { reason: read, .. }] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(read.len(), MAX_REASON_LENGTH - 1);
    assert!(reason.starts_with(read.as_str()));
}

fn any_code() -> impl Strategy<Value = ErrorCode> {
    proptest::sample::select(ErrorCode::ALL)
}

fn any_open_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..300).prop_map(|bytes| Record::Bytes(bytes.into())),
        any_code().prop_map(Record::Stop),
        (0..=MAX_VARINT).prop_map(Record::Credit),
    ]
}

fn any_connection_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        (0..=MAX_VARINT).prop_map(Record::Ping),
        (0..=MAX_VARINT).prop_map(Record::Pong),
        (any_code(), "\\PC{0,40}").prop_map(|(code, reason)| Record::Close { code, reason }),
    ]
}

fn cut(bytes: &Bytes, size: usize) -> impl Iterator<Item = Bytes> + '_ {
    (0..bytes.len()).step_by(size).map(move |at| bytes.slice(at..bytes.len().min(at + size)))
}

proptest! {
    #[test]
    fn records_are_read_back_however_they_are_cut(
        mut records in proptest::collection::vec(any_open_record(), 0..20),
        end in prop_oneof![Just(Record::End), any_code().prop_map(Record::Reset)],
        size in 1_usize..40,
    ) {
        records.push(end);
        let bytes = encoded(&records);
        let mut joined = Vec::new();
        records.into_iter().for_each(|record| push_joined(&mut joined, record));
        let (read, result) = read_all(RecordReader::for_stream(), cut(&bytes, size));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(read, joined);
    }

    #[test]
    fn connection_records_are_read_back_however_they_are_cut(
        records in proptest::collection::vec(any_connection_record(), 0..20),
        size in 1_usize..40,
    ) {
        let (read, result) = read_all(RecordReader::for_connection(), cut(&encoded(&records), size));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(read, records);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1_usize..40) {
        let bytes = Bytes::from(bytes);
        for reader in [RecordReader::for_stream(), RecordReader::for_connection()] {
            let _ = read_all(reader, cut(&bytes, size));
        }
    }
}
