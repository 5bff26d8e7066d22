//! Keeps a connection on the path that this host has to its stub, while addresses and routes change.
//!
//! The socket is bound to no address, so the system itself sends from whichever address leads to the stub. What it does
//! not do is say so to the stub before the next packet happens to go out, and until then everything the stub sends goes
//! to where the agent was.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::sleep;

use super::network_changes::NetworkChanges;
use crate::carrier::{Connection, PathState};

/// Changes come in groups: an address, its routes, the default route. The path is looked up at the first of them, and
/// not again before this has passed.
const SETTLE: Duration = Duration::from_millis(20);

/// Follows changes of the network and of the connection for as long as it is polled.
pub async fn follow(connection: &Connection) -> Infallible {
    let stub = connection.remote_address();
    let mut changes = NetworkChanges::watch();
    let mut local = local_address(stub).ok();
    let mut path = connection.path_state();
    let mut before = *path.borrow_and_update();
    loop {
        tokio::select! {
            () = changes.next() => {
                local = moved(connection, stub, local);
                sleep(SETTLE).await;
            }
            Ok(()) = path.changed() => {
                let now = *path.borrow_and_update();
                log(std::mem::replace(&mut before, now), now);
            }
        }
    }
}

/// Moves the connection if another address leads to the stub now. Gives the address that does; without a route the one
/// that did last.
fn moved(connection: &Connection, stub: SocketAddr, before: Option<IpAddr>) -> Option<IpAddr> {
    let Ok(now) = local_address(stub) else {
        // A change that brings a route back is yet to come.
        return before;
    };
    if before == Some(now) {
        if connection.path_state().borrow().suspect_since.is_some() {
            connection.probe();
        }
        return before;
    }
    match connection.rebind() {
        Ok(()) => {
            let from = before.map_or_else(|| "nowhere".to_owned(), |address| address.to_string());
            tracing::info!(%stub, "path changed from {from} to {now}");
            Some(now)
        }
        Err(error) => {
            tracing::warn!(%stub, "cannot open a socket on the new path from {now}: {error}");
            before
        }
    }
}

/// The address of this host from which packets to `peer` go out. No packet is sent to find it.
fn local_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

fn log(before: PathState, now: PathState) {
    match (before.suspect_since, now.suspect_since) {
        (None, Some(_)) => tracing::warn!(stub = %now.remote, "the stub does not answer: streams wait"),
        (Some(since), None) => {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(stub = %now.remote, "the stub answers again after {seconds:.1} s");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(local_address(peer).unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST));
    }
}
