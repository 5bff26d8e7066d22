//! Datagrams between the agents and the stub.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;

use crate::emulator::{Ends, Link};
use crate::link::{Direction, Packet};

/// The headers that a real link would carry with each datagram, in bytes: IPv4 without options, UDP.
const HEADERS: usize = 20 + 8;

/// Agents that one relay serves. Datagrams of others are dropped.
const MAX_SESSIONS: usize = 256;

/// Datagrams taken from one socket before the next has its turn.
const BATCH: usize = 64;

/// Enough for 100 ms at 300 Mbit/s: the model's queue is what should overflow.
const SOCKET_BUFFER: usize = 4 << 20;

pub(super) struct UdpEnds {
    /// Where agents send to.
    socket: UdpSocket,
    target: SocketAddr,
    blocked: bool,
    sessions: Vec<Session>,
    /// The last part of the loopback address from which datagrams reach the stub.
    host: u8,
    buffer: Vec<u8>,
}

/// An agent, as the NAT sees it.
struct Session {
    agent: SocketAddr,
    /// What the stub sees of the agent.
    outside: UdpSocket,
    /// The socket before the last rebinding: held, so that datagrams to it are dropped and not refused.
    retired: Option<UdpSocket>,
}

/// The place of a session in its list; sessions are never removed.
type SessionIndex = usize;

impl UdpEnds {
    pub(super) fn new(socket: UdpSocket, target: SocketAddr, blocked: bool) -> io::Result<Self> {
        let socket = prepared(socket)?;
        Ok(Self { socket, target, blocked, sessions: Vec::new(), host: 1, buffer: vec![0; 65_536] })
    }

    fn receive_from_agents(&mut self, link: &mut Link<SessionIndex>) -> io::Result<usize> {
        for count in 0..BATCH {
            let (length, agent) = match self.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if is_over(&error) => return Ok(count),
                // An ICMP message about an earlier datagram.
                Err(_) => continue,
            };
            if self.blocked {
                continue;
            }
            let known = self.sessions.iter().position(|session| session.agent == agent);
            let session = match known {
                Some(session) => session,
                None if self.sessions.len() == MAX_SESSIONS => continue,
                None => self.open_session(agent)?,
            };
            link.up.handle_packet(Instant::now(), packet(&self.buffer, length, session));
        }
        Ok(BATCH)
    }

    fn receive_from_stub(&mut self, link: &mut Link<SessionIndex>) -> usize {
        let mut received = 0;
        for (index, session) in self.sessions.iter().enumerate() {
            for _ in 0..BATCH {
                match session.outside.recv(&mut self.buffer) {
                    Ok(length) => {
                        received += 1;
                        link.down.handle_packet(Instant::now(), packet(&self.buffer, length, index));
                    }
                    Err(error) if is_over(&error) => break,
                    Err(_) => {}
                }
            }
        }
        received
    }

    fn open_session(&mut self, agent: SocketAddr) -> io::Result<SessionIndex> {
        let outside = self.outside_socket()?;
        self.sessions.push(Session { agent, outside, retired: None });
        Ok(self.sessions.len() - 1)
    }

    fn outside_socket(&self) -> io::Result<UdpSocket> {
        let address: IpAddr = match self.target {
            SocketAddr::V4(target) if target.ip().is_loopback() => Ipv4Addr::new(127, 0, 0, self.host).into(),
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = prepared(UdpSocket::bind((address, 0))?)?;
        socket.connect(self.target)?;
        Ok(socket)
    }
}

impl Ends for UdpEnds {
    type Tag = SessionIndex;

    fn receive(&mut self, link: &mut Link<SessionIndex>) -> io::Result<usize> {
        Ok(self.receive_from_agents(link)? + self.receive_from_stub(link))
    }

    fn send(&mut self, direction: Direction, packet: Packet<SessionIndex>) -> io::Result<()> {
        if let Some(session) = self.sessions.get(packet.tag) {
            // A socket that is full or whose peer is gone loses the datagram, as a network would.
            let _ = match direction {
                Direction::Up => session.outside.send(&packet.bytes),
                Direction::Down => self.socket.send_to(&packet.bytes, session.agent),
            };
        }
        Ok(())
    }

    fn sources<'a>(&'a self, sources: &mut Vec<PollFd<'a>>) {
        sources.push(PollFd::new(&self.socket, PollFlags::IN));
        sources.extend(self.sessions.iter().map(|session| PollFd::new(&session.outside, PollFlags::IN)));
    }

    fn rebind_nat(&mut self) -> io::Result<()> {
        for index in 0..self.sessions.len() {
            let fresh = self.outside_socket()?;
            if let Some(session) = self.sessions.get_mut(index) {
                session.retired.replace(std::mem::replace(&mut session.outside, fresh));
            }
        }
        Ok(())
    }

    /// On loopback all of 127.0.0.0/8 is ours; towards any other target there is one address only.
    fn change_address(&mut self) -> io::Result<()> {
        if !self.target.ip().is_loopback() || self.target.is_ipv6() {
            return Err(io::Error::other("only a relay to an IPv4 address of loopback can change its own address"));
        }
        self.host = self.host % 250 + 1;
        self.rebind_nat()
    }
}

fn packet(buffer: &[u8], length: usize, session: SessionIndex) -> Packet<SessionIndex> {
    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
    Packet { bytes, wire_length: length + HEADERS, tag: session }
}

fn prepared(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    // Root may exceed net.core.rmem_max; others get as much as they may.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
    }
    Ok(socket)
}

fn is_over(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
