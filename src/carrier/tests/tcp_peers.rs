//! Peers over TCP that misbehave.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{HOST, Keys, PATIENCE, any_port};
use crate::carrier::{Connection, ConnectionEnd, StreamReadError, TcpSettings, accepted_over_tcp};
use crate::pki::tcp_tunnel_client_config;
use crate::wire::{ErrorCode, Record, RecordReader};

/// A stub's connection, and the agent at its other end, played by hand.
struct Rogue {
    stub: Connection,
    socket: TlsStream<TcpStream>,
}

impl Rogue {
    async fn connect(settings: &TcpSettings) -> Self {
        let keys = Keys::new();
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connector = TlsConnector::from(Arc::new(tcp_tunnel_client_config(&keys.agent).unwrap()));
        let dialling = async {
            let socket = TcpStream::connect(address).await.unwrap();
            connector.connect(ServerName::try_from(HOST).unwrap(), socket).await.unwrap()
        };
        let accepting = async {
            let (socket, _) = listener.accept().await.unwrap();
            accepted_over_tcp(keys.acceptor().accept(socket).await.unwrap(), settings).unwrap()
        };
        let (socket, stub) = timeout(PATIENCE, async { tokio::join!(dialling, accepting) }).await.unwrap();
        stub.trust();
        Self { stub, socket }
    }

    /// The agent's yamux, which runs in the background.
    fn into_yamux(self) -> (Connection, Yamux) {
        let (stub, socket) = (self.stub, self.socket.compat());
        let mut connection = yamux::Connection::new(socket, yamux::Config::default(), yamux::Mode::Client);
        let (open, mut requests) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<yamux::Stream>>(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = requests.recv() => {
                        let Some(request) = request else { return };
                        let stream = std::future::poll_fn(|context| connection.poll_new_outbound(context)).await.unwrap();
                        let _ = request.send(stream);
                    }
                    event = std::future::poll_fn(|context| connection.poll_next_inbound(context)) => {
                        if !matches!(event, Some(Ok(_))) {
                            return;
                        }
                    }
                }
            }
        });
        (stub, Yamux { open })
    }
}

struct Yamux {
    open: tokio::sync::mpsc::Sender<tokio::sync::oneshot::Sender<yamux::Stream>>,
}

impl Yamux {
    async fn open(&self) -> yamux::Stream {
        let (reply, stream) = tokio::sync::oneshot::channel();
        self.open.send(reply).await.unwrap();
        stream.await.unwrap()
    }
}

fn encoded(records: &[Record]) -> BytesMut {
    let mut out = BytesMut::new();
    records.iter().for_each(|record| record.encode(&mut out));
    out
}

async fn closed(connection: &Connection) -> ConnectionEnd {
    timeout(PATIENCE, connection.closed()).await.expect("an end in time")
}

/// What the stub says last on the connection stream.
async fn last_word(connection_stream: &mut yamux::Stream) -> Option<Record> {
    let mut reader = RecordReader::for_connection();
    let (mut last, mut buffer) = (None, [0; 1024]);
    while let Ok(length @ 1..) = timeout(PATIENCE, connection_stream.read(&mut buffer)).await.expect("in time") {
        reader.push(Bytes::copy_from_slice(&buffer[..length]));
        while let Some(record) = reader.next_record().unwrap() {
            last = Some(record);
        }
    }
    last
}

#[tokio::test]
async fn a_peer_that_is_silent_is_given_up_after_the_idle_timeout() {
    let settings = TcpSettings {
        idle_timeout: Duration::from_millis(300),
        keep_alive: Duration::from_millis(100),
        ..TcpSettings::default()
    };
    let Rogue { stub, socket } = Rogue::connect(&settings).await;
    assert_eq!(closed(&stub).await, ConnectionEnd::TimedOut);
    drop(socket);
}

#[tokio::test]
async fn a_peer_that_hangs_up_without_a_word_breaks_its_streams_off() {
    let (stub, yamux) = Rogue::connect(&TcpSettings::default()).await.into_yamux();
    let connection_stream = yamux.open().await;
    let mut stream = yamux.open().await;
    stream.write_all(&encoded(&[Record::Bytes(Bytes::from_static(b"half of it"))])).await.unwrap();
    let (_send, mut recv) = timeout(PATIENCE, stub.accept()).await.unwrap().unwrap();
    assert_eq!(next(&mut recv).await, Ok(Some(Bytes::from_static(b"half of it"))));
    drop((connection_stream, stream, yamux));
    assert!(matches!(closed(&stub).await, ConnectionEnd::Failed(_)));
    assert!(matches!(next(&mut recv).await, Err(StreamReadError::ConnectionLost(_))));
}

