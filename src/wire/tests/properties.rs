//! What holds for every stream, whatever is in it and however it arrives.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::arbitrary::{any_frame, conversation, cut};
use super::{Direction, joined, read_all};
use crate::wire::limits::MAX_HEAD_LENGTH;
use crate::wire::{Frame, WireError};

proptest! {
    #[test]
    fn what_is_written_is_read_back_however_it_is_cut((direction, frames, bytes) in conversation(), places: Vec<Index>) {
        let outcome = read_all(direction, cut(&bytes, &places));
        prop_assert_eq!(outcome.result, Ok(()));
        prop_assert_eq!(joined(outcome.frames), joined(frames));
    }

    #[test]
    fn a_stream_that_ends_early_gives_its_beginning_or_is_truncated(
        (direction, frames, bytes) in conversation(),
        end: Index,
    ) {
        let whole = joined(frames);
        let outcome = read_all(direction, [bytes.slice(..end.index(bytes.len() + 1))]);
        prop_assert!(matches!(outcome.result, Ok(()) | Err(WireError::Truncated(_))), "{:?}", outcome.result);
        let beginning = joined(outcome.frames);
        prop_assert!(is_beginning(&beginning, &whole), "{:?} does not begin {:?}", beginning, whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_hold_more_than_the_bound(
        direction in select(&Direction::ALL[..]),
        bytes in vec(any::<u8>(), 0..2000),
        places: Vec<Index>,
    ) {
        let bytes = Bytes::from(bytes);
        let outcome = read_all(direction, cut(&bytes, &places));
        prop_assert!(outcome.held_bytes <= MAX_HELD_BYTES);
    }

    #[test]
    fn damaged_streams_never_panic_and_mean_the_same_however_they_are_cut(
        (direction, _, bytes) in conversation(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        places: Vec<Index>,
    ) {
        let bytes = damaged(&bytes, &damage);
        let whole = read_all(direction, [bytes.clone()]);
        let pieces = read_all(direction, cut(&bytes, &places));
        prop_assert_eq!(&whole.result, &pieces.result);
        prop_assert_eq!(joined(whole.frames), joined(pieces.frames));
        prop_assert!(pieces.held_bytes <= MAX_HELD_BYTES);
    }

    #[test]
    fn what_was_read_can_be_written_and_reads_the_same(
        (direction, _, bytes) in conversation(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let read = read_all(direction, [damaged(&bytes, &damage)]);
        if read.result.is_ok() {
            let written = super::write_all(direction, &read.frames);
            let again = read_all(direction, [written.expect("what a reader accepts, a writer accepts")]);
            prop_assert_eq!(again.result, Ok(()));
            prop_assert_eq!(joined(again.frames), joined(read.frames));
        }
    }

    #[test]
    fn a_frame_that_cannot_be_encoded_leaves_nothing_behind(frame in any_frame()) {
        let mut out = BytesMut::from(&b"before"[..]);
        match frame.encode(&mut out) {
            Ok(()) => prop_assert!(out.len() > 6),
            Err(_) => prop_assert_eq!(&out[..], b"before"),
        }
    }
}

/// The longest frame that is gathered, twice: a buffer that grows as bytes arrive doubles.
const MAX_HELD_BYTES: usize = 2 * MAX_HEAD_LENGTH;

fn damaged(bytes: &Bytes, damage: &[(Index, u8)]) -> Bytes {
    let mut bytes = bytes.to_vec();
    for (place, value) in damage {
        if let Some(byte) = bytes.len().checked_sub(1).and_then(|last| bytes.get_mut(place.index(last + 1))) {
            *byte = *value;
        }
    }
    bytes.into()
}

/// Whether `beginning` is how `whole` begins; its last DATA may be cut short.
fn is_beginning(beginning: &[Frame], whole: &[Frame]) -> bool {
    beginning.iter().enumerate().all(|(at, frame)| match (frame, whole.get(at)) {
        (Frame::Data(cut), Some(Frame::Data(data))) => data.starts_with(cut),
        (frame, expected) => Some(frame) == expected,
    })
}
