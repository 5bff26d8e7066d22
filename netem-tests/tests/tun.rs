//! The emulated link between two namespaces does what its profile says. Skipped without root.

mod common;
mod sockets;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{alone, profile};
use netem_tests::link::Loss;
use netem_tests::profile::{Action, Profile};
use netem_tests::tun::{Namespace, PRIVATE_ADDRESS, PUBLIC_ADDRESS, TunNetwork, TunReport};
use netem_tests::units::Probability;
use sockets::{bulk, connected, echo, median, round_trips};

const SEED: u64 = 1;

/// A network, or `None` and a word about it where there is no root.
fn network(profile: &Profile) -> Option<TunNetwork> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    Some(TunNetwork::start(profile, SEED).unwrap())
}

fn udp(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    namespace.run(move || UdpSocket::bind((address, 0))).unwrap().unwrap()
}

fn listen(namespace: &Namespace) -> (TcpListener, SocketAddr) {
    let listener = namespace.run(|| TcpListener::bind((PUBLIC_ADDRESS, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    namespace.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(10))).unwrap().unwrap()
}

/// Whether upper bounds on time can be asserted: not where the machine was too busy to emulate the link.
fn is_valid(report: &TunReport) -> bool {
    if !report.is_valid() {
        eprintln!("not judged:\n{report}");
    }
    report.is_valid()
}

#[test]
fn the_round_trip_time_is_that_of_the_profile() {
    let _alone = alone();
    for name in ["clean", "lan", "wan-50ms", "satellite"] {
        let profile = profile(name);
        let Some(mut network) = network(&profile) else { return };
        let server = udp(network.public(), PUBLIC_ADDRESS);
        let client = udp(network.private(), PRIVATE_ADDRESS);
        let to = server.local_addr().unwrap();
        let echo = echo(server);
        let measured = median(round_trips(&client, to, 11));
        let asked = profile.up.delay + profile.down.delay;
        let report = network.report().unwrap();
        eprintln!("{name}: {measured:?} of {asked:?}; lateness {}", report.link.lateness);
        assert!(measured >= asked);
        assert!(!is_valid(&report) || measured <= asked + Duration::from_millis(5));
        echo.join().unwrap();
    }
}

#[test]
fn as_many_packets_are_lost_as_the_profile_says() {
    let _alone = alone();
    let mut profile = profile("lossy-5");
    profile.down.loss = Loss::Independent(Probability::NEVER);
    let Some(mut network) = network(&profile) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    // What the echo is too slow for must not count as lost.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&server, 64 << 20).unwrap();
    let client = udp(network.private(), PRIVATE_ADDRESS);
    let to = server.local_addr().unwrap();
    let echo = echo(server);
    let sent = 20_000;
    for number in 0..sent {
        client.send_to(&[0; 200], to).unwrap();
        if number % 10 == 9 {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let arrived = echo.join().unwrap();
    let report = network.report().unwrap();
    let measured = 1.0 - arrived as f64 / f64::from(sent);
    eprintln!("{measured:.4} lost of 0.05; {:?}, lateness {}", report.link.up, report.link.lateness);
    // Four standard deviations of the binomial distribution.
    assert!(!is_valid(&report) || (measured - 0.05).abs() < 4.0 * (0.05f64 * 0.95 / f64::from(sent)).sqrt());
    assert_eq!(report.link.up.delivered, arrived as u64);
}

#[test]
fn tcp_fills_the_link_and_no_more() {
    let _alone = alone();
    for (name, congestion, reach) in [
        ("wan-50ms", "cubic", 0.7),
        ("wan-50ms", "bbr", 0.7),
        ("bufferbloat-10mbit", "cubic", 0.85),
        ("lossy-2", "cubic", 0.0),
        ("lossy-2", "bbr", 0.2),
    ] {
        let profile = profile(name);
        let Some(mut network) = network(&profile) else { return };
        let (listener, to) = listen(network.public());
        let (receiver, sender) = connected(&listener, || connect(network.private(), to));
        if rustix::net::sockopt::set_tcp_congestion(&sender, congestion).is_err() {
            eprintln!("skipped: this kernel has no {congestion}");
            continue;
        }
        let asked = profile.down.rate.unwrap().bits_per_second() as f64;
        let measured = bulk(sender, receiver, Duration::from_secs(6));
        let report = network.report().unwrap();
        eprintln!("{name}, {congestion}: {:.1} of {:.1} Mbit/s\n{report}", measured / 1e6, asked / 1e6);
        assert!(measured <= asked);
        assert!(!is_valid(&report) || measured >= reach * asked);
    }
}

#[test]
fn nothing_passes_during_a_blackout() {
    let _alone = alone();
    let Some(network) = network(&profile("clean")) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    let client = udp(network.private(), PRIVATE_ADDRESS);
    let to = server.local_addr().unwrap();
    let echo = echo(server);
    assert_eq!(round_trips(&client, to, 3).len(), 3);
    network.control().apply(Action::Blackout(Duration::from_millis(1500))).unwrap();
    // Each waits a second for its answer.
    assert_eq!(round_trips(&client, to, 1).len(), 0);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(round_trips(&client, to, 3).len(), 3);
    echo.join().unwrap();
}

/// Asks until the answer comes from the expected side of a change, for at most five seconds.
fn source_seen_by_server(client: &UdpSocket, server: &UdpSocket, until: impl Fn(SocketAddr) -> bool) -> SocketAddr {
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let to = server.local_addr().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < deadline, "no packet came from where it should");
        client.send_to(b"here", to).unwrap();
        let mut buffer = [0; 16];
        if let Ok((_, from)) = server.recv_from(&mut buffer)
            && until(from)
        {
            server.send_to(b"there", from).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 5, "the answer finds its way back");
            return from;
        }
    }
}

