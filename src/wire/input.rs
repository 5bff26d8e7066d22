//! Received pieces of a stream, cut anew into what the readers look for.

use bytes::{Buf, Bytes, BytesMut};

/// What has arrived and is not read yet. Memory grows with what has arrived, never with what was announced.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// What came last and is not read yet.
    piece: Bytes,
    /// The beginning of something that spans several pieces.
    gathered: BytesMut,
}

/// A type varint and a length varint.
const MAX_HEADER_LENGTH: usize = 16;

impl Input {
    /// Adds the next piece, once everything of the one before has been taken.
    pub(super) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "everything is taken out before more is pushed in");
        self.piece = piece;
    }

    /// Whether nothing has been begun that is not complete.
    pub(super) fn is_between(&self) -> bool {
        self.gathered.is_empty()
    }

    /// How many bytes are kept for later, counting what is allocated for them.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.piece.len() + self.gathered.capacity()
    }

    /// Reads varints that may span pieces; what is incomplete is kept for the next piece.
    pub(super) fn header<T>(&mut self, read: impl Fn(&mut Bytes) -> Option<T>) -> Option<T> {
        let kept = self.gathered.len();
        let added = self.piece.len().min(MAX_HEADER_LENGTH - kept);
        let mut header = match kept {
            0 => self.piece.clone(),
            _ => {
                self.gathered.extend_from_slice(&self.piece[..added]);
                self.gathered.clone().freeze()
            }
        };
        let available = header.len();
        match read(&mut header) {
            Some(value) => {
                let used = available - header.remaining();
                self.gathered.clear();
                self.piece.advance(used - kept);
                Some(value)
            }
            None => {
                if kept == 0 {
                    self.gathered.extend_from_slice(&self.piece[..added]);
                }
                self.piece.clear();
                None
            }
        }
    }

    /// The next `length` bytes once all of them are there.
    pub(super) fn gather(&mut self, length: usize) -> Option<Bytes> {
        if self.gathered.is_empty() && self.piece.len() >= length {
            return Some(self.piece.split_to(length));
        }
        let added = self.piece.len().min(length - self.gathered.len());
        self.gathered.extend_from_slice(&self.piece.split_to(added));
        (self.gathered.len() == length).then(|| std::mem::take(&mut self.gathered).freeze())
    }

    /// What is there of the next `limit` bytes; `None` for nothing.
    pub(super) fn take_up_to(&mut self, limit: u64) -> Option<Bytes> {
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(self.piece.len());
        (length > 0).then(|| self.piece.split_to(length))
    }
}
