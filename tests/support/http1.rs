//! HTTP/1.1 as bytes, for tests in which every byte counts.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::DEADLINE;

/// Waits for something that has to happen; panics at the deadline, naming `what` was waited for.
pub async fn within<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, happening).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("not within {} s: {what}", DEADLINE.as_secs()),
    }
}

/// The head of a request or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The request line or the status line.
    pub first_line: String,
    /// The header lines in their order, names as they were written.
    pub headers: Vec<(String, String)>,
}

/// How the body behind a head ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

impl Head {
    /// A head of these lines.
    pub fn new(first_line: &str, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { first_line: first_line.to_owned(), headers }
    }

    /// Reads a head from the beginning of `bytes` if it is complete, and tells its length.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header line: {line:?}"));
            (name.to_owned(), value.trim().to_owned())
        });
        Some((Self { first_line, headers: headers.collect() }, end + 4))
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.first_line.split(' ').next().unwrap_or_default()
    }

    /// The target of a request, as it stands in the request line.
    pub fn target(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        let status = self.first_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("not a status line: {:?}", self.first_line))
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.as_str())
    }

    /// Every value of a header.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = move |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).map(|(_, value)| value.as_str())
    }

    /// The head without the headers that `unwanted` names (in lower case).
    pub fn without(&self, unwanted: impl Fn(&str) -> bool) -> Self {
        let mut head = self.clone();
        head.headers.retain(|(name, _)| !unwanted(&name.to_ascii_lowercase()));
        head
    }

    /// The head as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let lines = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{}\r\n{}\r\n", self.first_line, lines.collect::<String>()).into_bytes()
    }

    /// The headers by name (in lower case), the values of each name in their order.
    pub fn multimap(&self) -> std::collections::BTreeMap<String, Vec<String>> {
        let mut map = std::collections::BTreeMap::<String, Vec<String>>::new();
        for (name, value) in &self.headers {
            map.entry(name.to_ascii_lowercase()).or_default().push(value.clone());
        }
        map
    }

    /// How the body of this request ends.
    pub fn request_framing(&self) -> Framing {
        self.declared_framing().unwrap_or(Framing::Length(0))
    }

    /// How the body of this answer to a `method` request ends (RFC 9112, section 6.3).
    pub fn answer_framing(&self, method: &str) -> Framing {
        match self.status() {
            100..200 | 204 | 304 => Framing::Length(0),
            _ if method == "HEAD" => Framing::Length(0),
            _ => self.declared_framing().unwrap_or(Framing::UntilClose),
        }
    }

    fn declared_framing(&self) -> Option<Framing> {
        if self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Some(Framing::Chunked);
        }
        self.header("content-length").map(|length| Framing::Length(length.parse().expect("a length")))
    }
}

/// Takes bodies out of the bytes that they travel in.
#[derive(Debug)]
pub struct BodyDecoder(Expects);

#[derive(Debug)]
enum Expects {
    Bytes(usize),
    UntilClose,
    ChunkSize(Vec<u8>),
    ChunkData(usize),
    ChunkEnd(usize),
    Trailers(Vec<u8>),
    Nothing,
}

impl BodyDecoder {
    /// Decodes a body that ends as `framing` says.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => Expects::Nothing,
            Framing::Length(length) => Expects::Bytes(length),
            Framing::Chunked => Expects::ChunkSize(Vec::new()),
            Framing::UntilClose => Expects::UntilClose,
        })
    }

    /// Whether the body is whole. One that ends with the connection never is, as far as its bytes tell.
    pub fn is_complete(&self) -> bool {
        matches!(self.0, Expects::Nothing)
    }

    /// Takes the next bytes, adds what is body to `body`, and tells how many bytes it took.
    pub fn feed(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> usize {
        let mut used = 0;
        while used < bytes.len() && !self.is_complete() {
            let rest = &bytes[used..];
            match &mut self.0 {
                Expects::Nothing => {}
                Expects::UntilClose => {
                    body.extend_from_slice(rest);
                    used = bytes.len();
                }
                Expects::Bytes(left) | Expects::ChunkData(left) => {
                    let taken = rest.len().min(*left);
                    body.extend_from_slice(&rest[..taken]);
                    *left -= taken;
                    used += taken;
                    if *left == 0 {
                        self.0 = match self.0 {
                            Expects::ChunkData(_) => Expects::ChunkEnd(2),
                            _ => Expects::Nothing,
                        };
                    }
                }
                Expects::ChunkEnd(left) => {
                    *left -= 1;
                    used += 1;
                    if *left == 0 {
                        self.0 = Expects::ChunkSize(Vec::new());
                    }
                }
                Expects::ChunkSize(line) => {
                    line.push(rest[0]);
                    used += 1;
                    if line.ends_with(b"\r\n") {
                        let text = String::from_utf8_lossy(line).into_owned();
                        let digits = text.trim_end().split(';').next().unwrap_or_default().to_owned();
                        self.0 = match usize::from_str_radix(&digits, 16) {
                            Ok(0) => Expects::Trailers(Vec::new()),
                            Ok(size) => Expects::ChunkData(size),
                            Err(_) => panic!("not a chunk size: {text:?}"),
                        };
                    }
                }
                Expects::Trailers(line) => {
                    line.push(rest[0]);
                    used += 1;
                    if line == b"\r\n" {
                        self.0 = Expects::Nothing;
                    } else if line.ends_with(b"\r\n") {
                        line.clear();
                    }
                }
            }
        }
        used
    }
}

