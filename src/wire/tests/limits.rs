//! The bounds, where a vector would be too long to read: at the bound, past it, and before anything is allocated.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode};

use super::{Direction, Outcome, read_all, request_head, write_all};
use crate::wire::limits::{
    MAX_DATA_LENGTH, MAX_HEAD_LENGTH, MAX_HEADER_COUNT, MAX_IDENTITY_ENTRIES, MAX_MESSAGE_LENGTH, MAX_SKIPPED_LENGTH,
};
use crate::wire::{Drain, Frame, Hello, RequestHead, ResponseHead, WireError, write_varint};

const REQUEST_HEAD: u64 = 0x01;
const RESPONSE_HEAD: u64 = 0x02;
const DRAIN: u64 = 0x14;
const UNKNOWN: u64 = 0x21;

#[test]
fn a_head_longer_than_the_bound_is_refused_before_its_payload_comes() {
    let outcome = read_announced(Direction::Response, RESPONSE_HEAD, MAX_HEAD_LENGTH as u64 + 1, 0);
    assert!(matches!(outcome.result, Err(WireError::TooLong { limit: MAX_HEAD_LENGTH, .. })));
    assert_eq!(outcome.held_bytes, 0);
}

#[test]
fn a_head_of_the_longest_length_is_read() {
    let head = request_head_of(MAX_HEAD_LENGTH);
    let bytes = write_all(Direction::Request, std::slice::from_ref(&head)).expect("the head is within its bound");
    let piece_by_piece = (0..bytes.len()).step_by(1000).map(|at| bytes.slice(at..bytes.len().min(at + 1000)));
    let outcome = read_all(Direction::Request, piece_by_piece);
    assert_eq!(outcome.result, Ok(()));
    assert_eq!(outcome.frames, [head]);
    assert!(outcome.held_bytes <= 2 * MAX_HEAD_LENGTH);
}

#[test]
fn a_head_one_byte_too_long_is_not_written() {
    let result = request_head_of(MAX_HEAD_LENGTH + 1).encode(&mut BytesMut::new());
    assert!(matches!(result, Err(WireError::TooLong { limit: MAX_HEAD_LENGTH, .. })));
}

#[test]
fn what_is_held_grows_with_what_arrived_not_with_what_was_announced() {
    let outcome = read_announced(Direction::Response, RESPONSE_HEAD, MAX_HEAD_LENGTH as u64, 100);
    assert_eq!(outcome.result, Err(WireError::Truncated("a frame")));
    assert!(outcome.held_bytes <= 1024, "{} bytes are held for 100", outcome.held_bytes);
}

#[test]
fn data_of_the_longest_length_passes_through_without_being_held() {
    let piece = Bytes::from(vec![0; 64 * 1024]);
    let mut start = BytesMut::new();
    ok_response().encode(&mut start).expect("a response can be encoded");
    crate::wire::encode_data_header(MAX_DATA_LENGTH, &mut start);
    let pieces = std::iter::once(start.freeze()).chain(std::iter::repeat_n(piece, MAX_DATA_LENGTH / (64 * 1024)));
    let outcome = read_all(Direction::Response, pieces);
    let read: usize =
        outcome.frames.iter().map(|frame| if let Frame::Data(data) = frame { data.len() } else { 0 }).sum();
    assert_eq!((outcome.result, read), (Ok(()), MAX_DATA_LENGTH));
    assert!(outcome.held_bytes <= 1024);
}

#[test]
fn a_skipped_frame_is_not_held() {
    let mut stream = BytesMut::new();
    write_varint(UNKNOWN, &mut stream);
    write_varint(MAX_SKIPPED_LENGTH as u64, &mut stream);
    stream.put_bytes(0, MAX_SKIPPED_LENGTH);
    ok_response().encode(&mut stream).expect("a response can be encoded");
    let pieces: Vec<Bytes> = stream.chunks(777).map(Bytes::copy_from_slice).collect();
    let outcome = read_all(Direction::Response, pieces);
    assert_eq!((outcome.result, outcome.frames), (Ok(()), vec![ok_response()]));
    assert!(outcome.held_bytes <= 2048);
}

