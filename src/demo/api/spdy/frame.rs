//! Frames of SPDY/3 (draft 3, section 2.2).

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::headers::{Decompressor, Headers};

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// Largest control frame accepted. Data frames may be as long as the format allows; they are read in pieces.
const MAX_CONTROL: usize = 64 * 1024;
const PIECE: usize = 32 * 1024;

/// What a peer sends.
pub(in crate::demo) enum Incoming {
    /// `SYN_STREAM`, from a client.
    Open { id: u32, last: bool, headers: Headers },
    /// A data frame, or a piece of one.
    Data { id: u32, bytes: Bytes, last: bool },
    /// `RST_STREAM`.
    Reset { id: u32 },
    /// `SYN_REPLY`, from a server. What its headers say is of no use to Kubernetes clients.
    Reply,
    /// `PING`.
    Ping(u32),
    /// What means nothing without flow control: `SETTINGS`, `WINDOW_UPDATE`, `GOAWAY`, …
    Other,
}

/// Reads frames.
pub(super) struct Reader<R> {
    io: R,
    decompressor: Decompressor,
    data: Option<DataLeft>,
}

/// The rest of a data frame.
struct DataLeft {
    id: u32,
    left: usize,
    last: bool,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io, decompressor: Decompressor::new(), data: None }
    }

    /// The next frame or piece of data; nothing at the end. Errors: a connection that breaks, or breaks the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Incoming>> {
        if let Some(data) = self.data.take() {
            return self.next_piece(data).await.map(Some);
        }
        let mut head = [0; 8];
        if let Err(error) = self.io.read_exact(&mut head).await {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        let [a, b, c, d, flags, length @ ..] = head;
        let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
        let last = flags & FLAG_FIN != 0;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.next_piece(DataLeft { id, left: length, last }).await.map(Some);
        }
        if length > MAX_CONTROL {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a SPDY control frame is too long"));
        }
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await?;
        self.control(u16::from_be_bytes([c, d]), last, &payload).map(Some)
    }

    async fn next_piece(&mut self, mut data: DataLeft) -> io::Result<Incoming> {
        let id = data.id;
        let mut bytes = BytesMut::zeroed(data.left.min(PIECE));
        self.io.read_exact(&mut bytes).await?;
        data.left -= bytes.len();
        let last = data.last && data.left == 0;
        if data.left > 0 {
            self.data = Some(data);
        }
        Ok(Incoming::Data { id, bytes: bytes.freeze(), last })
    }

    fn control(&mut self, kind: u16, last: bool, payload: &[u8]) -> io::Result<Incoming> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a SPDY control frame is malformed");
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            bytes.map(|bytes| u32::from_be_bytes(bytes) & 0x7fff_ffff).ok_or_else(bad)
        };
        Ok(match kind {
            SYN_STREAM => {
                // Stream, associated stream, priority, credential slot, headers.
                let block = payload.get(10..).ok_or_else(bad)?;
                let headers = self.decompressor.headers(block).map_err(io::Error::other)?;
                Incoming::Open { id: number(0)?, last, headers }
            }
            SYN_REPLY => Incoming::Reply,
            RST_STREAM => Incoming::Reset { id: number(0)? },
            PING => Incoming::Ping(number(0)?),
            _ => Incoming::Other,
        })
    }
}

/// `SYN_STREAM` with a compressed header block: no associated stream, the highest priority, no credential slot.
pub(super) fn open(id: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_STREAM, &[&id.to_be_bytes(), &[0; 6], block])
}

/// `SYN_REPLY` with a compressed header block.
pub(super) fn reply(id: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, &[&id.to_be_bytes(), block])
}

/// `RST_STREAM`.
pub(super) fn reset(id: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, &[&id.to_be_bytes(), &status.to_be_bytes()])
}

/// `PING`.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(PING, &[&id.to_be_bytes()])
}

/// `GOAWAY` with status OK.
pub(super) fn go_away(newest: u32) -> Vec<u8> {
    control(GOAWAY, &[&newest.to_be_bytes(), &0_u32.to_be_bytes()])
}

/// The head of a data frame.
pub(super) fn data_head(id: u32, length: usize, last: bool) -> Vec<u8> {
    [id.to_be_bytes(), flags_and_length(if last { FLAG_FIN } else { 0 }, length)].concat()
}

fn control(kind: u16, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    let version = (0x8000 | VERSION).to_be_bytes();
    [version.as_slice(), &kind.to_be_bytes(), &flags_and_length(0, payload.len()), &payload].concat()
}

/// Lengths here are at most those of a piece of output, far below 2^24.
fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, high, middle, low]
}
