//! What a stream has received and nobody has read yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Received pieces in order, in memory that stays near what they hold.
#[derive(Debug, Default)]
pub struct ReceiveBuffer {
    whole: VecDeque<Bytes>,
    /// Pieces copied together; they come behind the whole ones.
    tail: BytesMut,
}

/// Pieces shorter than this are copied: kept as they are, each would cost more than it holds.
const COPY_LIMIT: usize = 2048;

impl ReceiveBuffer {
    /// Appends a piece that is part of a packet of `packet_length` bytes, which it keeps alive.
    pub fn push(&mut self, piece: Bytes, packet_length: usize) {
        if piece.len() < COPY_LIMIT || piece.len() < packet_length / 2 {
            self.tail.extend_from_slice(&piece);
            return;
        }
        if !self.tail.is_empty() {
            self.whole.push_back(self.tail.split().freeze());
        }
        self.whole.push_back(piece);
    }

    /// Takes the next piece, of at most `limit` bytes.
    pub fn pop(&mut self, limit: usize) -> Option<Bytes> {
        match self.whole.front_mut() {
            Some(piece) if piece.len() > limit => Some(piece.split_to(limit)),
            Some(_) => self.whole.pop_front(),
            None if self.tail.is_empty() => None,
            None => Some(self.tail.split_to(self.tail.len().min(limit)).freeze()),
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_in_order_however_they_are_kept() {
        let mut buffer = ReceiveBuffer::default();
        let long = Bytes::from(vec![7; 5000]);
        buffer.push(Bytes::from_static(b"a"), 1);
        buffer.push(Bytes::from_static(b"b"), 1);
        buffer.push(long.clone(), 5000);
        buffer.push(Bytes::from_static(b"c"), 1);
        let pieces: Vec<Bytes> = std::iter::from_fn(|| buffer.pop(4000)).collect();
        let lengths: Vec<usize> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [2, 4000, 1000, 1]);
        assert_eq!(pieces.concat(), [b"ab".as_ref(), &long, b"c"].concat());
    }

    #[test]
    fn a_short_piece_of_a_long_packet_does_not_keep_the_packet() {
        let mut buffer = ReceiveBuffer::default();
        let packet = Bytes::from(vec![7; 100_000]);
        buffer.push(packet.slice(..3000), packet.len());
        drop(packet);
        assert!(buffer.whole.is_empty());
        assert_eq!(buffer.pop(usize::MAX).map(|piece| piece.len()), Some(3000));
    }
}
