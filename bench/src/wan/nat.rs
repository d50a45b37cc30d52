//! A NAT box: many private hosts behind one address, as most homes have it.
//!
//! Pure: packets and times go in, packets come out. Knows IPv4 with UDP and TCP; everything else, and fragments, it drops,
//! as simple boxes do.
//!
//! # Rules (words of RFC 4787)
//!
//! - **mapping**: the first packet of an inner address and port takes an outer port, which is never the inner one, so that
//!   nobody behind it can guess it. [`NatKind::PortRestricted`]: the same for every destination (endpoint-independent), so that
//!   what one peer observes is true for another and holes can be punched. [`NatKind::Symmetric`]: another one for every
//!   destination (address- and port-dependent); they cannot.
//! - **filter**: a packet from outside passes if something was sent from that mapping to exactly its address and port
//!   (address- and port-dependent).
//! - **time**: a mapping, and a hole in the filter, ends [`UDP_IDLE`] ([`TCP_IDLE`]) after the last packet that left through
//!   it. What comes in renews nothing.
//! - **hairpin**: none; neighbours reach each other by their inner addresses only.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::topology::NatKind;

/// How long a silent UDP flow is remembered. The RFC asks for two minutes; many boxes grant this.
pub const UDP_IDLE: Duration = Duration::from_secs(30);
/// The same for TCP, whose end is not looked at.
pub const TCP_IDLE: Duration = Duration::from_secs(3600);
/// Outer ports; below are well-known ones.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=59_999;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// One box.
#[derive(Debug)]
pub(super) struct Nat {
    outer: Ipv4Addr,
    kind: NatKind,
    /// By what is inside: outer ports.
    ports: HashMap<Flow, u16>,
    /// By outer port; at most as many as [`PORTS`].
    mappings: BTreeMap<(u8, u16), Mapping>,
    next_port: u16,
}

/// What has a mapping of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    inner: SocketAddrV4,
    /// Of a symmetric box.
    remote: Option<SocketAddrV4>,
}

#[derive(Debug)]
struct Mapping {
    flow: Flow,
    /// When the last packet left for each remote address.
    sent_ns: HashMap<SocketAddrV4, u64>,
}

impl Nat {
    pub(super) fn new(outer: Ipv4Addr, kind: NatKind) -> Self {
        Self {
            outer,
            kind,
            ports: HashMap::new(),
            mappings: BTreeMap::new(),
            next_port: *PORTS.start(),
        }
    }

    /// Takes a packet from inside: whether it leaves, now from the outer address.
    pub(super) fn send(&mut self, now_ns: u64, packet: &mut [u8]) -> bool {
        let Some(mut datagram) = Datagram::of(packet) else {
            return false;
        };
        let (protocol, inner, remote) =
            (datagram.protocol, datagram.source(), datagram.destination());
        let flow = Flow {
            protocol,
            inner,
            remote: (self.kind == NatKind::Symmetric).then_some(remote),
        };
        let Some(port) = self.port_of(now_ns, flow) else {
            return false;
        };
        if let Some(mapping) = self.mappings.get_mut(&(protocol, port)) {
            mapping.sent_ns.insert(remote, now_ns);
        }
        datagram.set_source(SocketAddrV4::new(self.outer, port));
        true
    }

    /// The inner address that a packet from outside is for, as far as its port tells: whether it passes shows when it
    /// arrives.
    pub(super) fn inner_of(&self, packet: &mut [u8]) -> Option<Ipv4Addr> {
        let datagram = Datagram::of(packet)?;
        let key = (datagram.protocol, datagram.destination().port());
        let mapping = self.mappings.get(&key)?;
        Some(*mapping.flow.inner.ip())
    }

    /// Takes a packet from outside: whether it passes, now to the inner address.
    pub(super) fn receive(&mut self, now_ns: u64, packet: &mut [u8]) -> bool {
        let Some(mut datagram) = Datagram::of(packet) else {
            return false;
        };
        let (remote, outer) = (datagram.source(), datagram.destination());
        let key = (datagram.protocol, outer.port());
        let Some(mapping) = self.mappings.get(&key) else {
            return false;
        };
        let hole = mapping.sent_ns.get(&remote);
        if !hole.is_some_and(|sent_ns| is_alive(now_ns, *sent_ns, key.0)) {
            return false;
        }
        datagram.set_destination(mapping.flow.inner);
        true
    }

