//! The request target, once it is sure that the tunnel and the API server will read it alike.

use super::percent;

/// The path and query of a request that everyone on the way reads the same way.
///
/// The raw text is what travels on, byte for byte; the decoded path is what policy looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath {
    raw: String,
    /// Where in `raw` the path ends: at the `?` or at the end.
    path_length: usize,
    decoded: String,
}

impl RequestPath {
    /// Reads an origin-form request target (RFC 9112, section 3.2.1) and refuses whatever two servers could read in two ways.
    ///
    /// ```
    /// use qtunnel::kube::RequestPath;
    /// let path = RequestPath::parse("/api/v1/pods?watch=true")?;
    /// assert_eq!((path.path(), path.query()), ("/api/v1/pods", Some("watch=true")));
    /// assert!(RequestPath::parse("/api/v1/namespaces/a%2Fb").is_err());
    /// # Ok::<(), qtunnel::kube::AmbiguousPath>(())
    /// ```
    pub fn parse(raw: &str) -> Result<Self, AmbiguousPath> {
        if !raw.starts_with('/') {
            return Err(AmbiguousPath::NotAPath);
        }
        if raw.contains('#') {
            return Err(AmbiguousPath::Fragment);
        }
        if raw.bytes().any(|byte| byte == b' ' || byte.is_ascii_control()) {
            return Err(AmbiguousPath::ControlCharacter);
        }
        let path_length = raw.find('?').unwrap_or(raw.len());
        let decoded = decode_path(raw.split_at(path_length).0)?;
        Ok(Self { raw: raw.to_owned(), path_length, decoded })
    }

    /// The target as it was received: path, and query with its `?`.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// The path, percent-decoded once as the API server does it.
    pub fn path(&self) -> &str {
        &self.decoded
    }

    /// The query as it was received, without the `?`. `None` without a `?`.
    pub fn query(&self) -> Option<&str> {
        self.raw.split_at(self.path_length).1.strip_prefix('?')
    }

    /// The decoded path's segments; slashes at both ends do not count (`splitPath` in `requestinfo.go`).
    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.decoded.split('/').filter(|segment| !segment.is_empty())
    }

    /// The first value of a query parameter, read as Go's `url.ParseQuery` does: a pair with `;` or a broken escape is left out.
    pub(super) fn query_value(&self, key: &str) -> Option<String> {
        self.query()?.split('&').filter(|pair| !pair.contains(';')).find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_query(name)? == key).then(|| decode_query(value)).flatten()
        })
    }
}

/// Why a request target is refused. It becomes a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousPath {
    /// Not origin form: `*`, `host:port` or a whole URL.
    #[error("the request target must be a path that begins with \"/\"")]
    NotAPath,
    /// A `#`, which no client sends to a server.
    #[error("the request target holds a fragment (\"#\"); encode the character as %23")]
    Fragment,
    /// A control character or a space, encoded or not.
    #[error("the request path holds a space or a control character")]
    ControlCharacter,
    /// A `%` that two hexadecimal digits do not follow.
    #[error("the request path holds an invalid percent-encoding")]
    InvalidEncoding,
    /// Decoded, the path is not text.
    #[error("the request path is not UTF-8 once it is decoded")]
    NotUtf8,
    /// `%2F`: one segment or two?
    #[error("the request path holds an encoded slash (%2F), which servers read differently")]
    EncodedSlash,
    /// `\` or `%5C`, which some servers take for a slash.
    #[error("the request path holds a backslash, which servers read differently")]
    Backslash,
    /// `//`, which some servers take for `/`.
    #[error("the request path holds an empty segment (\"//\"), which servers read differently")]
    EmptySegment,
    /// `.` or `..` as a segment, encoded or not.
    #[error("the request path holds a \".\" or \"..\" segment, which servers read differently")]
    DotSegment,
}

fn decode_path(raw: &str) -> Result<String, AmbiguousPath> {
    let mut decoded = String::with_capacity(raw.len());
    let mut segments = raw.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(AmbiguousPath::EmptySegment);
        }
        decoded.push('/');
        decoded.push_str(&decode_segment(segment)?);
    }
    Ok(decoded)
}

