//! The vectors in `proto-spec/vectors`, read by this implementation. Their format: proto-spec/qtunnel-1.md, appendix A.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;

use super::rendering::{hex, render};
use super::{Direction, joined, read_all, records, write_all};
use crate::wire::{ErrorCode, Frame, WireError, read_varint, write_varint};

#[test]
fn every_vector_of_the_specification_is_read_as_it_says() {
    for vector in all_vectors() {
        let (means, error) = match Direction::ALL.into_iter().find(|direction| direction.name() == vector.stream) {
            Some(direction) => read_stream(direction, &vector),
            None => match records::reader_for(&vector.stream) {
                Some(reader) => records::read_vector(reader, vector.bytes.clone()),
                None => read_number(&vector),
            },
        };
        assert_eq!(means, vector.means, "what {} means", vector.place);
        assert_eq!(error, vector.error, "the error of {}", vector.place);
    }
}

#[test]
fn every_vector_in_the_form_we_write_is_written_so() {
    for vector in all_vectors().into_iter().filter(|vector| vector.error.is_none() && !vector.other_form) {
        let written = match Direction::ALL.into_iter().find(|direction| direction.name() == vector.stream) {
            Some(direction) => {
                let frames = read_all(direction, [vector.bytes.clone()]).frames;
                write_all(direction, &frames).expect("a good vector can be written")
            }
            None => match records::reader_for(&vector.stream) {
                Some(reader) => records::written(reader, vector.bytes.clone()),
                None => {
                    let mut out = Vec::new();
                    write_varint(vector.means[0].parse().expect("a varint means a number"), &mut out);
                    out.into()
                }
            },
        };
        assert_eq!(hex(&written), hex(&vector.bytes), "{}", vector.place);
    }
}

#[test]
fn every_vector_is_read_alike_byte_by_byte() {
    for vector in all_vectors() {
        let bytes = (0..vector.bytes.len()).map(|at| vector.bytes.slice(at..at + 1));
        if let Some((one, another)) = records::reader_for(&vector.stream).zip(records::reader_for(&vector.stream)) {
            let whole = records::read_all(one, [vector.bytes.clone()]);
            assert_eq!(records::read_all(another, bytes), whole, "{}", vector.place);
            continue;
        }
        let Some(direction) = Direction::ALL.into_iter().find(|direction| direction.name() == vector.stream) else {
            continue;
        };
        let whole = read_all(direction, [vector.bytes.clone()]);
        let piecemeal = read_all(direction, bytes);
        assert_eq!(joined(piecemeal.frames), joined(whole.frames), "{}", vector.place);
        assert_eq!(piecemeal.result, whole.result, "{}", vector.place);
    }
}

#[test]
fn there_is_a_vector_for_every_frame_and_every_error_of_a_stream() {
    let vectors = all_vectors();
    let seen: HashSet<&str> =
        vectors.iter().flat_map(|vector| &vector.means).filter_map(|line| first_word(line)).collect();
    for frame in [
        "DATA",
        "REQUEST_HEAD",
        "RESPONSE_HEAD",
        "TRAILERS",
        "FAILURE",
        "DIAL",
        "DIALED",
        "HELLO",
        "WELCOME",
        "REFUSED",
        "REPORT",
        "DRAIN",
        "RENEW",
        "CERTIFICATE",
        "ENROLL",
        "PACE",
        "BYTES",
        "END",
        "RESET",
        "STOP",
        "CREDIT",
        "PING",
        "PONG",
        "CLOSE",
    ] {
        assert!(seen.contains(frame), "{frame} has no vector");
    }
    for error in [ErrorCode::ProtocolViolation, ErrorCode::LimitExceeded, ErrorCode::UnknownStreamKind] {
        assert!(vectors.iter().any(|vector| vector.error == Some(error)), "{error} has no vector");
    }
}

/// One stanza of a file of vectors.
struct Vector {
    /// File and name, for messages.
    place: String,
    stream: String,
    bytes: Bytes,
    means: Vec<String>,
    error: Option<ErrorCode>,
    /// Valid, but not the form that this implementation writes.
    other_form: bool,
}

fn read_stream(direction: Direction, vector: &Vector) -> (Vec<String>, Option<ErrorCode>) {
    let outcome = read_all(direction, [vector.bytes.clone()]);
    let means = joined(outcome.frames).iter().map(|frame: &Frame| render(frame)).collect();
    (means, outcome.result.err().map(|error: WireError| error.code()))
}

fn read_number(vector: &Vector) -> (Vec<String>, Option<ErrorCode>) {
    assert_eq!(vector.stream, "varint", "{}", vector.place);
    let mut rest = vector.bytes.clone();
    match read_varint(&mut rest) {
        Some(number) => {
            assert!(rest.is_empty(), "{} has bytes left over", vector.place);
            (vec![number.to_string()], None)
        }
        None => (Vec::new(), Some(ErrorCode::ProtocolViolation)),
    }
}

fn all_vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-spec/vectors");
    let mut vectors = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the folder of vectors is there") {
        let path = entry.expect("the folder of vectors can be listed").path();
        let file = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a file of vectors is text");
        vectors.extend(text.split("\n\n").filter_map(|stanza| parse_stanza(&file, stanza)));
    }
    let names: HashSet<&str> = vectors.iter().map(|vector| vector.place.as_str()).collect();
    assert_eq!(names.len(), vectors.len(), "names are used once in a file");
    assert!(!vectors.is_empty());
    vectors
}

/// A stanza, unless it holds comments alone.
fn parse_stanza(file: &str, stanza: &str) -> Option<Vector> {
    let mut vector = Vector {
        place: String::new(),
        stream: String::new(),
        bytes: Bytes::new(),
        means: Vec::new(),
        error: None,
        other_form: false,
    };
    let mut digits = String::new();
    for line in stanza.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("{file}: {line:?} has no key"));
        let value = value.trim_start();
        match key {
            "name" => vector.place = format!("{file}: {value}"),
            "stream" => vector.stream = value.to_owned(),
            "form" => vector.other_form = value == "other",
            "hex" => digits.extend(value.split_whitespace()),
            "means" => vector.means.push(value.to_owned()),
            "error" => vector.error = Some(error_code(value)),
            _ => panic!("{file}: unknown key {key:?}"),
        }
    }
    vector.bytes = bytes_of(&digits);
    (!vector.place.is_empty()).then_some(vector)
}

fn error_code(name: &str) -> ErrorCode {
    let known = ErrorCode::ALL.iter().copied().find(|code| code.name() == name);
    known.unwrap_or_else(|| panic!("no error code is named {name:?}"))
}

fn bytes_of(digits: &str) -> Bytes {
    assert!(digits.len().is_multiple_of(2), "{digits:?} has half a byte");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}

fn first_word(line: &str) -> Option<&str> {
    line.split(' ').next()
}
