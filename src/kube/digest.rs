//! SHA-256 (FIPS 180-4).

use aws_lc_rs::digest::{SHA256, digest};

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = digest(&SHA256, bytes);
    let mut copy = [0; 32];
    // A SHA-256 has 32 bytes, so nothing is left over on either side.
    copy.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha_256() {
        let expected = [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea];
        assert_eq!(sha256(b"abc")[..8], expected);
    }
}
