//! Watches, and where in them nothing is cut in two: between two events.

use bytes::Buf;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

/// Follows the bytes of a watch.
///
/// A watch that ends between two events is one whose time is over, as the API server ends each of them sooner or later;
/// clients go on with a new one from the last event they saw (`client-go/tools/cache/reflector.go`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventStream {
    /// Each event is a line: the API server writes its JSON without a line feed in it
    /// (`apimachinery/pkg/runtime/serializer/json/json.go`).
    Lines {
        /// Whether the last line has ended.
        ended: bool,
    },
    /// Each event follows its length, four bytes with the most significant first
    /// (`apimachinery/pkg/util/framer/framer.go`).
    LengthDelimited {
        /// How many bytes of a length have come, and their value.
        length: (u8, u32),
        /// How many bytes of the event are still to come.
        left: u32,
    },
}

impl EventStream {
    /// How the events of an answer with these headers are told apart; `None` where that is not known.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let media_type = headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
        match media_type.as_str() {
            _ if headers.contains_key(CONTENT_ENCODING) => None,
            "application/json" => Some(Self::Lines { ended: true }),
            "application/vnd.kubernetes.protobuf" => Some(Self::LengthDelimited { length: (0, 0), left: 0 }),
            _ => None,
        }
    }

    /// Follows the next bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        match self {
            Self::Lines { ended } => *ended = bytes.last().map_or(*ended, |byte| *byte == b'\n'),
            Self::LengthDelimited { length, left } => {
                while bytes.has_remaining() {
                    if *left > 0 {
                        let skipped = bytes.len().min(*left as usize);
                        bytes.advance(skipped);
                        *left -= skipped as u32;
                        continue;
                    }
                    *length = (length.0 + 1, length.1 << 8 | u32::from(bytes.get_u8()));
                    if length.0 == 4 {
                        *left = length.1;
                        *length = (0, 0);
                    }
                }
            }
        }
    }

    /// Whether everything so far is whole events.
    pub fn is_between_events(&self) -> bool {
        match self {
            Self::Lines { ended } => *ended,
            Self::LengthDelimited { length, left } => length.0 == 0 && *left == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn stream_of(media_type: &'static str) -> Option<EventStream> {
        EventStream::of(&HeaderMap::from_iter([(CONTENT_TYPE, media_type.parse().unwrap())]))
    }

    /// Where `bytes`, cut into single ones, may end.
    fn ends(mut stream: EventStream, bytes: &[u8]) -> Vec<usize> {
        assert!(stream.is_between_events(), "no event is whole as well");
        let mut ends = Vec::new();
        for (index, byte) in bytes.iter().enumerate() {
            stream.pass(&[*byte]);
            ends.extend(stream.is_between_events().then_some(index + 1));
        }
        ends
    }

    #[test]
    fn json_ends_with_a_line() {
        let stream = stream_of("application/json; charset=utf-8").unwrap();
        assert_eq!(ends(stream, b"{\"a\":\"\\n\"}\n{}\n"), [11, 14]);
    }

    #[test]
    fn protobuf_ends_behind_an_event_of_the_announced_length() {
        let stream = stream_of("application/vnd.kubernetes.protobuf;stream=watch").unwrap();
        assert_eq!(ends(stream.clone(), b"\0\0\0\x03abc\0\0\0\0\0\0\0\x01a"), [7, 11, 16]);
        let mut at_once = stream;
        at_once.pass(b"\0\0\0\x03abc\0\0");
        assert!(!at_once.is_between_events());
        at_once.pass(b"\0\x01a");
        assert!(at_once.is_between_events());
    }

    #[test]
    fn what_is_not_understood_is_never_between_events() {
        assert_eq!(stream_of("application/cbor-seq"), None);
        assert_eq!(stream_of("text/plain"), None);
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(EventStream::of(&headers), None);
    }

    proptest! {
        #[test]
        fn events_are_followed_however_they_are_cut(pieces in vec(vec(0_u8..12, 0..9), 0..9)) {
            for media_type in ["application/json", "application/vnd.kubernetes.protobuf"] {
                let (mut whole, mut cut) = (stream_of(media_type).unwrap(), stream_of(media_type).unwrap());
                whole.pass(&pieces.concat());
                pieces.iter().for_each(|piece| cut.pass(piece));
                prop_assert_eq!(whole, cut);
            }
        }
    }
}
