//! Recorded conversations; `tests/captures/README.md` describes the files.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

/// A recorded case.
#[derive(Debug, Deserialize)]
pub struct Capture {
    /// Its name.
    pub case: String,
    /// Its connections, in the order they were opened.
    pub connections: Vec<Connection>,
}

/// A recorded connection.
#[derive(Debug, Deserialize)]
pub struct Connection {
    client: usize,
    server: usize,
    pieces: Vec<(Side, usize)>,
    /// Who ended it and how, first end first.
    pub ends: Vec<(Side, How)>,
    /// Every byte of the client.
    #[serde(skip)]
    pub client_bytes: Vec<u8>,
    /// Every byte of the server.
    #[serde(skip)]
    pub server_bytes: Vec<u8>,
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Side {
    /// kubectl.
    #[serde(rename = "c")]
    Client,
    /// The API server.
    #[serde(rename = "s")]
    Server,
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// FIN.
    Eof,
    /// RST.
    Reset,
}

/// Bytes that came together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Who sent them.
    pub side: Side,
    /// Where they begin among that side's bytes.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

impl Connection {
    /// The pieces of both sides in the order of time.
    pub fn pieces(&self) -> Vec<Piece> {
        let (mut client, mut server) = (0, 0);
        let pieces = self.pieces.iter().map(|&(side, length)| {
            let position = if side == Side::Client { &mut client } else { &mut server };
            let start = *position;
            *position += length;
            Piece { side, start, end: *position }
        });
        pieces.collect()
    }
}

/// Every recorded case, sorted by name.
pub fn load_all() -> Vec<Capture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("a folder entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gz"));
    files.sort();
    files.iter().map(|file| load(file)).collect()
}

fn load(file: &Path) -> Capture {
    let packed = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut content).expect("gzip");
    let line_end = content.iter().position(|&byte| byte == b'\n').expect("a first line");
    let mut capture: Capture = serde_json::from_slice(&content[..line_end]).expect("a description");
    let mut bytes = content.split_off(line_end + 1).into_iter();
    for connection in &mut capture.connections {
        connection.client_bytes = bytes.by_ref().take(connection.client).collect();
        connection.server_bytes = bytes.by_ref().take(connection.server).collect();
    }
    assert_eq!(bytes.len(), 0, "{}: more bytes than described", file.display());
    capture
}
