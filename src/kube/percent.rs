//! Percent-encoding (RFC 3986, section 2.1) as Go's `net/url` does it.

/// Decodes `%XX`; nothing else changes (a `+` stays a `+`). `None` where a `%` is not followed by two hexadecimal digits.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            plain => plain,
        });
    }
    Some(decoded)
}

/// Encodes every byte for which `keep` says no, with upper-case digits.
pub(super) fn encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        // A byte above 0x7f is a part of a longer character and cannot stand alone in a string.
        if byte.is_ascii() && keep(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn hex_digit(byte: u8) -> Option<u8> {
    // `to_digit(16)` is at most 15, so the conversion keeps the value.
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_in_either_case_and_broken_ones_are_refused() {
        assert_eq!(decode("a%2Fb%2fc+").as_deref(), Some(b"a/b/c+".as_slice()));
        for broken in ["%", "%2", "a%zz", "%+1", "%%20"] {
            assert_eq!(decode(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let text = "a%b/é ~\0";
        assert_eq!(decode(&encode(text, |byte| byte.is_ascii_alphanumeric())).as_deref(), Some(text.as_bytes()));
    }
}
