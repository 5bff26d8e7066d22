//! Streams between the agents and the stub.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::emulator::{Ends, Link};
use crate::link::{Direction, Packet};

/// What one packet of a stream carries: an Ethernet packet's worth.
const PIECE: usize = 1448;

/// The headers that a real link would carry with each piece, in bytes: IPv4, TCP with timestamps.
const HEADERS: usize = 20 + 32;

/// Bytes that have crossed the link and wait for a slow reader. With more, nothing is read from the other side.
const MAX_UNDELIVERED: usize = 256 * 1024;

/// Connections that one relay serves at once; later ones wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// Pieces taken from one connection before the next has its turn.
const BATCH: usize = 16;

/// How often a stream that the full queue or a blackout holds back is looked at again.
const HELD_BACK: Duration = Duration::from_micros(500);

/// How long the stub may take to accept a connection. The emulator stands still meanwhile; on loopback the kernel
/// accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct TcpEnds {
    listener: TcpListener,
    target: SocketAddr,
    connections: HashMap<ConnectionId, Connection>,
    next_id: ConnectionId,
    held_back: bool,
}

type ConnectionId = u64;

/// What a packet is to its stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    connection: ConnectionId,
    is_end: bool,
}

struct Connection {
    agent: Side,
    stub: Side,
    /// The NAT has forgotten this connection, or its address is gone: nothing passes any more, and no end is told.
    severed: bool,
}

/// One of the two sockets of a connection, and what is to be written to it.
struct Side {
    socket: TcpStream,
    undelivered: Vec<u8>,
    /// Nothing more will be read from it.
    read_to_end: bool,
    /// Nothing more will be written to it, once `undelivered` is.
    ending: bool,
    ended: bool,
}

impl TcpEnds {
    pub(super) fn new(listener: TcpListener, target: SocketAddr) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, target, connections: HashMap::new(), next_id: 0, held_back: false })
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            // Any other error is one of the connection, or passes (accept(2)).
            let Ok((agent, _)) = self.listener.accept() else { return };
            let Ok(stub) = TcpStream::connect_timeout(&self.target, CONNECT_TIMEOUT) else {
                close_with_reset(&agent);
                continue;
            };
            if let Ok(connection) = Connection::new(agent, stub) {
                self.connections.insert(self.next_id, connection);
                self.next_id += 1;
            }
        }
    }
}

impl Ends for TcpEnds {
    type Tag = Piece;

    fn receive(&mut self, link: &mut Link<Piece>) -> io::Result<usize> {
        self.accept();
        self.held_back = false;
        let mut received = 0;
        let held_back = &mut self.held_back;
        self.connections.retain(|id, connection| {
            if connection.severed {
                return true;
            }
            let moved = connection.write_undelivered().and_then(|()| {
                let up = connection.read(*id, Direction::Up, link, held_back)?;
                Ok(up + connection.read(*id, Direction::Down, link, held_back)?)
            });
            match moved {
                Ok(count) => received += count,
                // A reset is passed on at once.
                Err(_) => connection.reset(),
            }
            !connection.is_over()
        });
        Ok(received)
    }

    fn send(&mut self, direction: Direction, packet: Packet<Piece>) -> io::Result<()> {
        // What was on its way when its connection was reset is lost with it.
        let Some(connection) = self.connections.get_mut(&packet.tag.connection) else { return Ok(()) };
        let to = match direction {
            Direction::Up => &mut connection.stub,
            Direction::Down => &mut connection.agent,
        };
        to.undelivered.extend_from_slice(&packet.bytes);
        to.ending |= packet.tag.is_end;
        if !connection.severed && connection.write_undelivered().is_err() {
            connection.reset();
            self.connections.remove(&packet.tag.connection);
        }
        Ok(())
    }

    fn sources<'a>(&'a self, sources: &mut Vec<PollFd<'a>>) {
        if self.connections.len() < MAX_CONNECTIONS {
            sources.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for connection in self.connections.values().filter(|connection| !connection.severed) {
            for (side, other) in [(&connection.agent, &connection.stub), (&connection.stub, &connection.agent)] {
                let mut events = PollFlags::empty();
                events.set(PollFlags::IN, !self.held_back && side.may_read(other));
                events.set(PollFlags::OUT, !side.undelivered.is_empty());
                if !events.is_empty() {
                    sources.push(PollFd::new(&side.socket, events));
                }
            }
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        self.held_back.then(|| Instant::now() + HELD_BACK)
    }

    /// A TCP connection does not outlive its mapping.
    fn rebind_nat(&mut self) -> io::Result<()> {
        self.connections.values_mut().for_each(Connection::reset);
        self.connections.clear();
        Ok(())
    }

    /// A TCP connection is bound to its address: its packets go nowhere, and only a timeout tells.
    fn change_address(&mut self) -> io::Result<()> {
        self.connections.values_mut().for_each(|connection| connection.severed = true);
        Ok(())
    }
}

impl Connection {
    fn new(agent: TcpStream, stub: TcpStream) -> io::Result<Self> {
        Ok(Self { agent: Side::new(agent)?, stub: Side::new(stub)?, severed: false })
    }

    /// Puts onto the link what it has room for.
    fn read(
        &mut self,
        connection: ConnectionId,
        direction: Direction,
        link: &mut Link<Piece>,
        held_back: &mut bool,
    ) -> io::Result<usize> {
        let (from, to) = match direction {
            Direction::Up => (&mut self.agent, &self.stub),
            Direction::Down => (&mut self.stub, &self.agent),
        };
        let path = link.path(direction);
        let mut buffer = [0; PIECE];
        for count in 0..BATCH {
            if !from.may_read(to) {
                return Ok(count);
            }
            let now = Instant::now();
            if path.is_blacked_out(now) || !path.has_room(now, PIECE + HEADERS) {
                *held_back = true;
                return Ok(count);
            }
            let length = match from.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let is_end = length == 0;
            from.read_to_end = is_end;
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            let packet = Packet { bytes, wire_length: length + HEADERS, tag: Piece { connection, is_end } };
            path.handle_packet(now, packet);
        }
        Ok(BATCH)
    }

    fn write_undelivered(&mut self) -> io::Result<()> {
        self.agent.write_undelivered()?;
        self.stub.write_undelivered()
    }

    fn is_over(&self) -> bool {
        [&self.agent, &self.stub].into_iter().all(|side| side.read_to_end && side.ended)
    }

    fn reset(&mut self) {
        for side in [&mut self.agent, &mut self.stub] {
            close_with_reset(&side.socket);
            (side.read_to_end, side.ended) = (true, true);
        }
    }
}

impl Side {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, undelivered: Vec::new(), read_to_end: false, ending: false, ended: false })
    }

    /// Whether more may be read from here for a peer that takes it.
    fn may_read(&self, to: &Self) -> bool {
        !self.read_to_end && to.undelivered.len() < MAX_UNDELIVERED
    }

    fn write_undelivered(&mut self) -> io::Result<()> {
        while !self.undelivered.is_empty() {
            match self.socket.write(&self.undelivered) {
                Ok(written) => _ = self.undelivered.drain(..written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.ending && !self.ended {
            self.ended = true;
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

/// Makes the end of `socket` a reset: closing a socket that lingers for no time sends one (socket(7)). Where that fails,
/// it is closed all the same.
fn close_with_reset(socket: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
