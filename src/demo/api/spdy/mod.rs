//! SPDY/3.1 as Kubernetes uses it (`github.com/moby/spdystream`): streams opened by the client over an upgraded
//! connection, no flow control windows, header blocks in one zlib stream per direction.

pub(in crate::demo) mod client;
mod frame;
mod headers;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    frame::{Incoming, Reader},
    headers::{Compressor, Headers},
};
use super::body::Gone;

/// Frames that may wait to be written.
const WAITING_OUT: usize = 16;
/// Pieces of data that may wait to be read from one stream; then the connection waits, as in spdystream.
const WAITING_IN: usize = 16;
/// Streams one connection may have open.
const MAX_STREAMS: usize = 4096;
/// How long a client may take to close after the GOAWAY.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// `RST_STREAM` status: the stream is no longer needed, or must not be.
const CANCEL: u32 = 5;
const REFUSED_STREAM: u32 = 3;

/// The server's side of a connection. Dropping it ends it.
pub(super) struct Connection {
    /// The streams the client opens, each already accepted.
    streams: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Outgoing>,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
    newest: u32,
}

/// One stream.
pub(super) struct Stream {
    id: u32,
    headers: Headers,
    /// What the client sends; ends when its side is closed. A reset or a lost connection ends it too.
    pub input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Outgoing>,
}

/// Writes to one stream.
#[derive(Clone)]
pub(super) struct StreamSender {
    id: u32,
    out: mpsc::Sender<Outgoing>,
}

/// What is to be written.
enum Outgoing {
    Reply(u32),
    Data { id: u32, bytes: Bytes, last: bool },
    Reset { id: u32, status: u32 },
    Ping(u32),
    GoAway { newest: u32 },
    End,
}

impl Connection {
    /// Speaks SPDY over this byte stream.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (out, outgoing) = mpsc::channel(WAITING_OUT);
        let (opened, streams) = mpsc::channel(WAITING_IN);
        let reader = tokio::spawn(read(Reader::new(reader), opened, out.clone()));
        let writer = tokio::spawn(write(writer, outgoing));
        let (reader, writer) = (AbortOnDropHandle::new(reader), AbortOnDropHandle::new(writer));
        Self { streams, out, reader, writer, newest: 0 }
    }

    /// The next stream the client opens; nothing when the connection has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        let stream = self.streams.recv().await?;
        self.newest = stream.id;
        Some(stream)
    }

    /// Resolves when the client has gone or closed the connection. Streams opened meanwhile are dropped.
    pub async fn ended(&mut self) {
        while self.streams.recv().await.is_some() {}
    }

    /// Says goodbye, and waits for the client to close, so that nothing sent last is lost to a reset.
    pub async fn close(mut self) {
        let goodbye = [Outgoing::GoAway { newest: self.newest }, Outgoing::End];
        for frame in goodbye {
            if self.out.send(frame).await.is_err() {
                return;
            }
        }
        self.streams.close();
        let rest = async { tokio::join!(self.reader, self.writer) };
        // Waiting longer would not help the client.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, rest).await;
    }
}

impl Stream {
    /// The stream's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A header the client sent with the stream.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Writes to the stream.
    pub fn sender(&self) -> StreamSender {
        StreamSender { id: self.id, out: self.out.clone() }
    }
}

impl StreamSender {
    /// Sends data, waiting while the client is slow.
    pub async fn data(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.send(Outgoing::Data { id: self.id, bytes: bytes.into(), last: false }).await
    }

    /// Closes this side of the stream.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.send(Outgoing::Data { id: self.id, bytes: Bytes::new(), last: true }).await
    }

    /// Ends the stream both ways.
    pub async fn reset(&self) -> Result<(), Gone> {
        self.send(Outgoing::Reset { id: self.id, status: CANCEL }).await
    }

    async fn send(&self, frame: Outgoing) -> Result<(), Gone> {
        self.out.send(frame).await.map_err(|_| Gone)
    }
}