#[test]
fn a_control_message_longer_than_the_bound_is_refused_before_its_payload_comes() {
    let hello = Hello {
        cluster: "c".parse().expect("a cluster id"),
        instance: 1,
        software: String::new(),
        auth_mode: Default::default(),
        connected_stubs: Vec::new(),
    };
    let mut stream =
        BytesMut::from(&write_all(Direction::ControlFromAgent, &[Frame::Hello(hello)]).expect("a hello")[..]);
    write_varint(DRAIN, &mut stream);
    write_varint(MAX_MESSAGE_LENGTH as u64 + 1, &mut stream);
    let outcome = read_all(Direction::ControlFromAgent, [stream.freeze()]);
    assert!(matches!(outcome.result, Err(WireError::TooLong { limit: MAX_MESSAGE_LENGTH, .. })));
    let drain = Frame::Drain(Drain { reason: "x".repeat(MAX_MESSAGE_LENGTH) });
    assert!(matches!(drain.encode(&mut BytesMut::new()), Err(WireError::TooLong { limit: MAX_MESSAGE_LENGTH, .. })));
}

#[test]
fn header_fields_past_their_number_are_neither_read_nor_written() {
    let field = [0x03, 0x03, 0x01, b'a', b'b'];
    for (count, allowed) in [(MAX_HEADER_COUNT, true), (MAX_HEADER_COUNT + 1, false)] {
        assert_count(field, count, allowed);
        let mut head = request_head(None);
        for _ in 0..count {
            head.headers.append(HeaderName::from_static("a"), HeaderValue::from_static("b"));
        }
        assert_eq!(encodes(head), allowed);
    }
}

#[test]
fn groups_past_their_number_are_neither_read_nor_written() {
    let field = [0x12, 0x01, b'g'];
    for (count, allowed) in [(MAX_IDENTITY_ENTRIES, true), (MAX_IDENTITY_ENTRIES + 1, false)] {
        assert_count(field, count, allowed);
        let mut head = request_head(None);
        head.identity.groups = vec!["g".to_owned(); count];
        assert_eq!(encodes(head), allowed);
    }
}

#[test]
fn extra_entries_past_their_number_are_neither_read_nor_written() {
    let field = [0x13, 0x02, 0x01, b'k'];
    for (count, allowed) in [(MAX_IDENTITY_ENTRIES, true), (MAX_IDENTITY_ENTRIES + 1, false)] {
        assert_count(field, count, allowed);
        let mut head = request_head(None);
        head.identity.extra = vec![("k".to_owned(), String::new()); count];
        assert_eq!(encodes(head), allowed);
    }
}

/// Reads a stream whose first frame announces `length` bytes and of which `sent` come.
fn read_announced(direction: Direction, frame_type: u64, length: u64, sent: usize) -> Outcome {
    let mut stream = BytesMut::new();
    write_varint(frame_type, &mut stream);
    write_varint(length, &mut stream);
    stream.put_bytes(0, sent);
    read_all(direction, [stream.freeze()])
}

/// A request head of exactly `length` bytes of payload.
fn request_head_of(length: usize) -> Frame {
    let with_agent = |agent: usize| {
        let mut head = request_head(None);
        let agent = HeaderValue::from_str(&"x".repeat(agent)).expect("letters are a header value");
        head.headers.append(http::header::USER_AGENT, agent);
        head
    };
    let sample = 20_000;
    let mut payload = BytesMut::new();
    with_agent(sample).write_fields(&mut payload).expect("the sample can be encoded");
    Frame::RequestHead(Box::new(with_agent(length - (payload.len() - sample))))
}

/// A request head that has `field` `count` times beside what it needs.
fn assert_count<const N: usize>(field: [u8; N], count: usize, allowed: bool) {
    let mut payload = BytesMut::new();
    request_head(None).write_fields(&mut payload).expect("a request head can be encoded");
    payload.extend_from_slice(&field.repeat(count));
    let mut stream = BytesMut::from(&[0x02][..]);
    write_varint(REQUEST_HEAD, &mut stream);
    write_varint(payload.len() as u64, &mut stream);
    stream.extend_from_slice(&payload);
    let result = read_all(Direction::Request, [stream.freeze()]).result;
    match allowed {
        true => assert_eq!(result, Ok(())),
        false => assert!(matches!(result, Err(WireError::TooMany { .. })), "{result:?}"),
    }
}

fn encodes(head: RequestHead) -> bool {
    match Frame::RequestHead(Box::new(head)).encode(&mut BytesMut::new()) {
        Ok(()) => true,
        Err(WireError::TooMany { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn ok_response() -> Frame {
    Frame::ResponseHead(Box::new(ResponseHead { status: StatusCode::OK, headers: Default::default() }))
}
