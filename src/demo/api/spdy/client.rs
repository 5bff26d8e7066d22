//! The client's side of a connection, as far as forwarding a port needs it.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::frame::{self, Reader};
use super::headers::{Compressor, Headers};

pub(in crate::demo) use super::frame::Incoming;

/// A connection that opens streams. Whoever owns it reads and writes in turn.
pub(in crate::demo) struct Client<IO> {
    reader: Reader<ReadHalf<IO>>,
    writer: WriteHalf<IO>,
    compressor: Compressor,
    next_id: u32,
}

impl<IO: AsyncRead + AsyncWrite> Client<IO> {
    /// Speaks SPDY over this byte stream.
    pub fn new(io: IO) -> Self {
        let (reader, writer) = tokio::io::split(io);
        // Streams of a client have odd numbers (section 2.3.2).
        Self { reader: Reader::new(reader), writer, compressor: Compressor::new(), next_id: 1 }
    }

    /// Opens a stream; gives its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let id = self.next_id;
        self.next_id += 2;
        let headers: Headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let block = self.compressor.block(&headers);
        self.write(&frame::open(id, &block)).await?;
        Ok(id)
    }

    /// Sends data on a stream; with `last`, closes this side of it.
    pub async fn send(&mut self, id: u32, data: &[u8], last: bool) -> io::Result<()> {
        self.write(&[&frame::data_head(id, data.len(), last), data].concat()).await
    }

    /// The next frame; nothing when the server has closed the connection. Pings are answered on the way.
    pub async fn next(&mut self) -> io::Result<Option<Incoming>> {
        loop {
            match self.reader.next().await? {
                Some(Incoming::Ping(id)) => self.write(&frame::ping(id)).await?,
                frame => return Ok(frame),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::Connection;
    use super::*;

    #[tokio::test]
    async fn a_client_and_a_server_understand_each_other() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut client, mut server) = (Client::new(near), Connection::new(far));
        let id = client.open(&[("streamtype", "data"), ("port", "80")]).await.unwrap();
        client.send(id, b"ping", true).await.unwrap();
        let mut stream = server.accept().await.unwrap();
        assert_eq!((stream.id(), stream.header("port")), (id, Some("80")));
        assert_eq!(stream.input.recv().await.unwrap(), "ping");
        stream.sender().data("pong").await.unwrap();
        assert!(matches!(client.next().await.unwrap(), Some(Incoming::Reply)));
        let answer = client.next().await.unwrap();
        assert!(matches!(answer, Some(Incoming::Data { id: 1, bytes, last: false }) if bytes == "pong"));
    }
}
