//! Measuring a network with plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Sends every datagram back to where it came from, until none has come for two seconds. Returns how many came.
pub fn echo(socket: UdpSocket) -> std::thread::JoinHandle<usize> {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut count = 0;
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    count += 1;
                    socket.send_to(&buffer[..length], from).unwrap();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return count,
                Err(_) => {}
            }
        }
    })
}

/// The round trip times of `count` datagrams, one after the other; lost ones are missing.
pub fn round_trips(socket: &UdpSocket, to: SocketAddr, count: u32) -> Vec<Duration> {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut times = Vec::new();
    for number in 0..count {
        let sent = Instant::now();
        socket.send_to(&number.to_be_bytes(), to).unwrap();
        let mut answer = [0; 4];
        while let Ok((4, _)) = socket.recv_from(&mut answer) {
            if u32::from_be_bytes(answer) == number {
                times.push(sent.elapsed());
                break;
            }
        }
    }
    times
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Bits per second that `receiver` has received in `length` of bulk, without the first half of it.
pub fn bulk(sender: TcpStream, receiver: TcpStream, length: Duration) -> f64 {
    let sending = std::thread::spawn(move || {
        let mut sender = sender;
        let chunk = vec![0x5a; 64 * 1024];
        let start = Instant::now();
        while start.elapsed() < length && sender.write_all(&chunk).is_ok() {}
    });
    let mut receiver = receiver;
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let (start, half) = (Instant::now(), length / 2);
    let mut bytes = 0;
    let mut measured_from = None;
    while start.elapsed() < length {
        let Ok(read @ 1..) = receiver.read(&mut buffer) else { break };
        match measured_from {
            None if start.elapsed() >= half => measured_from = Some(Instant::now()),
            None => {}
            Some(_) => bytes += read,
        }
    }
    let elapsed = measured_from.map_or(Duration::ZERO, |from| from.elapsed());
    drop(receiver);
    sending.join().unwrap();
    bytes as f64 * 8.0 / elapsed.as_secs_f64()
}

/// A connected pair: the client's end and the server's.
pub fn connected(listener: &TcpListener, connect: impl FnOnce() -> TcpStream) -> (TcpStream, TcpStream) {
    let client = connect();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}
