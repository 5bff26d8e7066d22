//! An HTTP proxy that leads every CONNECT to one address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// The proxy; it ends when it is dropped.
pub struct ConnectProxy {
    /// Where it listens.
    pub address: SocketAddr,
    stopped: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl ConnectProxy {
    /// Starts one that leads to `target`.
    pub fn start(target: SocketAddr) -> Self {
        Self::start_with_authorization(target, None)
    }

    /// The same for those alone who present this value of `Proxy-Authorization`.
    pub fn start_with_authorization(target: SocketAddr, authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        let served = Arc::new(AtomicUsize::new(0));
        let count = served.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that goes away is no failure.
                let count = count.clone();
                std::thread::spawn(move || client.and_then(|client| serve(client, target, authorization, &count)));
            }
        });
        Self { address, stopped, served }
    }

    /// How many connections it has made.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    client: TcpStream,
    target: SocketAddr,
    authorization: Option<&str>,
    served: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let wanted = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    if !head.contains(&wanted) {
        return (&client).write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    let server = TcpStream::connect(target)?;
    served.fetch_add(1, Ordering::Relaxed);
    (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client);
    std::thread::spawn(move || {
        let copied = std::io::copy(&mut from_server, &mut to_client);
        to_client.shutdown(Shutdown::Write).and(copied)
    });
    let mut to_server = server;
    std::io::copy(&mut reader, &mut to_server)?;
    to_server.shutdown(Shutdown::Write)
}
