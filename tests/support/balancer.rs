//! A TCP load balancer as a Kubernetes Service is one: each connection goes to one of the servers that are ready.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::eventually;

/// How often readiness is asked for. It is also how long a server goes on getting connections that is not ready any more.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A balancer; it ends when it is dropped.
pub struct Balancer {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

/// A server behind a balancer.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    /// Where its clients go.
    pub address: SocketAddr,
    /// Where it answers `/readyz`.
    pub admin: SocketAddr,
}

struct State {
    backends: Vec<Backend>,
    ready: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    stopped: AtomicBool,
}

impl Balancer {
    /// Starts one and waits until all of `backends` are ready.
    pub fn start(backends: Vec<Backend>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            backends,
            ready: Mutex::default(),
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let (asking, accepting) = (state.clone(), state.clone());
        std::thread::spawn(move || asking.ask());
        std::thread::spawn(move || accepting.accept(&listener));
        let balancer = Self { address, state };
        let count = balancer.state.backends.len();
        eventually("every server is ready", || (balancer.ready().len() == count).then_some(()));
        balancer
    }

    /// Makes a kubeconfig file that leads to the server at `address` lead here.
    pub fn kubeconfig(&self, path: &Path, address: SocketAddr) -> PathBuf {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replace(&address.to_string(), &self.address.to_string())).unwrap();
        path.to_owned()
    }

    /// The servers that get connections now.
    pub fn ready(&self) -> Vec<SocketAddr> {
        self.state.ready.lock().unwrap().clone()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn ask(&self) {
        while !self.stopped.load(Ordering::SeqCst) {
            let ready = self.backends.iter().filter(|backend| is_ready(backend.admin));
            let ready = ready.map(|backend| backend.address).collect();
            *self.ready.lock().unwrap() = ready;
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn accept(&self, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let ready = self.ready.lock().unwrap().clone();
            let Some(count) = std::num::NonZero::new(ready.len()) else { continue };
            let backend = ready[self.next.fetch_add(1, Ordering::SeqCst) % count];
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(backend)) else { continue };
            for socket in [&client, &server] {
                socket.set_nodelay(true).unwrap();
            }
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                std::thread::spawn(move || {
                    // Either end may go away at any time.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    }
}

fn is_ready(admin: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(admin)?;
        socket.set_read_timeout(Some(ASK_EVERY * 10))?;
        socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer)?;
        Ok(answer.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
