//! What the specification's tables say, against what the code does.

use crate::wire::frame::FrameType;
use crate::wire::limits::*;
use crate::wire::record::RecordType;
use crate::wire::{ErrorCode, FailureReason};

const SPECIFICATION: &str = include_str!("../../../proto-spec/qtunnel-1.md");

#[test]
fn the_specification_lists_every_error_code() {
    for code in ErrorCode::ALL {
        assert_row(&format!("| {:#04x} | {} |", code.value(), code.name()));
    }
}

#[test]
fn the_specification_lists_every_reason_of_a_failure() {
    for reason in FailureReason::ALL {
        assert_row(&format!("| {} | {} |", *reason as u64, reason.name()));
    }
}

#[test]
fn the_specification_lists_every_frame_type() {
    let types: Vec<FrameType> = (0..=0xff).filter_map(FrameType::from_value).collect();
    assert_eq!(types.len(), 16);
    for frame_type in types {
        assert_row(&format!("| {:#04x} | {} |", frame_type as u64, frame_type.name()));
    }
}

#[test]
fn the_specification_lists_every_record_type() {
    let types: Vec<RecordType> = (0..=0xff).filter_map(RecordType::from_value).collect();
    assert_eq!(types.len(), 8);
    for record_type in types {
        assert_row(&format!("| {:#04x} | {} |", record_type as u64, record_type.name()));
    }
}

#[test]
fn the_specification_names_every_limit() {
    for row in [
        format!("| REQUEST_HEAD, RESPONSE_HEAD | {} bytes of payload |", grouped(MAX_HEAD_LENGTH)),
        format!("| any other message | {} bytes of payload |", grouped(MAX_MESSAGE_LENGTH)),
        format!("| DATA | {} bytes of payload |", grouped(MAX_DATA_LENGTH)),
        format!("| a skipped frame | {} bytes of payload |", grouped(MAX_SKIPPED_LENGTH)),
        format!("| BYTES | {} bytes of payload |", grouped(MAX_DATA_LENGTH)),
        format!("| BYTES of one direction before the first CREDIT | {} bytes |", grouped(INITIAL_CREDIT as usize)),
        format!("| reason of CLOSE | {} bytes |", grouped(MAX_REASON_LENGTH)),
        format!("| a skipped record | {} bytes of payload |", grouped(MAX_SKIPPED_LENGTH)),
        format!("| header fields in a head or in trailers | {MAX_HEADER_COUNT} |"),
        format!("| groups of an identity; entries of its extra | {MAX_IDENTITY_ENTRIES} each |"),
        format!(
            "| certificates in a chain; other stubs in a WELCOME; connected stubs in a HELLO | {MAX_LIST_ENTRIES} each |"
        ),
        format!("| AUDIT_ID | {MAX_AUDIT_ID_LENGTH} bytes |"),
        format!(
            "| REPORT_INTERVAL | {} ms to {} h |",
            MIN_REPORT_INTERVAL.as_millis(),
            MAX_REPORT_INTERVAL.as_secs() / 3600
        ),
    ] {
        assert_row(&row);
    }
}

fn assert_row(row: &str) {
    assert!(SPECIFICATION.contains(row), "the specification has no row {row:?}");
}

/// A number with a comma between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}
