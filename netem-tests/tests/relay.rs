//! The relay on loopback does what its profile says.

mod common;
mod sockets;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::{alone, profile};
use netem_tests::profile::{Action, Profile};
use netem_tests::relay::{Relay, RelayReport};
use sockets::{bulk, connected, echo, median, round_trips};

const SEED: u64 = 1;
const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn udp_relay(profile: &Profile) -> (UdpSocket, UdpSocket, Relay) {
    let server = UdpSocket::bind(LOOPBACK).unwrap();
    let relay = Relay::start(profile, SEED, server.local_addr().unwrap()).unwrap();
    (server, UdpSocket::bind(LOOPBACK).unwrap(), relay)
}

fn tcp_relay(profile: &Profile) -> (TcpListener, Relay) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let relay = Relay::start(profile, SEED, listener.local_addr().unwrap()).unwrap();
    (listener, relay)
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Whether upper bounds on time can be asserted: not where the machine was too busy to emulate the link.
fn is_valid(report: &RelayReport) -> bool {
    if !report.is_valid() {
        eprintln!("not judged:\n{report}");
    }
    report.is_valid()
}

#[test]
fn datagrams_take_the_round_trip_time_of_the_profile() {
    let _alone = alone();
    let profile = profile("wan-50ms");
    let (server, client, mut relay) = udp_relay(&profile);
    let echo = echo(server);
    let measured = median(round_trips(&client, relay.address(), 11));
    let report = relay.report().unwrap();
    eprintln!("{measured:?}\n{report}");
    assert!(measured >= Duration::from_millis(50));
    assert!(!is_valid(&report) || measured <= Duration::from_millis(55));
    echo.join().unwrap();
}

#[test]
fn as_many_datagrams_are_lost_as_the_profile_says() {
    let _alone = alone();
    let (server, client, mut relay) = udp_relay(&profile("lossy-5"));
    let echo = echo(server);
    let sent = 5_000;
    for number in 0..sent {
        client.send_to(&[0; 200], relay.address()).unwrap();
        if number % 10 == 9 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    echo.join().unwrap();
    let up = relay.report().unwrap().udp.up;
    let measured = up.lost as f64 / up.offered as f64;
    eprintln!("{measured:.4} lost of 0.05; {up}");
    // Four standard deviations of the binomial distribution.
    assert!((measured - 0.05).abs() < 4.0 * (0.05f64 * 0.95 / f64::from(sent)).sqrt());
    assert_eq!(up.delivered + up.lost, up.offered);
}

#[test]
fn a_stream_fills_the_link_and_no_more() {
    let _alone = alone();
    let profile = profile("bufferbloat-10mbit");
    let (listener, mut relay) = tcp_relay(&profile);
    let (agent, stub) = connected(&listener, || connect(&relay));
    let measured = bulk(stub, agent, Duration::from_secs(4));
    let report = relay.report().unwrap();
    eprintln!("{:.2} Mbit/s\n{report}", measured / 1e6);
    // What has gathered in socket buffers may leave faster than the link for a moment.
    assert!(measured <= 10.5e6);
    assert!(!is_valid(&report) || measured >= 8e6);
    assert_eq!(report.tcp.down.queue_dropped, 0, "streams wait for room");
}

#[test]
fn a_stream_arrives_whole_late_and_ends_as_it_was_ended() {
    let _alone = alone();
    let (listener, relay) = tcp_relay(&profile("lossy-5"));
    let (mut agent, mut stub) = connected(&listener, || connect(&relay));
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
    let start = Instant::now();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || {
            agent.write_all(&sent).unwrap();
            agent.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            agent.read_to_string(&mut answer).unwrap();
            answer
        }
    });
    let mut received = Vec::new();
    stub.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stub.read_to_end(&mut received).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(25));
    assert!(received == sent);
    // The other half is still open.
    stub.write_all(b"thanks").unwrap();
    drop(stub);
    assert_eq!(writing.join().unwrap(), "thanks");
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_stub_that_is_not_there_resets_the_stream() {
    let _alone = alone();
    let gone: SocketAddr = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let relay = Relay::start(&profile("clean"), SEED, gone).unwrap();
    let error = connect(&relay).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_rebound_nat_gives_datagrams_another_port_and_resets_streams() {
    let _alone = alone();
    let (server, client, relay) = udp_relay(&profile("clean"));
    let before = source_seen_by_server(&client, &server, &relay, |_| true);
    let (listener, stream_relay) = tcp_relay(&profile("clean"));
    let (mut agent, _stub) = connected(&listener, || connect(&stream_relay));

    relay.control().apply(Action::NatRebind).unwrap();
    stream_relay.control().apply(Action::NatRebind).unwrap();
    let after = source_seen_by_server(&client, &server, &relay, |from| from != before);
    assert_eq!(after.ip(), before.ip());
    assert_eq!(agent.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_changed_address_is_seen_by_the_stub_and_silences_streams() {
    let _alone = alone();
    let (server, client, relay) = udp_relay(&profile("clean"));
    let before = source_seen_by_server(&client, &server, &relay, |_| true);
    relay.control().apply(Action::AddressChange).unwrap();
    source_seen_by_server(&client, &server, &relay, |from| from.ip() != before.ip());

    let (listener, relay) = tcp_relay(&profile("clean"));
    let (mut agent, mut stub) = connected(&listener, || connect(&relay));
    relay.control().apply(Action::AddressChange).unwrap();
    agent.write_all(b"anybody?").unwrap();
    stub.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert_eq!(stub.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_blackout_drops_datagrams_and_holds_streams_back() {
    let _alone = alone();
    let (server, client, relay) = udp_relay(&profile("clean"));
    let echo = echo(server);
    relay.control().apply(Action::Blackout(Duration::from_secs(60))).unwrap();
    assert_eq!(round_trips(&client, relay.address(), 1).len(), 0);
    echo.join().unwrap();

    let (listener, relay) = tcp_relay(&profile("clean"));
    let (mut agent, mut stub) = connected(&listener, || connect(&relay));
    let start = Instant::now();
    relay.control().apply(Action::Blackout(Duration::from_secs(1))).unwrap();
    agent.write_all(b"later").unwrap();
    let mut received = [0; 5];
    stub.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stub.read_exact(&mut received).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(&received, b"later");
}

#[test]
fn udp_is_dropped_where_it_is_blocked() {
    let _alone = alone();
    let (server, client, relay) = udp_relay(&profile("udp-blocked"));
    let echo = echo(server);
    assert_eq!(round_trips(&client, relay.address(), 1).len(), 0);
    assert_eq!(echo.join().unwrap(), 0);
}

/// Sends until a datagram comes from where it should, for at most five seconds.
fn source_seen_by_server(
    client: &UdpSocket,
    server: &UdpSocket,
    relay: &Relay,
    until: impl Fn(SocketAddr) -> bool,
) -> SocketAddr {
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < deadline, "no datagram came from where it should");
        client.send_to(b"here", relay.address()).unwrap();
        let mut buffer = [0; 16];
        if let Ok((_, from)) = server.recv_from(&mut buffer)
            && until(from)
        {
            server.send_to(b"there", from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 5, "the answer finds its way back");
            return from;
        }
    }
}
