//! What was said on a recorded connection: requests and their answers, and what came after an upgrade.

use super::capture::{Capture, Connection, How, Piece, Side};
use super::http1::{BodyDecoder, Head};

/// One request and all that came of it.
#[derive(Debug)]
pub struct Exchange {
    /// Names it among all exchanges: case, connection and number.
    pub id: String,
    /// The head of the request.
    pub request: Head,
    /// The body of the request.
    pub body: Vec<u8>,
    /// The head of the answer.
    pub answer: Head,
    /// What followed the heads.
    pub rest: Rest,
}

/// What followed the heads of an exchange.
#[derive(Debug)]
pub enum Rest {
    /// The body of an answer.
    Body(AnswerBody),
    /// Raw bytes in both directions.
    Upgraded(Vec<Step>),
}

/// The body of a recorded answer.
#[derive(Debug)]
pub struct AnswerBody {
    /// The body without chunks.
    pub body: Vec<u8>,
    /// Whether it came to its end.
    pub complete: bool,
    /// The whole answer as it travelled, head included, in the pieces that came.
    pub pieces: Vec<Vec<u8>>,
}

/// What happened next on an upgraded connection.
#[derive(Debug)]
pub enum Step {
    /// One side sent bytes.
    Bytes(Side, Vec<u8>),
    /// One side ended its direction.
    End(Side, How),
}

impl Exchange {
    /// Whether the request asks for an upgrade.
    pub fn asks_for_upgrade(&self) -> bool {
        self.request.header("upgrade").is_some()
    }
}

/// The exchanges of each connection of a case.
pub fn exchanges(capture: &Capture) -> Vec<Vec<Exchange>> {
    let connections = capture.connections.iter().enumerate();
    connections
        .map(|(index, connection)| of_connection(&format!("{}/{}", capture.case, index + 1), connection))
        .collect()
}

fn of_connection(id: &str, connection: &Connection) -> Vec<Exchange> {
    let (mut client, mut server) = (0, 0);
    let mut exchanges = Vec::new();
    while client < connection.client_bytes.len() {
        let id = format!("{id}/{}", exchanges.len() + 1);
        let (request, body, length) = request(&connection.client_bytes[client..]);
        client += length;
        let bytes = &connection.server_bytes[server..];
        let (answer, head_length) = Head::parse(bytes).unwrap_or_else(|| panic!("{id}: no answer"));
        if answer.status() == 101 {
            let rest = Rest::Upgraded(steps(connection, client, server + head_length));
            exchanges.push(Exchange { id, request, body, answer, rest });
            return exchanges;
        }
        let mut decoder = BodyDecoder::new(answer.answer_framing(request.method()));
        let mut answer_body = Vec::new();
        let body_length = decoder.feed(&bytes[head_length..], &mut answer_body);
        let range = server..server + head_length + body_length;
        let pieces = connection.pieces().into_iter().filter(|piece| piece.side == Side::Server).filter_map(|piece| {
            let (start, end) = (piece.start.max(range.start), piece.end.min(range.end));
            (start < end).then(|| connection.server_bytes[start..end].to_vec())
        });
        let pieces = pieces.collect();
        server = range.end;
        let rest = Rest::Body(AnswerBody { body: answer_body, complete: decoder.is_complete(), pieces });
        exchanges.push(Exchange { id, request, body, answer, rest });
    }
    assert_eq!(server, connection.server_bytes.len(), "{id}: an answer without a request");
    exchanges
}

fn request(bytes: &[u8]) -> (Head, Vec<u8>, usize) {
    let (head, head_length) = Head::parse(bytes).expect("a request");
    let mut decoder = BodyDecoder::new(head.request_framing());
    let mut body = Vec::new();
    let body_length = decoder.feed(&bytes[head_length..], &mut body);
    assert!(decoder.is_complete(), "a whole request");
    (head, body, head_length + body_length)
}

/// What came after the heads, which end at `client` and `server`.
fn steps(connection: &Connection, client: usize, server: usize) -> Vec<Step> {
    let bytes = |piece: Piece| {
        let (all, head_end) = match piece.side {
            Side::Client => (&connection.client_bytes, client),
            Side::Server => (&connection.server_bytes, server),
        };
        let start = piece.start.max(head_end);
        (start < piece.end).then(|| Step::Bytes(piece.side, all[start..piece.end].to_vec()))
    };
    let pieces = connection.pieces().into_iter().filter_map(bytes);
    pieces.chain(connection.ends.iter().map(|&(side, how)| Step::End(side, how))).collect()
}
