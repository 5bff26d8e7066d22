//! Bounds for what a client may have the HTTP/3 layer keep.
//!
//! The layer collects every frame but DATA until it is whole, whatever length the frame announces, and takes the end of a
//! stream within a DATA frame for the end of the body. Both are caught here, before it sees the bytes.

use crate::wire::read_varint;

/// The type of DATA frames (RFC 9114, section 7.2.1), which are handed on as they come.
const DATA: u64 = 0x00;

/// Two variable-length integers: the type and the length of a frame (RFC 9114, section 7.1).
const MAX_FRAME_HEADER: usize = 16;

/// Why a stream is not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// A frame that has to be kept whole is longer than anything that a client may send.
    #[error("a frame of {0} bytes")]
    FrameTooLong(u64),
    /// More than a stream of this kind has reason to carry.
    #[error("too much on a stream that carries little")]
    StreamTooLong,
}

/// Follows what comes on one stream.
#[derive(Debug)]
pub enum StreamGuard {
    /// The stream of a request: frames.
    Request {
        /// The longest frame other than DATA.
        max_length: u64,
        /// Where in a frame the stream is.
        position: Position,
    },
    /// A unidirectional stream: a few settings at its beginning, and hardly anything after them. So many bytes may come.
    Unidirectional(usize),
}

/// Where in a frame a stream is.
#[derive(Debug)]
pub enum Position {
    /// In its header, of which this has come.
    Header(Vec<u8>),
    /// In its payload, of which so many bytes are left.
    Payload(u64),
}

impl StreamGuard {
    /// For the stream of a request.
    pub fn request(max_length: u64) -> Self {
        Self::Request { max_length, position: Position::Header(Vec::new()) }
    }

    /// For a unidirectional stream.
    pub fn unidirectional(max_bytes: usize) -> Self {
        Self::Unidirectional(max_bytes)
    }

    /// Takes note of the next bytes.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), Excess> {
        match self {
            Self::Request { max_length, position } => follow_frames(position, bytes, *max_length),
            Self::Unidirectional(left) => {
                *left = left.checked_sub(bytes.len()).ok_or(Excess::StreamTooLong)?;
                Ok(())
            }
        }
    }

    /// Whether the stream may end here: between two frames.
    pub fn may_end(&self) -> bool {
        match self {
            Self::Request { position: Position::Header(begun), .. } => begun.is_empty(),
            Self::Request { position: Position::Payload(left), .. } => *left == 0,
            Self::Unidirectional(_) => true,
        }
    }
}

fn follow_frames(position: &mut Position, mut bytes: &[u8], max_length: u64) -> Result<(), Excess> {
    while !bytes.is_empty() {
        match position {
            Position::Payload(0) => *position = Position::Header(Vec::new()),
            Position::Payload(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                bytes = bytes.get(taken..).unwrap_or_default();
            }
            Position::Header(begun) => {
                let before = begun.len();
                begun.extend(bytes.iter().take(MAX_FRAME_HEADER - before));
                let mut header = begun.as_slice();
                let (Some(kind), Some(length)) = (read_varint(&mut header), read_varint(&mut header)) else {
                    // A header that is not complete is shorter than the longest one, so all bytes are in it.
                    return Ok(());
                };
                if kind != DATA && length > max_length {
                    return Err(Excess::FrameTooLong(length));
                }
                let header_length = begun.len() - header.len();
                bytes = bytes.get(header_length - before..).unwrap_or_default();
                *position = Position::Payload(length);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::write_varint;

    const HEADERS: u64 = 0x01;
    const RESERVED: u64 = 0x21;

    fn frame(kind: u64, length: u64, payload: usize) -> BytesMut {
        let mut bytes = BytesMut::new();
        write_varint(kind, &mut bytes);
        write_varint(length, &mut bytes);
        bytes.put_bytes(0xff, payload);
        bytes
    }

    #[test]
    fn a_frame_that_would_be_kept_is_bounded_by_what_it_announces() {
        for kind in [HEADERS, RESERVED, 0x04] {
            assert_eq!(StreamGuard::request(100).follow(&frame(kind, 100, 100)), Ok(()));
            assert_eq!(StreamGuard::request(100).follow(&frame(kind, 101, 0)), Err(Excess::FrameTooLong(101)));
        }
        assert_eq!(StreamGuard::request(100).follow(&frame(DATA, 1 << 40, 5)), Ok(()));
    }

    #[test]
    fn a_unidirectional_stream_carries_little() {
        let mut guard = StreamGuard::unidirectional(10);
        assert_eq!(guard.follow(&[0; 10]), Ok(()));
        assert_eq!(guard.follow(&[0]), Err(Excess::StreamTooLong));
    }

    proptest! {
        #[test]
        fn frames_are_followed_however_they_are_cut(
            lengths in proptest::collection::vec((0_u64..3, 0_usize..300), 0..8),
            cuts in proptest::collection::vec(1_usize..40, 1..20),
        ) {
            let bytes: Vec<u8> =
                lengths.iter().flat_map(|(kind, length)| frame(*kind, *length as u64, *length)).collect();
            let mut guard = StreamGuard::request(300);
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                prop_assert_eq!(guard.follow(piece), Ok(()));
                rest = behind;
            }
            prop_assert!(guard.may_end());
            prop_assert_eq!(guard.follow(&frame(HEADERS, 2, 1)), Ok(()));
            prop_assert!(!guard.may_end());
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(pieces: Vec<Vec<u8>>) {
            let mut guard = StreamGuard::request(1000);
            for piece in pieces {
                if guard.follow(&piece).is_err() {
                    break;
                }
            }
        }
    }
}
