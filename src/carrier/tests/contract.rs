//! The same scenarios over each carrier.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{PATIENCE, Pair, pair, pair_with};
use crate::carrier::{
    Connection, ConnectionEnd, QuicSettings, RecvStream, SendStream, StreamReadError, StreamWriteError,
};
use crate::wire::{Carrier, ErrorCode};

macro_rules! over_each_carrier {
    ($($scenario:ident),* $(,)?) => {
        mod quic { $(#[tokio::test] async fn $scenario() { super::within(super::$scenario(super::Carrier::Quic)).await })* }
        mod tcp { $(#[tokio::test] async fn $scenario() { super::within(super::$scenario(super::Carrier::Tcp)).await })* }
    };
}

over_each_carrier!(
    both_sides_know_each_other,
    each_direction_ends_by_itself,
    a_reset_arrives_with_its_code_and_is_never_a_clean_end,
    a_sender_that_is_dropped_is_a_reset,
    a_stop_arrives_with_its_code_while_the_sender_is_silent,
    a_stop_arrives_while_nobody_reads_what_was_sent_before,
    a_reader_that_is_dropped_stops_the_sender,
    a_stream_that_is_dropped_whole_says_why,
    one_direction_can_be_stopped_while_the_other_goes_on,
    a_slow_reader_stops_only_its_own_stream,
    a_slow_reader_gets_everything_in_the_end,
    hundreds_of_unanswered_streams_hinder_nobody,
    the_peer_learns_why_a_connection_was_closed,
    a_cut_connection_is_no_clean_end,
    a_connection_nobody_holds_is_closed,
    a_stream_keeps_its_connection_open,
    the_round_trip_time_is_measured,
);

async fn within(scenario: impl Future<Output = ()>) {
    timeout(PATIENCE, scenario).await.expect("the scenario ends in time");
}

async fn both_sides_know_each_other(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    assert_eq!((agent.carrier(), stub.carrier()), (carrier, carrier));
    assert!(stub.peer_certificate().is_some());
    assert_eq!(agent.peer_chain().len(), 2);
    assert_eq!(agent.protocol(), stub.protocol());
    assert!(agent.remote_address().ip().is_loopback());
}

async fn each_direction_ends_by_itself(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((mut to_agent, mut from_agent), (mut to_stub, mut from_stub)) = stream(&stub, &agent).await;
    write(&mut to_agent, b"question").await;
    to_agent.finish();
    assert_eq!(rest(&mut from_stub).await, Ok(Bytes::from_static(b"hello, question")));
    write(&mut to_stub, b"an answer, later").await;
    to_stub.finish();
    assert_eq!(rest(&mut from_agent).await, Ok(Bytes::from_static(b"an answer, later")));
}

async fn a_reset_arrives_with_its_code_and_is_never_a_clean_end(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((_to_agent, mut from_agent), (mut to_stub, _from_stub)) = stream(&stub, &agent).await;
    write(&mut to_stub, b"half of it").await;
    to_stub.reset(ErrorCode::UpstreamAborted);
    assert_eq!(rest(&mut from_agent).await, Err(StreamReadError::Reset(ErrorCode::UpstreamAborted)));
}

async fn a_sender_that_is_dropped_is_a_reset(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((_to_agent, mut from_agent), (mut to_stub, _from_stub)) = stream(&stub, &agent).await;
    write(&mut to_stub, b"half of it").await;
    drop(to_stub);
    assert_eq!(rest(&mut from_agent).await, Err(StreamReadError::Reset(ErrorCode::Cancelled)));
}

async fn a_stop_arrives_with_its_code_while_the_sender_is_silent(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((_to_agent, mut from_agent), (mut to_stub, _from_stub)) = stream(&stub, &agent).await;
    let stopped = to_stub.stopped();
    from_agent.stop(ErrorCode::LimitExceeded);
    assert_eq!(stopped.await, Some(ErrorCode::LimitExceeded));
    let error = to_stub.write(&mut [Bytes::from_static(b"more")]).await;
    assert_eq!(error, Err(StreamWriteError::Stopped(ErrorCode::LimitExceeded)));
}

async fn a_stop_arrives_while_nobody_reads_what_was_sent_before(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair_with(carrier, &small_window()).await;
    let ((mut to_agent, mut from_agent), (mut to_stub, _from_stub)) = stream(&stub, &agent).await;
    fill(&mut to_agent).await;
    let stopped = to_stub.stopped();
    from_agent.stop(ErrorCode::NotDispatched);
    assert_eq!(stopped.await, Some(ErrorCode::NotDispatched));
    to_stub.reset(ErrorCode::NoError);
}

async fn a_reader_that_is_dropped_stops_the_sender(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((_to_agent, from_agent), (to_stub, _from_stub)) = stream(&stub, &agent).await;
    drop(from_agent);
    assert_eq!(to_stub.stopped().await, Some(ErrorCode::Cancelled));
}

async fn a_stream_that_is_dropped_whole_says_why(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((mut to_agent, from_agent), (to_stub, mut from_stub)) = stream(&stub, &agent).await;
    to_agent.finish();
    assert_eq!(rest(&mut from_stub).await, Ok(Bytes::from_static(b"hello, ")));
    drop((to_agent, from_agent));
    assert_eq!(to_stub.stopped().await, Some(ErrorCode::Cancelled));
    let ((mut to_agent, mut from_agent), (to_stub, mut from_stub)) = stream(&stub, &agent).await;
    to_agent.reset(ErrorCode::NotDispatched);
    from_agent.stop(ErrorCode::LimitExceeded);
    assert_eq!(to_stub.stopped().await, Some(ErrorCode::LimitExceeded));
    assert_eq!(rest(&mut from_stub).await, Err(StreamReadError::Reset(ErrorCode::NotDispatched)));
}

async fn one_direction_can_be_stopped_while_the_other_goes_on(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((to_agent, mut from_agent), (mut to_stub, mut from_stub)) = stream(&stub, &agent).await;
    from_stub.stop(ErrorCode::NoError);
    assert_eq!(to_agent.stopped().await, Some(ErrorCode::NoError));
    write(&mut to_stub, b"the answer stands").await;
    to_stub.finish();
    assert_eq!(rest(&mut from_agent).await, Ok(Bytes::from_static(b"the answer stands")));
}

async fn a_slow_reader_stops_only_its_own_stream(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair_with(carrier, &small_window()).await;
    let mut unread = Vec::new();
    for _ in 0..8 {
        let ((mut to_agent, from_agent), accepted) = stream(&stub, &agent).await;
        let written = fill(&mut to_agent).await;
        assert!(written < 4 << 20, "{written} bytes were taken in for somebody who does not read");
        unread.push((to_agent, from_agent, accepted));
    }
    for _ in 0..50 {
        let ((mut to_agent, mut from_agent), (mut to_stub, mut from_stub)) = stream(&stub, &agent).await;
        to_agent.finish();
        assert_eq!(rest(&mut from_stub).await, Ok(Bytes::from_static(b"hello, ")));
        write(&mut to_stub, &[7; 100_000]).await;
        to_stub.finish();
        assert_eq!(rest(&mut from_agent).await.map(|bytes| bytes.len()), Ok(100_000));
    }
}

async fn a_slow_reader_gets_everything_in_the_end(carrier: Carrier) {
    const LENGTH: usize = 24 << 20;
    let Pair { agent, stub, .. } = pair_with(carrier, &small_window()).await;
    let ((_to_agent, mut from_agent), (mut to_stub, _from_stub)) = stream(&stub, &agent).await;
    let whole: Bytes = (0..LENGTH).map(|at| (at / 251) as u8).collect();
    let expected = whole.clone();
    let sending = tokio::spawn(async move {
        for piece in whole.chunks(300_001) {
            write(&mut to_stub, piece).await;
        }
        to_stub.finish();
    });
    assert!(rest(&mut from_agent).await == Ok(expected), "what was sent is not what was received");
    sending.await.unwrap();
}

async fn hundreds_of_unanswered_streams_hinder_nobody(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    agent.permit_streams(2000);
    let mut waiting = Vec::new();
    for _ in 0..1000 {
        waiting.push(stream(&stub, &agent).await);
    }
    for ((_to_agent, from_agent), (to_stub, _from_stub)) in &mut waiting {
        write(to_stub, b"at last").await;
        to_stub.finish();
        assert_eq!(rest(from_agent).await, Ok(Bytes::from_static(b"at last")));
    }
}

async fn the_peer_learns_why_a_connection_was_closed(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((_to_agent, _from_agent), (to_stub, mut from_stub)) = stream(&stub, &agent).await;
    let stopped = to_stub.stopped();
    stub.close(ErrorCode::Superseded, "another one came");
    let end = ConnectionEnd::ClosedByPeer { code: ErrorCode::Superseded, reason: "another one came".to_owned() };
    assert_eq!(agent.closed().await, end);
    assert_eq!(rest(&mut from_stub).await, Err(StreamReadError::ConnectionLost(end.clone())));
    assert_eq!(stopped.await, Some(ErrorCode::Internal));
    assert_eq!(agent.open().await.err(), Some(end.clone()));
    assert_eq!(agent.accept().await.err(), Some(end));
    assert_eq!(stub.closed().await, ConnectionEnd::ClosedHere);
    assert_eq!(stub.open().await.err(), Some(ConnectionEnd::ClosedHere));
}

async fn a_cut_connection_is_no_clean_end(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    let ((mut to_agent, _from_agent), (_to_stub, mut from_stub)) = stream(&stub, &agent).await;
    write(&mut to_agent, b"half of it").await;
    stub.close(ErrorCode::NoError, "");
    assert!(matches!(rest(&mut from_stub).await, Err(StreamReadError::ConnectionLost(_))));
}

async fn a_connection_nobody_holds_is_closed(carrier: Carrier) {
    let Pair { agent, stub, .. } = pair(carrier).await;
    drop(agent);
    assert!(matches!(stub.closed().await, ConnectionEnd::ClosedByPeer { code: ErrorCode::NoError, .. }));
}

async fn a_stream_keeps_its_connection_open(carrier: Carrier) {
    let Pair { agent, stub, _listener } = pair(carrier).await;
    let ((mut to_agent, _from_agent), (_to_stub, mut from_stub)) = stream(&stub, &agent).await;
    drop(stub);
    write(&mut to_agent, b"still here").await;
    to_agent.finish();
    assert_eq!(rest(&mut from_stub).await, Ok(Bytes::from_static(b"hello, still here")));
}

async fn the_round_trip_time_is_measured(carrier: Carrier) {
    let settings = QuicSettings { keep_alive: Duration::from_millis(10), ..QuicSettings::default() };
    let Pair { agent, stub, .. } = pair_with(carrier, &settings).await;
    for connection in [agent, stub] {
        while connection.path().round_trip.is_zero() || connection.path().received_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(connection.path().round_trip < Duration::from_secs(5));
        assert_eq!(connection.path().lost_packets.is_some(), carrier == Carrier::Quic);
    }
}

/// A stream's halves at one end.
type Halves = (SendStream, RecvStream);

/// A stream from one end to the other, on which a greeting has been sent so that the other end knows of it.
async fn stream(from: &Connection, to: &Connection) -> (Halves, Halves) {
    let mut opened = from.open().await.unwrap();
    write(&mut opened.0, b"hello, ").await;
    (opened, to.accept().await.unwrap())
}

async fn write(stream: &mut SendStream, bytes: &[u8]) {
    stream.write(&mut [Bytes::copy_from_slice(bytes)]).await.unwrap();
}

/// Writes until nothing more is taken for a while, and tells how much was.
async fn fill(stream: &mut SendStream) -> usize {
    const PIECE: usize = 16 << 10;
    let mut written = 0;
    while timeout(Duration::from_millis(300), write(stream, &[7; PIECE])).await.is_ok() {
        written += PIECE;
    }
    written
}

async fn rest(stream: &mut RecvStream) -> Result<Bytes, StreamReadError> {
    let mut whole = Vec::new();
    while let Some(piece) = std::future::poll_fn(|context| stream.poll_read(context)).await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

fn small_window() -> QuicSettings {
    QuicSettings { stream_window: 1 << 20, ..QuicSettings::default() }
}
