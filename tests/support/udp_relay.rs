//! A UDP relay on loopback that delays, drops, and changes addresses as a NAT does.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// What one direction holds before it drops, in packets: a second at 50 Mbit/s.
const QUEUE: usize = 4096;

/// A relay in front of one server. It ends when it is dropped.
pub struct UdpRelay {
    /// Where clients send to.
    pub address: SocketAddr,
    control: Arc<Control>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A packet on its way to the server.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// When it came to the relay.
    pub at: std::time::Instant,
    /// From where.
    pub client: SocketAddr,
    /// What it is.
    pub packet: Vec<u8>,
}

struct Control {
    server: SocketAddr,
    delay: Duration,
    blackout: AtomicBool,
    /// Counts up with each rebinding: what came before is another mapping.
    mapping: AtomicU64,
    /// The last number of the loopback address that the server sees.
    host: AtomicU8,
    passed: AtomicU64,
    flows: Mutex<HashMap<SocketAddr, Flow>>,
    /// What clients have sent, since it is recorded.
    recorded: Mutex<Option<Vec<Recorded>>>,
    /// Clients whose packets go nowhere.
    forgotten: Mutex<HashSet<SocketAddr>>,
    /// The addresses that clients have had, in the order of their appearance.
    clients: Mutex<Vec<IpAddr>>,
}

#[derive(Clone)]
struct Flow {
    mapping: u64,
    host: u8,
    to_server: mpsc::Sender<Delayed>,
}

struct Delayed {
    due: Instant,
    packet: Vec<u8>,
}

