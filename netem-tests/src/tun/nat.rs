//! A NAT that can forget its mappings, without keeping any.
//!
//! It maps ports by a bijection that changes with each rebinding; the first is the identity. Packets of old mappings
//! meet a port where nobody listens, as they would behind a NAT that was restarted: UDP goes on from another port, and a
//! TCP connection is reset by the first end that hears of it.

/// IPv4 protocol numbers (IANA).
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Ports below are left alone.
const FIRST_PORT: u16 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT as u32;

/// How far each rebinding moves a port; a prime, so that it returns only after all other ports.
const STEP: u32 = 7_919;

/// Translates the agent's ports.
#[derive(Debug, Default)]
pub(super) struct Nat {
    shift: u32,
}

impl Nat {
    pub(super) fn rebind(&mut self) {
        self.shift = (self.shift + STEP) % PORTS;
    }

    /// For packets that leave the agent's side.
    pub(super) fn translate_source(&self, packet: &mut [u8]) {
        self.translate(packet, 0, self.shift);
    }

    /// For packets that reach the agent's side.
    pub(super) fn translate_destination(&self, packet: &mut [u8]) {
        self.translate(packet, 2, PORTS - self.shift);
    }

    /// Moves the port at `offset` of the transport header. What is not IPv4 with TCP or UDP, or is a fragment without
    /// that header, passes as it is.
    fn translate(&self, packet: &mut [u8], offset: usize, shift: u32) {
        if self.shift == 0 {
            return;
        }
        let Some((protocol, header)) = transport(packet) else { return };
        let checksum_offset = match protocol {
            TCP => 16,
            UDP => 6,
            _ => return,
        };
        let (Some(port), Some(checksum)) = (word(header, offset), word(header, checksum_offset)) else { return };
        if port < FIRST_PORT {
            return;
        }
        let moved = FIRST_PORT + ((u32::from(port - FIRST_PORT) + shift) % PORTS) as u16;
        set_word(header, offset, moved);
        // A UDP checksum of zero says that there is none (RFC 768).
        if protocol != UDP || checksum != 0 {
            set_word(header, checksum_offset, updated_checksum(checksum, port, moved));
        }
    }
}

/// Whether this is an IPv4 packet with UDP in it.
pub(super) fn is_udp(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4) && packet.get(9) == Some(&UDP)
}

/// The protocol number and the transport header of an IPv4 packet that is the first fragment or the only one.
fn transport(packet: &mut [u8]) -> Option<(u8, &mut [u8])> {
    let first = *packet.first()?;
    let fragment_offset = word(packet, 6)? & 0x1fff;
    if first >> 4 != 4 || fragment_offset != 0 {
        return None;
    }
    let protocol = *packet.get(9)?;
    let header = packet.get_mut(usize::from(first & 0x0f) * 4..)?;
    Some((protocol, header))
}

/// The checksum after one word under it has changed (RFC 1624, equation 3).
fn updated_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let word = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(*word))
}

fn set_word(bytes: &mut [u8], offset: usize, value: u16) {
    if let Some(word) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut()) {
        *word = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 packet without options, a transport header and some payload.
    fn packet(protocol: u8, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 77, 1, 1, 10, 77, 0, 1];
        packet.extend(source.to_be_bytes());
        packet.extend(destination.to_be_bytes());
        packet.extend([0; 16]);
        packet.extend(payload);
        let checksum_offset = 20 + if protocol == TCP { 16 } else { 6 };
        let checksum = !sum(&packet[20..]);
        set_word(&mut packet, checksum_offset, checksum);
        packet
    }

    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn the_answer_comes_back_to_the_port_that_asked(
            port: u16, rebindings in 0..100u32, protocol in prop_oneof![Just(TCP), Just(UDP)], payload: Vec<u8>,
        ) {
            let mut nat = Nat::default();
            (0..rebindings).for_each(|_| nat.rebind());
            let mut request = packet(protocol, port, 443, &payload);
            nat.translate_source(&mut request);
            let outside = word(&request, 20).unwrap();
            prop_assert_eq!(outside == port, rebindings == 0 || port < FIRST_PORT);
            let mut answer = packet(protocol, 443, outside, &payload);
            nat.translate_destination(&mut answer);
            prop_assert_eq!(word(&answer, 22).unwrap(), port);
        }

        #[test]
        fn checksums_stay_right(port in FIRST_PORT.., protocol in prop_oneof![Just(TCP), Just(UDP)], payload: Vec<u8>) {
            let mut nat = Nat::default();
            nat.rebind();
            let mut request = packet(protocol, port, 443, &payload);
            nat.translate_source(&mut request);
            prop_assert_eq!(sum(&request[20..]), 0xffff);
        }

        #[test]
        fn bytes_that_are_no_packet_do_no_harm(mut bytes: Vec<u8>) {
            let mut nat = Nat::default();
            nat.rebind();
            nat.translate_source(&mut bytes);
            nat.translate_destination(&mut bytes);
            is_udp(&bytes);
        }
    }

    #[test]
    fn two_ports_never_become_the_same() {
        let mut nat = Nat::default();
        nat.rebind();
        let outside: std::collections::HashSet<_> = (0..=u16::MAX)
            .map(|port| {
                let mut request = packet(UDP, port, 443, &[]);
                nat.translate_source(&mut request);
                word(&request, 20)
            })
            .collect();
        assert_eq!(outside.len(), 65_536);
    }
}
