//! A network in front of a stub: TCP passes, UDP passes or disappears.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A relay on one port number, TCP and UDP; it ends when it is dropped.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    switches: Arc<Switches>,
}

#[derive(Default)]
struct Switches {
    udp_open: AtomicBool,
    stopped: AtomicBool,
}

/// How often the threads look whether they are still needed.
const LOOK: Duration = Duration::from_millis(50);

impl Relay {
    /// Starts one that leads to `target`, and at first swallows UDP.
    pub fn without_udp(target: SocketAddr) -> Self {
        let (tcp, udp) = (0..20)
            .find_map(|_| {
                let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
                let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
                Some((tcp, udp))
            })
            .expect("a port that is free for TCP and UDP");
        let address = tcp.local_addr().unwrap();
        let switches = Arc::new(Switches::default());
        let (of_tcp, of_udp) = (switches.clone(), switches.clone());
        std::thread::spawn(move || relay_tcp(&tcp, target, &of_tcp));
        std::thread::spawn(move || relay_udp(&udp, target, &of_udp));
        Self { address, switches }
    }

    /// From now on UDP passes, or disappears again.
    pub fn let_udp_pass(&self, pass: bool) {
        self.switches.udp_open.store(pass, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.switches.stopped.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn relay_tcp(listener: &TcpListener, target: SocketAddr, switches: &Switches) {
    for client in listener.incoming() {
        if switches.stopped.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else { continue };
        for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
            std::thread::spawn(move || {
                // Either end may go away at any time.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}

fn relay_udp(socket: &UdpSocket, target: SocketAddr, switches: &Arc<Switches>) {
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let mut ways: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buffer = [0; 65_536];
    while !switches.stopped.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        if !switches.udp_open.load(Ordering::Relaxed) {
            continue;
        }
        let way = ways.entry(client).or_insert_with(|| way_back(socket, client, target, switches.clone()));
        let _ = way.send(&buffer[..length]);
    }
}

/// A socket for one client towards `target`; what comes back on it goes to the client.
fn way_back(socket: &UdpSocket, client: SocketAddr, target: SocketAddr, switches: Arc<Switches>) -> UdpSocket {
    let (towards, socket) = (UdpSocket::bind("127.0.0.1:0").unwrap(), socket.try_clone().unwrap());
    towards.connect(target).unwrap();
    let back = towards.try_clone().unwrap();
    back.set_read_timeout(Some(LOOK)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while !switches.stopped.load(Ordering::Relaxed) {
            let Ok(length) = back.recv(&mut buffer) else { continue };
            if switches.udp_open.load(Ordering::Relaxed) {
                let _ = socket.send_to(&buffer[..length], client);
            }
        }
    });
    towards
}