/// Reads frames until the connection ends or breaks the protocol.
async fn read<R>(mut reader: Reader<ReadHalf<R>>, opened: mpsc::Sender<Stream>, out: mpsc::Sender<Outgoing>)
where
    R: AsyncRead + AsyncWrite,
{
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Ok(Some(frame)) = reader.next().await {
        let answer = match frame {
            Incoming::Open { id, last, headers } => {
                inputs.retain(|_, input| !input.is_closed());
                if inputs.len() >= MAX_STREAMS || inputs.contains_key(&id) {
                    Some(Outgoing::Reset { id, status: REFUSED_STREAM })
                } else {
                    let (sender, input) = mpsc::channel(WAITING_IN);
                    if !last {
                        inputs.insert(id, sender);
                    }
                    // Refused streams are reset by who does not want them; the reply comes first, as captured.
                    if out.send(Outgoing::Reply(id)).await.is_err() {
                        return;
                    }
                    // Nobody wants streams any more: the connection is closing.
                    let _ = opened.send(Stream { id, headers, input, out: out.clone() }).await;
                    None
                }
            }
            Incoming::Data { id, bytes, last } => {
                if let Some(input) = inputs.get(&id)
                    && !bytes.is_empty()
                {
                    // Nobody reads this stream any more: what comes is dropped.
                    let _ = input.send(bytes).await;
                }
                if last {
                    inputs.remove(&id);
                }
                None
            }
            Incoming::Reset { id } => {
                inputs.remove(&id);
                None
            }
            Incoming::Ping(id) => Some(Outgoing::Ping(id)),
            Incoming::Reply | Incoming::Other => None,
        };
        if let Some(answer) = answer
            && out.send(answer).await.is_err()
        {
            return;
        }
    }
}

async fn write<W: AsyncRead + AsyncWrite>(mut writer: WriteHalf<W>, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut compressor = Compressor::new();
    while let Some(frame) = outgoing.recv().await {
        let (head, data) = match frame {
            Outgoing::Reply(id) => (frame::reply(id, &compressor.block(&[])), Bytes::new()),
            Outgoing::Data { id, bytes, last } => (frame::data_head(id, bytes.len(), last), bytes),
            Outgoing::Reset { id, status } => (frame::reset(id, status), Bytes::new()),
            Outgoing::Ping(id) => (frame::ping(id), Bytes::new()),
            Outgoing::GoAway { newest } => (frame::go_away(newest), Bytes::new()),
            Outgoing::End => break,
        };
        let written = async {
            writer.write_all(&[head.as_slice(), &data].concat()).await?;
            writer.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
    // The client may be gone already, which ends the connection as well.
    let _ = writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// What kubectl 1.20 sends for `exec web -- echo hi` (recorded): streams 1, 3 and 5.
    const OPENED: &[&[u8]] = &[
        b"\x80\x03\0\x01\0\0\0\x29\0\0\0\x01\0\0\0\0\0\0\x78\xf9\xe3\xc6\xa7\xc2\x62\x60\x60\x60\x04\xa7\xb3\x92\xa2\xd4\xc4\x5c\x68\x51\xc2\x9a\x0a\x0a\x68\0\0\0\0\xff\xff",
        b"\x80\x03\0\x01\0\0\0\x19\0\0\0\x03\0\0\0\0\0\0\xc2\x2a\xc5\x56\x5c\x92\x92\x5f\x5a\x02\0\0\0\xff\xff",
    ];

    async fn opened() -> (Connection, tokio::io::DuplexStream, Stream, Stream) {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut connection = Connection::new(near);
        far.write_all(&OPENED.concat()).await.unwrap();
        let first = connection.accept().await.unwrap();
        let second = connection.accept().await.unwrap();
        (connection, far, first, second)
    }

    #[tokio::test]
    async fn streams_are_opened_and_carry_data_both_ways() {
        let (connection, mut far, error, mut stdout) = opened().await;
        assert_eq!((error.header("streamtype"), stdout.header("streamType")), (Some("error"), Some("stdout")));
        far.write_all(b"\0\0\0\x03\0\0\0\x02hi\0\0\0\x03\x01\0\0\0").await.unwrap();
        assert_eq!(stdout.input.recv().await.unwrap(), "hi");
        assert_eq!(stdout.input.recv().await, None);
        stdout.sender().data("ho").await.unwrap();
        stdout.sender().finish().await.unwrap();
        error.sender().reset().await.unwrap();
        let closing = tokio::spawn(connection.close());
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        drop(far);
        closing.await.unwrap();
        let end = b"\0\0\0\x03\0\0\0\x02ho\0\0\0\x03\x01\0\0\0\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\x05\x80\x03\0\x07\0\0\0\x08\0\0\0\x03\0\0\0\0";
        assert!(answer.ends_with(end), "{answer:x?}");
    }

    #[tokio::test]
    async fn a_ping_is_answered() {
        let (_connection, mut far, _error, _stdout) = opened().await;
        far.write_all(b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01").await.unwrap();
        let mut answer = vec![0; 28 + 18 + 12 + 2];
        far.read_exact(&mut answer[..]).await.unwrap_or_default();
        assert!(answer.windows(12).any(|w| w == b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01"), "{answer:x?}");
    }

    #[tokio::test]
    async fn a_lost_connection_ends_every_stream() {
        let (mut connection, far, _error, mut stdout) = opened().await;
        drop(far);
        assert_eq!(stdout.input.recv().await, None);
        connection.ended().await;
    }
}