fn decode_segment(raw: &str) -> Result<String, AmbiguousPath> {
    let decoded = percent::decode(raw).ok_or(AmbiguousPath::InvalidEncoding)?;
    let decoded = String::from_utf8(decoded).map_err(|_| AmbiguousPath::NotUtf8)?;
    if decoded.contains('/') {
        return Err(AmbiguousPath::EncodedSlash);
    }
    if decoded.contains('\\') {
        return Err(AmbiguousPath::Backslash);
    }
    if decoded.contains(char::is_control) {
        return Err(AmbiguousPath::ControlCharacter);
    }
    if decoded == "." || decoded == ".." {
        return Err(AmbiguousPath::DotSegment);
    }
    Ok(decoded)
}

fn decode_query(text: &str) -> Option<String> {
    // Go keeps bytes that are not UTF-8. Leaving such a pair out instead would turn its `watch=%ff`, a watch, into a list.
    Some(String::from_utf8_lossy(&percent::decode(&text.replace('+', " "))?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_refused_and_the_error_names_why() {
        use AmbiguousPath as Why;
        for (raw, why) in [
            ("", Why::NotAPath),
            ("*", Why::NotAPath),
            ("api/v1", Why::NotAPath),
            ("example.com:443", Why::NotAPath),
            ("https://example.com/api", Why::NotAPath),
            ("/api#x", Why::Fragment),
            ("/api?x#y", Why::Fragment),
            ("/api/v1 /pods", Why::ControlCharacter),
            ("/api/\r\nHost: x", Why::ControlCharacter),
            ("/api?a=\n", Why::ControlCharacter),
            ("/api/%00", Why::ControlCharacter),
            ("/api/a%0Ab", Why::ControlCharacter),
            ("/api/%7f", Why::ControlCharacter),
            ("/api/%zz", Why::InvalidEncoding),
            ("/api/%2", Why::InvalidEncoding),
            ("/api/%ff", Why::NotUtf8),
            ("/api/a%2Fb", Why::EncodedSlash),
            ("/api/a%2fb", Why::EncodedSlash),
            ("/api/a\\b", Why::Backslash),
            ("/api/a%5Cb", Why::Backslash),
            ("/api/a%5cb", Why::Backslash),
            ("//api", Why::EmptySegment),
            ("/api//v1", Why::EmptySegment),
            ("/api//", Why::EmptySegment),
            ("/api/./v1", Why::DotSegment),
            ("/api/..", Why::DotSegment),
            ("/api/%2e%2E/secrets", Why::DotSegment),
            ("/api/.%2e/", Why::DotSegment),
        ] {
            assert_eq!(RequestPath::parse(raw), Err(why), "{raw:?}");
        }
    }

    #[test]
    fn an_unambiguous_target_is_kept_byte_for_byte() {
        let raw = "/api/v1/namespaces/demo/pods/web%3A80/exec?command=a%2Fb&command=..%0A//&x=%zz";
        let path = RequestPath::parse(raw).unwrap();
        assert_eq!(path.as_str(), raw);
        assert_eq!(path.path(), "/api/v1/namespaces/demo/pods/web:80/exec");
        assert_eq!(path.query(), Some("command=a%2Fb&command=..%0A//&x=%zz"));
        for (raw, query) in [("/", None), ("/api/", None), ("/api?", Some("")), ("/..a/.b./...", None)] {
            assert_eq!(RequestPath::parse(raw).unwrap().query(), query, "{raw:?}");
        }
    }

    #[test]
    fn an_escape_is_decoded_only_once() {
        assert_eq!(RequestPath::parse("/a%252Fb").unwrap().path(), "/a%2Fb");
    }

    #[test]
    fn query_parameters_are_read_as_the_api_server_reads_them() {
        let path = RequestPath::parse("/x?%zz=1&a;b=2&w%61tch=t+r%75e&watch=false&empty&bad=%z&bad=good").unwrap();
        assert_eq!(path.query_value("watch").as_deref(), Some("t rue"));
        assert_eq!(path.query_value("empty").as_deref(), Some(""));
        assert_eq!(path.query_value("bad").as_deref(), Some("good"));
        assert_eq!(path.query_value("a;b"), None);
        assert_eq!(path.query_value("b"), None);
    }

    proptest! {
        #[test]
        fn no_target_panics_and_an_accepted_one_keeps_its_shape(raw in "/?[a-z0-9/.%\\\\2fF5cCeE?#;&=\u{0}-\u{20}é]{0,40}") {
            if let Ok(path) = RequestPath::parse(&raw) {
                prop_assert_eq!(path.as_str(), raw.as_str());
                let raw_path = raw.split('?').next().unwrap();
                prop_assert_eq!(path.path().matches('/').count(), raw_path.matches('/').count());
                prop_assert!(path.segments().all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
