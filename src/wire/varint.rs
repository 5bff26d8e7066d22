//! Variable-length integers as in QUIC (RFC 9000, section 16).

use bytes::{Buf, BufMut};

/// The largest value a varint can hold: 2^62 - 1.
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Writes `value` in as few bytes as hold it. Values above [`MAX_VARINT`] cannot be told apart on the wire and are
/// written as [`MAX_VARINT`]; no field of the protocol can reach it.
pub fn write_varint(value: u64, out: &mut impl BufMut) {
    match value {
        0..=0x3f => out.put_u8(value as u8),
        0x40..=0x3fff => out.put_u16(value as u16 | 0x4000),
        0x4000..=0x3fff_ffff => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value.min(MAX_VARINT) | 0xc000_0000_0000_0000),
    }
}

/// How many bytes [`write_varint`] needs for `value`.
pub fn varint_length(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Takes one varint off the front of `input`; `None`, and nothing taken, when it is not complete yet.
///
/// Encodings longer than needed are accepted, as in QUIC.
pub fn read_varint(input: &mut impl Buf) -> Option<u64> {
    let first = *input.chunk().first()?;
    let length = 1usize << (first >> 6);
    if input.remaining() < length {
        return None;
    }
    let value_bits = 8 * length - 2;
    Some(input.get_uint(length) & ((1 << value_bits) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1_are_read() {
        let examples: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (mut bytes, value) in examples {
            assert_eq!(read_varint(&mut bytes), Some(value));
            assert!(bytes.is_empty());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in 0..=MAX_VARINT) {
            let mut bytes = Vec::new();
            write_varint(value, &mut bytes);
            prop_assert_eq!(bytes.len(), varint_length(value));
            for cut in 0..bytes.len() {
                prop_assert_eq!(read_varint(&mut &bytes[..cut]), None);
            }
            prop_assert_eq!(read_varint(&mut &bytes[..]), Some(value));
        }
    }
}
