//! What listens on the ports of a sample pod, played in process.

use std::{convert::Infallible, io};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const BULK: u16 = 19;
const HTTP: u16 = 80;
const BUFFER: usize = 64 * 1024;
/// The longest request line the bulk source reads.
const MAX_LINE: u64 = 32;

static ZEROS: [u8; BUFFER] = [0; BUFFER];

/// Connects to a port: 80 a web page, 7 echo, 9 counts what it gets and says so at the end, 19 sends as many bytes
/// as the first line says. Nothing listens anywhere else.
pub(super) fn connect(port: u16) -> Option<DuplexStream> {
    let (near, far) = tokio::io::duplex(BUFFER);
    // A client that goes away ends any of them.
    match port {
        ECHO => drop(tokio::spawn(echo(far))),
        DISCARD => drop(tokio::spawn(discard(far))),
        BULK => drop(tokio::spawn(bulk(far))),
        HTTP => drop(tokio::spawn(http(far))),
        _ => return None,
    }
    Some(near)
}

async fn echo(stream: DuplexStream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn discard(mut stream: DuplexStream) -> io::Result<()> {
    let count = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    stream.write_all(format!("{count}\n").as_bytes()).await?;
    stream.shutdown().await
}

async fn bulk(stream: DuplexStream) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut line = String::new();
    BufReader::new(reader.take(MAX_LINE)).read_line(&mut line).await?;
    let mut left: u64 = line.trim().parse().map_err(io::Error::other)?;
    while left > 0 {
        let piece = left.min(BUFFER as u64);
        // At most the length of ZEROS.
        writer.write_all(&ZEROS[..piece as usize]).await?;
        left -= piece;
    }
    writer.shutdown().await
}

async fn http(stream: DuplexStream) -> Result<(), hyper::Error> {
    let page = service_fn(|_| async {
        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"hello from web\n"))))
    });
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None);
    builder.serve_connection(TokioIo::new(stream), page).await
}