impl UdpRelay {
    /// Relays to `server` on loopback; each way takes `delay`.
    pub fn start(server: SocketAddr, delay: Duration) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), server, delay, || {})
    }

    /// The same, listening at `address`. `prepare` runs first on the thread that opens the sockets.
    pub fn start_at(
        address: SocketAddr,
        server: SocketAddr,
        delay: Duration,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Self {
        let control = Arc::new(Control {
            server,
            delay,
            blackout: AtomicBool::new(false),
            mapping: AtomicU64::new(0),
            host: AtomicU8::new(1),
            passed: AtomicU64::new(0),
            flows: Mutex::default(),
            recorded: Mutex::default(),
            forgotten: Mutex::default(),
            clients: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = {
            let (send, receive) = std::sync::mpsc::channel();
            let control = control.clone();
            let thread = std::thread::spawn(move || {
                prepare();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let front = socket(address).unwrap();
                    send.send(front.local_addr().unwrap()).unwrap();
                    tokio::select! {
                        error = control.serve(Arc::new(front)) => panic!("the relay failed: {error}"),
                        _ = stopped => {}
                    }
                });
            });
            (thread, receive.recv().expect("the relay listens"))
        };
        Self { address, control, stop: Some(stop), thread: Some(bound) }
    }

    /// Drops everything in both directions, or no longer does.
    pub fn black_out(&self, dark: bool) {
        self.control.blackout.store(dark, Ordering::SeqCst);
    }

    /// From now on the server sees every client at another port, as after a NAT forgot its bindings.
    pub fn change_ports(&self) {
        self.control.mapping.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on the server sees every client at another address of loopback.
    pub fn change_addresses(&self) {
        self.control.host.fetch_add(1, Ordering::SeqCst);
        self.change_ports();
    }

    /// Drops everything of the clients that there are, and lets new ones through: the server has forgotten them.
    pub fn forget_clients(&self) {
        let mut flows = self.control.flows.lock().unwrap();
        let mut forgotten = self.control.forgotten.lock().unwrap();
        forgotten.extend(flows.drain().map(|(client, _)| client));
        self.change_ports();
    }

    /// Records from now on, and anew, what clients send.
    pub fn record(&self) {
        *self.control.recorded.lock().unwrap() = Some(Vec::new());
    }

    /// What clients have sent since [`record`](Self::record).
    pub fn recorded(&self) -> Vec<Recorded> {
        self.control.recorded.lock().unwrap().clone().unwrap_or_default()
    }

    /// Sends what was recorded once more, the way that it went the first time.
    pub fn repeat(&self, recorded: &[Recorded]) {
        let flows = self.control.flows.lock().unwrap();
        for Recorded { client, packet, .. } in recorded {
            self.control.enqueue(&flows[client].to_server, packet);
        }
    }

    /// Packets that got through so far, both ways.
    pub fn packets(&self) -> u64 {
        self.control.passed.load(Ordering::SeqCst)
    }
}

impl Drop for UdpRelay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Control {
    async fn serve(self: Arc<Self>, front: Arc<UdpSocket>) -> io::Error {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, client) = match front.recv_from(&mut buffer).await {
                Ok(received) => received,
                // What ICMP says of a client that has gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            if self.forgotten.lock().unwrap().contains(&client) {
                continue;
            }
            if let Some(recorded) = &mut *self.recorded.lock().unwrap() {
                let (at, packet) = (std::time::Instant::now(), buffer[..length].to_vec());
                recorded.push(Recorded { at, client, packet });
            }
            let flow = self.clone().flow(client, &front);
            self.enqueue(&flow.to_server, &buffer[..length]);
        }
    }

    /// The client's mapping, a new one if it has none or it has changed. Answers on old mappings go nowhere.
    fn flow(self: Arc<Self>, client: SocketAddr, front: &Arc<UdpSocket>) -> Flow {
        let (mapping, host) = (self.mapping.load(Ordering::SeqCst), self.host(client.ip()));
        let flows = self.clone();
        let mut flows = flows.flows.lock().unwrap();
        if let Some(flow) = flows.get(&client).filter(|flow| (flow.mapping, flow.host) == (mapping, host)) {
            return flow.clone();
        }
        let upstream = Arc::new(socket((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap());
        let (to_server, queue) = mpsc::channel(QUEUE);
        let flow = Flow { mapping, host, to_server };
        tokio::spawn(self.clone().deliver(queue, upstream.clone(), self.server));
        tokio::spawn(self.clone().answers(upstream, front.clone(), client, mapping));
        flows.insert(client, flow.clone());
        flow
    }

    /// A client at a new address is one at a new address for the server as well.
    fn host(&self, client: IpAddr) -> u8 {
        let mut clients = self.clients.lock().unwrap();
        let known = clients.iter().position(|address| *address == client);
        let index = known.unwrap_or_else(|| {
            clients.push(client);
            clients.len() - 1
        });
        self.host.load(Ordering::SeqCst) + u8::try_from(index).expect("few addresses")
    }

    async fn answers(
        self: Arc<Self>,
        upstream: Arc<UdpSocket>,
        front: Arc<UdpSocket>,
        client: SocketAddr,
        mapping: u64,
    ) {
        let (to_client, queue) = mpsc::channel(QUEUE);
        tokio::spawn(self.clone().deliver(queue, front, client));
        let mut buffer = vec![0; 65_536];
        loop {
            match upstream.recv_from(&mut buffer).await {
                Ok((length, _)) if mapping == self.mapping.load(Ordering::SeqCst) => {
                    self.enqueue(&to_client, &buffer[..length]);
                }
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    fn enqueue(&self, queue: &mpsc::Sender<Delayed>, packet: &[u8]) {
        if !self.blackout.load(Ordering::SeqCst) {
            // A full queue drops, as every router's does.
            let _ = queue.try_send(Delayed { due: Instant::now() + self.delay, packet: packet.to_vec() });
        }
    }

    async fn deliver(self: Arc<Self>, mut queue: mpsc::Receiver<Delayed>, socket: Arc<UdpSocket>, to: SocketAddr) {
        while let Some(Delayed { due, packet }) = queue.recv().await {
            sleep_until(due).await;
            if !self.blackout.load(Ordering::SeqCst) {
                self.passed.fetch_add(1, Ordering::SeqCst);
                let _ = socket.send_to(&packet, to).await;
            }
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = match address.ip() {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(4 << 20);
    let _ = socket.set_send_buffer_size(4 << 20);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