#[test]
fn a_rebound_nat_shows_the_stub_another_port_and_resets_tcp() {
    let _alone = alone();
    let Some(network) = network(&profile("lan")) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    let client = udp(network.private(), PRIVATE_ADDRESS);
    let local = client.local_addr().unwrap();
    assert_eq!(source_seen_by_server(&client, &server, |_| true), local);
    let (listener, to) = listen(network.public());
    let (mut inside, _outside) = connected(&listener, || connect(network.private(), to));

    network.control().apply(Action::NatRebind).unwrap();
    let rebound = source_seen_by_server(&client, &server, |from| from.port() != local.port());
    assert_eq!(rebound.ip(), local.ip());

    inside.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    inside.write_all(b"lost").unwrap();
    let error = inside.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn the_agent_changes_its_address() {
    let _alone = alone();
    let Some(network) = network(&profile("lan")) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    let client = udp(network.private(), "0.0.0.0".parse().unwrap());
    for _ in 0..2 {
        let before = source_seen_by_server(&client, &server, |_| true).ip();
        network.control().apply(Action::AddressChange).unwrap();
        source_seen_by_server(&client, &server, |from| from.ip() != before);
    }
}

#[test]
fn udp_is_dropped_where_it_is_blocked_and_tcp_is_not() {
    let _alone = alone();
    let Some(network) = network(&profile("udp-blocked")) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    let client = udp(network.private(), PRIVATE_ADDRESS);
    let to = server.local_addr().unwrap();
    let echo = echo(server);
    assert_eq!(round_trips(&client, to, 1).len(), 0);
    assert_eq!(echo.join().unwrap(), 0);
    let (listener, to) = listen(network.public());
    connected(&listener, || connect(network.private(), to));
}

#[test]
fn a_program_runs_in_its_namespace_and_ends_with_it() {
    let _alone = alone();
    let Some(network) = network(&profile("clean")) else { return };
    let mut show = Command::new("ip");
    show.args(["-o", "-4", "address", "show", "dev", "link0"]).stdout(Stdio::piped());
    let mut show = network.private().spawn(show).unwrap();
    let mut shown = String::new();
    show.child().stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert!(shown.contains(&PRIVATE_ADDRESS.to_string()), "{shown}");

    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
    let mut shell = network.private().spawn(shell).unwrap();
    let mut grandchild = String::new();
    BufReader::new(shell.child().stdout.take().unwrap()).read_line(&mut grandchild).unwrap();
    let (child, grandchild) = (shell.id(), grandchild.trim().parse().unwrap());
    assert!(is_running(child) && is_running(grandchild));
    drop(shell);
    drop(network);
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_running(child) || is_running(grandchild) {
        assert!(Instant::now() < deadline, "a program has outlived its namespace");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_threads_of_a_thread_in_a_namespace_are_there_too() {
    let _alone = alone();
    let Some(network) = network(&profile("clean")) else { return };
    let server = udp(network.public(), PUBLIC_ADDRESS);
    let to = server.local_addr().unwrap();
    let echo = echo(server);
    let answered = network.private().spawn_thread("driver", move || {
        std::thread::spawn(move || round_trips(&UdpSocket::bind((PRIVATE_ADDRESS, 0)).unwrap(), to, 1).len()).join()
    });
    assert_eq!(answered.unwrap().join().unwrap().unwrap(), 1);
    echo.join().unwrap();
}

fn is_running(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