    /// The outer port of `flow`, a new one if it has none; `None` when all are taken.
    fn port_of(&mut self, now_ns: u64, flow: Flow) -> Option<u16> {
        if let Some(port) = self.ports.get(&flow) {
            return Some(*port);
        }
        let key = |port| (flow.protocol, port);
        if self.mappings.contains_key(&key(self.next_port)) || self.mappings.len() >= PORTS.len() {
            self.forget_the_silent(now_ns);
        }
        for _ in PORTS {
            let port = self.next_port;
            self.next_port = if port == *PORTS.end() {
                *PORTS.start()
            } else {
                port + 1
            };
            if port != flow.inner.port() && !self.mappings.contains_key(&key(port)) {
                let mapping = Mapping {
                    flow,
                    sent_ns: HashMap::new(),
                };
                self.mappings.insert(key(port), mapping);
                self.ports.insert(flow, port);
                return Some(port);
            }
        }
        None
    }

    fn forget_the_silent(&mut self, now_ns: u64) {
        let ports = &mut self.ports;
        self.mappings.retain(|(protocol, _), mapping| {
            let mut sent_ns = mapping.sent_ns.values();
            let is_used = sent_ns.any(|sent_ns| is_alive(now_ns, *sent_ns, *protocol));
            if !is_used {
                ports.remove(&mapping.flow);
            }
            is_used
        });
    }
}

/// Whether a flow that last sent at `sent_ns` is remembered.
fn is_alive(now_ns: u64, sent_ns: u64, protocol: u8) -> bool {
    let idle = if protocol == PROTOCOL_UDP {
        UDP_IDLE
    } else {
        TCP_IDLE
    };
    u128::from(now_ns.saturating_sub(sent_ns)) < idle.as_nanos()
}

/// An unfragmented IPv4 packet with UDP or TCP in it.
struct Datagram<'a> {
    packet: &'a mut [u8],
    protocol: u8,
    /// Where UDP or TCP begins.
    payload: usize,
    /// Where its checksum lies.
    checksum: usize,
}

/// Places in an IPv4 header (RFC 791).
const IP_CHECKSUM: usize = 10;
const IP_SOURCE: usize = 12;
const IP_DESTINATION: usize = 16;
/// Places in a UDP or TCP header (RFC 768, RFC 9293).
const PORT_SOURCE: usize = 0;
const PORT_DESTINATION: usize = 2;
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

impl<'a> Datagram<'a> {
    fn of(packet: &'a mut [u8]) -> Option<Self> {
        let &[first, ..] = &*packet else {
            return None;
        };
        let payload = usize::from(first & 0x0f) * 4;
        let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
        let protocol = *packet.get(9)?;
        let checksum = payload
            + match protocol {
                PROTOCOL_UDP => UDP_CHECKSUM,
                PROTOCOL_TCP => TCP_CHECKSUM,
                _ => return None,
            };
        let is_whole = first >> 4 == 4 && payload >= 20 && fragment == 0;
        (is_whole && packet.len() >= checksum + 2).then_some(Self {
            packet,
            protocol,
            payload,
            checksum,
        })
    }

    fn source(&self) -> SocketAddrV4 {
        self.address(IP_SOURCE, PORT_SOURCE)
    }

    fn destination(&self) -> SocketAddrV4 {
        self.address(IP_DESTINATION, PORT_DESTINATION)
    }

    fn set_source(&mut self, to: SocketAddrV4) {
        self.set_address(IP_SOURCE, PORT_SOURCE, to);
    }

    fn set_destination(&mut self, to: SocketAddrV4) {
        self.set_address(IP_DESTINATION, PORT_DESTINATION, to);
    }

    fn address(&self, ip: usize, port: usize) -> SocketAddrV4 {
        let [a, b] = self.word(ip).to_be_bytes();
        let [c, d] = self.word(ip + 2).to_be_bytes();
        SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), self.word(self.payload + port))
    }

    /// Changes one end, and both checksums: that of UDP or TCP covers the addresses too.
    fn set_address(&mut self, ip: usize, port: usize, to: SocketAddrV4) {
        let [a, b, c, d] = to.ip().octets();
        let changes = [
            (ip, u16::from_be_bytes([a, b])),
            (ip + 2, u16::from_be_bytes([c, d])),
            (self.payload + port, to.port()),
        ];
        // A UDP checksum of zero says that there is none.
        let is_checked = self.protocol != PROTOCOL_UDP || self.word(self.checksum) != 0;
        for (place, new) in changes {
            let old = self.word(place);
            if place < self.payload {
                let sum = updated(self.word(IP_CHECKSUM), old, new);
                self.set_word(IP_CHECKSUM, sum);
            }
            if is_checked {
                let sum = updated(self.word(self.checksum), old, new);
                let sum = match (self.protocol, sum) {
                    (PROTOCOL_UDP, 0) => 0xffff,
                    (_, sum) => sum,
                };
                self.set_word(self.checksum, sum);
            }
            self.set_word(place, new);
        }
    }

    /// Both places are within the packet: [`Datagram::of`] has seen to it.
    fn word(&self, place: usize) -> u16 {
        u16::from_be_bytes([self.packet[place], self.packet[place + 1]])
    }

    fn set_word(&mut self, place: usize, word: u16) {
        self.packet[place..place + 2].copy_from_slice(&word.to_be_bytes());
    }
}