#[tokio::test]
async fn bytes_that_are_not_yamux_end_the_connection() {
    let Rogue { stub, mut socket } = Rogue::connect(&TcpSettings::default()).await;
    tokio::io::AsyncWriteExt::write_all(&mut socket, &[0xff; 100]).await.unwrap();
    assert!(matches!(closed(&stub).await, ConnectionEnd::Failed(_)));
}

#[tokio::test]
async fn a_stream_that_yamux_ends_is_broken_off_and_hurts_no_other() {
    let (stub, yamux) = Rogue::connect(&TcpSettings::default()).await.into_yamux();
    let _connection_stream = yamux.open().await;
    let mut stream = yamux.open().await;
    stream.write_all(&encoded(&[Record::Bytes(Bytes::from_static(b"half of it"))])).await.unwrap();
    stream.close().await.unwrap();
    let (send, mut recv) = timeout(PATIENCE, stub.accept()).await.unwrap().unwrap();
    let error = loop {
        match next(&mut recv).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a cut stream ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, StreamReadError::Reset(ErrorCode::Internal));
    assert_eq!(timeout(PATIENCE, send.stopped()).await.unwrap(), Some(ErrorCode::Internal));
    let mut another = yamux.open().await;
    another.write_all(&encoded(&[Record::Bytes(Bytes::from_static(b"whole")), Record::End])).await.unwrap();
    let (_send, mut recv) = timeout(PATIENCE, stub.accept()).await.unwrap().unwrap();
    assert_eq!(next(&mut recv).await, Ok(Some(Bytes::from_static(b"whole"))));
    assert_eq!(next(&mut recv).await, Ok(None));
}

#[tokio::test]
async fn records_that_are_not_the_protocol_close_the_connection_with_their_code() {
    let too_much = encoded(&[Record::Bytes(vec![0; 300 << 10].into())]);
    let small = TcpSettings { stream_window: 0, ..TcpSettings::default() };
    let ping = encoded(&[Record::Ping(1)]);
    let after_the_end = encoded(&[Record::End, Record::Bytes(Bytes::from_static(b"x"))]);
    for (bytes, code) in [
        (ping, ErrorCode::ProtocolViolation),
        (after_the_end, ErrorCode::ProtocolViolation),
        (too_much, ErrorCode::LimitExceeded),
    ] {
        let (stub, yamux) = Rogue::connect(&small).await.into_yamux();
        let mut connection_stream = yamux.open().await;
        connection_stream.write_all(&encoded(&[Record::Ping(0)])).await.unwrap();
        let mut stream = yamux.open().await;
        // The stub may hang up within it.
        let _ = stream.write_all(&bytes).await;
        assert!(matches!(closed(&stub).await, ConnectionEnd::Failed(_)));
        let said = last_word(&mut connection_stream).await;
        assert!(matches!(&said, Some(Record::Close { code: said, .. }) if *said == code), "{said:?}");
    }
}

#[tokio::test]
async fn more_streams_than_a_stub_permits_close_the_connection() {
    let (stub, yamux) = Rogue::connect(&TcpSettings::default()).await.into_yamux();
    let mut connection_stream = yamux.open().await;
    connection_stream.write_all(&encoded(&[Record::Ping(0)])).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..9 {
        let mut stream = yamux.open().await;
        stream.write_all(&encoded(&[Record::Bytes(Bytes::from_static(b"x"))])).await.unwrap();
        streams.push(stream);
    }
    assert!(matches!(closed(&stub).await, ConnectionEnd::Failed(_)));
    let said = last_word(&mut connection_stream).await;
    assert!(matches!(said, Some(Record::Close { code: ErrorCode::LimitExceeded, .. })), "{said:?}");
}

async fn next(stream: &mut crate::carrier::RecvStream) -> Result<Option<Bytes>, StreamReadError> {
    timeout(PATIENCE, std::future::poll_fn(|context| stream.poll_read(context))).await.expect("in time")
}