/// How a direction of a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it has to: FIN, and over TLS close_notify before it.
    Clean,
    /// Anything else: RST, or over TLS a FIN without close_notify.
    Aborted(io::ErrorKind),
}

impl End {
    /// Whether nobody can take what came before for the whole.
    pub fn is_aborted(&self) -> bool {
        matches!(self, Self::Aborted(_))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Wire<S> {
    /// The socket.
    pub socket: S,
    read: Vec<u8>,
}

/// An answer that came to its end, whatever that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body without chunks.
    pub body: Vec<u8>,
    /// Whether the body is whole.
    pub complete: bool,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Speaks on `socket`.
    pub fn new(socket: S) -> Self {
        Self { socket, read: Vec::new() }
    }

    /// Writes `bytes` and has them sent.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// Ends this direction cleanly.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }

    /// The next bytes, however many; none at the clean end.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.read.is_empty() && !self.fill().await? {
            return Ok(Vec::new());
        }
        Ok(std::mem::take(&mut self.read))
    }

    /// Exactly the next `length` bytes.
    pub async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            if !self.fill().await? {
                let message = format!("ended after {} of {length} bytes", self.read.len());
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
        }
        Ok(self.read.drain(..length).collect())
    }

    /// Exactly the next `length` bytes of a body that comes in chunks.
    pub async fn exactly_in_chunks(&mut self, length: usize) -> Vec<u8> {
        let (mut decoder, mut body) = (BodyDecoder::new(Framing::Chunked), Vec::new());
        while body.len() < length {
            assert!(self.body_piece(&mut decoder, &mut body).await.expect("a chunk"), "the body ended early");
        }
        body
    }

    /// Everything up to the end, and how it ended.
    pub async fn rest(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => break End::Clean,
                Err(error) => break End::Aborted(error.kind()),
            }
        };
        (std::mem::take(&mut self.read), end)
    }

    /// The next head; `None` if the connection ended before it.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some((head, length)) = Head::parse(&self.read) {
                self.read.drain(..length);
                return Ok(Some(head));
            }
            if !self.fill().await? {
                return match self.read.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "ended within a head")),
                };
            }
        }
    }

    /// Adds the next bytes of the body to `body`; false when there are no more.
    pub async fn body_piece(&mut self, decoder: &mut BodyDecoder, body: &mut Vec<u8>) -> io::Result<bool> {
        if decoder.is_complete() || (self.read.is_empty() && !self.fill().await?) {
            return Ok(false);
        }
        let used = decoder.feed(&self.read, body);
        self.read.drain(..used);
        Ok(true)
    }

    /// The body behind the head of a request, as far as it comes.
    pub async fn request_body(&mut self, head: &Head) -> (Vec<u8>, bool) {
        self.body(head.request_framing()).await
    }

    /// The answer to a `method` request.
    pub async fn answer(&mut self, method: &str) -> Answer {
        let head = within("the head of an answer", self.head()).await;
        let head = head.expect("an answer").expect("an answer before the connection ends");
        let (body, complete) = within("the body of an answer", self.body(head.answer_framing(method))).await;
        Answer { head, body, complete }
    }

    async fn body(&mut self, framing: Framing) -> (Vec<u8>, bool) {
        let (mut decoder, mut body) = (BodyDecoder::new(framing), Vec::new());
        loop {
            match self.body_piece(&mut decoder, &mut body).await {
                Ok(true) => {}
                Ok(false) => return (body, decoder.is_complete() || framing == Framing::UntilClose),
                Err(_) => return (body, false),
            }
        }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.socket.read_buf(&mut self.read).await? > 0)
    }
}