/// A checksum after one of the words that it covers has changed (RFC 1624, equation 3).
fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // What is left fits.
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 1);
    const SECOND_NS: u64 = 1_000_000_000;

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    /// The one's complement sum of RFC 1071, from the words themselves.
    fn checksum(words: impl Iterator<Item = u16>) -> u16 {
        let sum: u32 = words.map(u32::from).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum & 0xffff) + (sum >> 16)) as u16
    }

    fn words(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
        bytes
            .chunks(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    }

    /// Checksum of header, and of what it carries with its pseudo-header; both zero when they are right.
    fn sums(packet: &[u8]) -> (u16, u16) {
        let (header, carried) = packet.split_at(20);
        let pseudo = words(&packet[12..20])
            .chain([u16::from(packet[9]), carried.len() as u16])
            .chain(words(carried));
        (checksum(words(header)), checksum(pseudo))
    }

    fn packet(protocol: u8, from: &str, to: &str) -> Vec<u8> {
        let (from, to) = (address(from), address(to));
        let mut packet = vec![0; if protocol == PROTOCOL_UDP { 31 } else { 43 }];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&from.ip().octets());
        packet[16..20].copy_from_slice(&to.ip().octets());
        packet[20..22].copy_from_slice(&from.port().to_be_bytes());
        packet[22..24].copy_from_slice(&to.port().to_be_bytes());
        let length = packet.len();
        packet[length - 3..].copy_from_slice(b"abc");
        let (of_header, of_carried) = sums(&packet);
        // Zero would say that there is no checksum.
        let of_carried = if of_carried == 0 { 0xffff } else { of_carried };
        let place = 20
            + if protocol == PROTOCOL_UDP {
                UDP_CHECKSUM
            } else {
                TCP_CHECKSUM
            };
        packet[10..12].copy_from_slice(&of_header.to_be_bytes());
        packet[place..place + 2].copy_from_slice(&of_carried.to_be_bytes());
        assert_eq!(sums(&packet), (0, 0));
        packet
    }

    fn ends(packet: &mut [u8]) -> (SocketAddrV4, SocketAddrV4) {
        let datagram = Datagram::of(packet).unwrap();
        (datagram.source(), datagram.destination())
    }

    /// Sends from `from` to `to`; the outer address that `to` sees.
    fn sent(nat: &mut Nat, now_ns: u64, from: &str, to: &str) -> SocketAddrV4 {
        let mut packet = packet(PROTOCOL_UDP, from, to);
        assert!(nat.send(now_ns, &mut packet));
        assert_eq!(sums(&packet), (0, 0));
        assert_eq!(&packet[28..], b"abc");
        let (source, destination) = ends(&mut packet);
        assert_eq!(destination, address(to));
        assert_eq!(source.ip(), &OUTER);
        source
    }

    /// The inner address that a packet from `from` reaches, if it passes.
    fn received(
        nat: &mut Nat,
        now_ns: u64,
        from: &str,
        outer: SocketAddrV4,
    ) -> Option<SocketAddrV4> {
        let mut packet = packet(PROTOCOL_UDP, from, &outer.to_string());
        nat.receive(now_ns, &mut packet).then(|| {
            assert_eq!(sums(&packet), (0, 0));
            ends(&mut packet).1
        })
    }

    #[test]
    fn an_answer_comes_back_and_nobody_else_gets_in() {
        let mut nat = Nat::new(OUTER, NatKind::PortRestricted);
        let outer = sent(&mut nat, 0, "10.3.0.1:4700", "10.1.0.1:4700");
        assert_ne!(outer.port(), 4700);
        let inner = Some(address("10.3.0.1:4700"));
        assert_eq!(received(&mut nat, 1, "10.1.0.1:4700", outer), inner);
        assert_eq!(received(&mut nat, 1, "10.1.0.1:4701", outer), None);
        assert_eq!(received(&mut nat, 1, "10.2.0.1:4700", outer), None);
        let stranger = SocketAddrV4::new(OUTER, outer.port() + 1);
        assert_eq!(received(&mut nat, 1, "10.1.0.1:4700", stranger), None);
        // Another host with the same port has a port of its own.
        assert_ne!(sent(&mut nat, 1, "10.3.0.2:4700", "10.1.0.1:4700"), outer);
    }

    #[test]
    fn what_one_peer_sees_is_true_for_another_so_that_a_hole_can_be_punched() {
        let mut nat = Nat::new(OUTER, NatKind::PortRestricted);
        let inner = "10.3.0.1:4700";
        let outer = sent(&mut nat, 0, inner, "10.1.0.1:4700");
        assert_eq!(received(&mut nat, 1, "198.18.4.1:20007", outer), None);
        assert_eq!(sent(&mut nat, 2, inner, "198.18.4.1:20007"), outer);
        assert_eq!(
            received(&mut nat, 3, "198.18.4.1:20007", outer),
            Some(address(inner))
        );
    }

    #[test]
    fn a_symmetric_box_shows_every_peer_another_port() {
        let mut nat = Nat::new(OUTER, NatKind::Symmetric);
        let inner = "10.3.0.1:4700";
        let outer = sent(&mut nat, 0, inner, "10.1.0.1:4700");
        assert_ne!(sent(&mut nat, 1, inner, "10.2.0.1:4700"), outer);
        assert_eq!(sent(&mut nat, 2, inner, "10.1.0.1:4700"), outer);
        assert_eq!(received(&mut nat, 3, "10.2.0.1:4700", outer), None);
    }

    #[test]
    fn a_hole_closes_when_nothing_leaves_through_it() {
        let mut nat = Nat::new(OUTER, NatKind::PortRestricted);
        let outer = sent(&mut nat, 0, "10.3.0.1:4700", "10.1.0.1:4700");
        let last_ns = 29 * SECOND_NS;
        assert!(received(&mut nat, last_ns, "10.1.0.1:4700", outer).is_some());
        assert_eq!(
            received(&mut nat, 30 * SECOND_NS, "10.1.0.1:4700", outer),
            None
        );
        // The mapping is still there: the next packet opens the same port.
        assert_eq!(
            sent(&mut nat, 31 * SECOND_NS, "10.3.0.1:4700", "10.1.0.1:4700"),
            outer
        );
    }

    #[test]
    fn ports_of_silent_flows_are_given_away_and_those_of_others_are_not() {
        let mut nat = Nat::new(OUTER, NatKind::Symmetric);
        let flow = |number: u32| {
            let [_, _, high, low] = number.to_be_bytes();
            format!("10.1.{high}.{low}:7")
        };
        let count = PORTS.len() as u32;
        for number in 0..count {
            sent(&mut nat, 0, "10.3.0.1:4700", &flow(number));
        }
        let mut full = packet(PROTOCOL_UDP, "10.3.0.1:4700", &flow(count));
        assert!(!nat.send(29 * SECOND_NS, &mut full));
        assert!(nat.send(30 * SECOND_NS, &mut full));
        assert_eq!(nat.mappings.len(), 1);
        assert_eq!(nat.ports.len(), 1);
    }

    #[test]
    fn tcp_is_translated_and_nothing_else_is() {
        let mut nat = Nat::new(OUTER, NatKind::PortRestricted);
        let mut tcp = packet(PROTOCOL_TCP, "10.3.0.1:4702", "10.1.0.1:80");
        assert!(nat.send(0, &mut tcp));
        assert_eq!(sums(&tcp), (0, 0));
        let outer = ends(&mut tcp).0;
        let mut answer = packet(PROTOCOL_TCP, "10.1.0.1:80", &outer.to_string());
        assert!(nat.receive(SECOND_NS * 60, &mut answer));
        // The same port of UDP is another one.
        assert_eq!(received(&mut nat, 0, "10.1.0.1:80", outer), None);
        let mut icmp = packet(PROTOCOL_UDP, "10.3.0.1:0", "10.1.0.1:0");
        icmp[9] = 1;
        assert!(!nat.send(0, &mut icmp));
        let mut fragment = packet(PROTOCOL_UDP, "10.3.0.1:1", "10.1.0.1:1");
        fragment[7] = 1;
        assert!(!nat.send(0, &mut fragment));
        for length in 0..28 {
            let mut cut = packet(PROTOCOL_UDP, "10.3.0.1:1", "10.1.0.1:1");
            cut.truncate(length);
            assert!(!nat.send(0, &mut cut), "{length}");
        }
    }
}
