//! A TCP server without a tunnel, for a transfer that shares the link with it.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_congestion;

use crate::tun::Namespace;

/// What it may wait before it looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(200);

/// Sends zeros to the first who connects, with Cubic. Dropping it ends that.
#[derive(Debug)]
pub struct PlainTcp {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PlainTcp {
    /// Listens in a namespace.
    ///
    /// # Errors
    /// When there is no socket or no thread to be had.
    pub fn start(side: &Namespace, address: IpAddr) -> io::Result<Self> {
        let listener = side.run(move || TcpListener::bind((address, 0)))??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = side.spawn_thread("plain TCP", {
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // The client has ended, or we should.
                        Ok((socket, _)) => _ = send(socket, &stop),
                        Err(_) => std::thread::sleep(PATIENCE / 10),
                    }
                }
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PlainTcp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn send(mut socket: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    set_tcp_congestion(&socket, "cubic")?;
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let zeros = vec![0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        match socket.write(&zeros) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
