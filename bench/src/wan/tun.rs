//! TUN devices as the ends of a network: whatever a host sends leaves its namespace here as IP packets.
//!
//! What a host sends in one piece (segmentation offload, as with a real network card) is cut here into the packets that would
//! lie on a wire, with their checksums, so that rate, queue and loss act on each of them. Packets of one flow that arrive at the
//! same time are handed over in one piece again, as a card with receive offload does. Both only save processor time, of which
//! ten packets in one piece need little more than one.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tun_rs::{DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, Layer, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::nat::Nat;
use super::router::{Flight, Received, Wire};
use super::topology::Topology;

/// Name of the device of a host in its namespace.
pub const DEVICE: &str = "wan0";

/// Creates the device in the network namespace of the calling thread; it is down and has no address, and goes when it is
/// dropped.
///
/// # Errors
/// If `/dev/net/tun` cannot be opened, or the kernel refuses.
pub(super) fn create() -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .layer(Layer::L3)
        .offload(true)
        .enable(false)
        .build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// The devices of all hosts, in their order, and the NAT boxes between them.
pub(super) struct TunWire {
    devices: Vec<SyncDevice>,
    addresses: AddressBook,
    boxes: Boxes,
    packet_bytes_max: usize,
    start: Instant,
}

impl TunWire {
    pub(super) fn new(devices: Vec<SyncDevice>, topology: &Topology) -> Self {
        Self {
            devices,
            addresses: AddressBook::new(topology),
            boxes: Boxes::new(topology),
            packet_bytes_max: topology.mtu as usize,
            start: Instant::now(),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Largest IPv4 packet, and largest piece that a device gives or takes.
const PIECE_BYTES_MAX: usize = 65_535;

/// Most packets in a piece that is read: the kernel puts at most 128 datagrams into one, and segments of a stream are
/// seldom shorter than 536 bytes.
const PIECE_PACKETS_MAX: usize = IDEAL_BATCH_SIZE;

/// What a thread reads into and hands over from.
pub(super) struct Buffers {
    /// A piece as it was read, behind its header.
    piece: Box<[u8]>,
    /// The packets that it consists of.
    packets: Vec<Box<[u8]>>,
    lengths: [usize; PIECE_PACKETS_MAX],
    /// Packets to be joined, each behind the place for a header, with room for the largest piece.
    outgoing: Vec<Vec<u8>>,
    joined: GROTable,
}

impl Wire for TunWire {
    type Scratch = Buffers;

    // As many as fit a piece; a queue of more is taken in several.
    const TOGETHER_MAX: usize = 32;

    fn scratch(&self) -> Buffers {
        let packet = || vec![0; self.packet_bytes_max].into_boxed_slice();
        let outgoing = || Vec::with_capacity(2 * VIRTIO_NET_HDR_LEN + PIECE_BYTES_MAX);
        Buffers {
            piece: vec![0; VIRTIO_NET_HDR_LEN + PIECE_BYTES_MAX].into(),
            packets: (0..PIECE_PACKETS_MAX).map(|_| packet()).collect(),
            lengths: [0; PIECE_PACKETS_MAX],
            outgoing: (0..Self::TOGETHER_MAX).map(|_| outgoing()).collect(),
            joined: GROTable::new(),
        }
    }

    fn ports(&self) -> Vec<BorrowedFd<'_>> {
        self.devices.iter().map(AsFd::as_fd).collect()
    }

    fn receive(
        &self,
        port: usize,
        scratch: &mut Buffers,
        take: &mut dyn FnMut(Received<'_>),
    ) -> io::Result<()> {
        let Buffers {
            piece,
            packets,
            lengths,
            ..
        } = scratch;
        let count = self.devices[port].recv_multiple(piece, packets, lengths, 0)?;
        let now_ns = self.now_ns();
        for (packet, bytes) in packets.iter_mut().zip(*lengths).take(count) {
            let packet = &mut packet[..bytes];
            let to = self.boxes.leave(now_ns, &self.addresses, port, packet);
            take(match to {
                Some(to) => Received::Packet {
                    from: port,
                    to,
                    packet,
                },
                None => Received::Unroutable { from: port, bytes },
            });
        }
        Ok(())
    }

    fn admit(&self, from: usize, to: usize, packet: &mut [u8]) -> bool {
        self.boxes.arrive(self.now_ns(), from, to, packet)
    }

    fn deliver(&self, to: usize, packets: &[Flight], scratch: &mut Buffers) -> io::Result<()> {
        let outgoing = &mut scratch.outgoing[..packets.len()];
        for (buffer, flight) in outgoing.iter_mut().zip(packets) {
            buffer.clear();
            buffer.extend_from_slice(&[0; VIRTIO_NET_HDR_LEN]);
            buffer.extend_from_slice(flight.packet());
        }
        self.devices[to].send_multiple(&mut scratch.joined, outgoing, VIRTIO_NET_HDR_LEN)?;
        Ok(())
    }

    fn header_bytes(&self) -> usize {
        0
    }
}

/// The NAT boxes of a topology.
struct Boxes {
    /// Of every site that has one.
    nats: Vec<Option<Mutex<Nat>>>,
    /// Site of every host.
    site_of: Vec<usize>,
}

impl Boxes {
    fn new(topology: &Topology) -> Self {
        let nats = (0u8..).zip(&topology.sites).map(|(number, site)| {
            let outer = Topology::outer_address(number);
            site.nat.map(|kind| Mutex::new(Nat::new(outer, kind)))
        });
        Self {
            nats: nats.collect(),
            site_of: topology.host_sites(),
        }
    }

    /// Takes a packet that host `from` sends to another site or a neighbour: the host that it is for, if there is one that can
    /// be reached so. Now with an outer source address, if it leaves its site through a box.
    fn leave(
        &self,
        now_ns: u64,
        addresses: &AddressBook,
        from: usize,
        packet: &mut [u8],
    ) -> Option<usize> {
        let site = self.site_of[from];
        let to = match destination(packet)? {
            address if address.octets().starts_with(&OUTER) => {
                let far = usize::from(address.octets()[2]).checked_sub(1)?;
                let is_box = address.octets()[3] == 1 && far != site;
                let nat = self.nats.get(far)?.as_ref().filter(|_| is_box)?;
                addresses.host_at(lock(nat).inner_of(packet)?)?
            }
            address => {
                let to = addresses.host_at(address)?;
                let far = self.site_of[to];
                let is_private = far != site && self.nats[far].is_some();
                (!is_private).then_some(to)?
            }
        };
        match &self.nats[site] {
            Some(nat) if self.site_of[to] != site => lock(nat).send(now_ns, packet).then_some(to),
            Some(_) | None => Some(to),
        }
    }

    /// Takes a packet that arrives for host `to`: whether the box of its site lets it in, then to its inner address.
    fn arrive(&self, now_ns: u64, from: usize, to: usize, packet: &mut [u8]) -> bool {
        match &self.nats[self.site_of[to]] {
            Some(nat) if self.site_of[from] != self.site_of[to] => {
                lock(nat).receive(now_ns, packet)
            }
            Some(_) | None => true,
        }
    }
}

/// The network of all outer addresses.
const OUTER: [u8; 2] = [198, 18];

/// A thread that panicked in here left whole mappings behind.
fn lock(nat: &Mutex<Nat>) -> MutexGuard<'_, Nat> {
    nat.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where an IPv4 packet goes.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    if packet.first()? >> 4 != 4 {
        return None;
    }
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some(address.into())
}

/// Which host has an address, by the rule in [`Topology`].
struct AddressBook {
    /// Per site: its first host, and how many it has.
    sites: Vec<(usize, usize)>,
}

impl AddressBook {
    fn new(topology: &Topology) -> Self {
        let mut first = 0;
        let sites = topology
            .sites
            .iter()
            .map(|site| {
                let entry = (first, site.hosts);
                first += site.hosts;
                entry
            })
            .collect();
        Self { sites }
    }

    /// The host with this address.
    fn host_at(&self, address: Ipv4Addr) -> Option<usize> {
        let [network, site, high, low] = address.octets();
        if network != 10 {
            return None;
        }
        let (first, count) = *self.sites.get(usize::from(site).checked_sub(1)?)?;
        let number = usize::from(u16::from_be_bytes([high, low])).checked_sub(1)?;
        (number < count).then_some(first + number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::{NatKind, Site};
    use super::*;

    #[test]
    fn every_host_is_found_by_its_address_and_nobody_else() {
        let topology = Topology::default()
            .with_site(Site::new("a", 300))
            .with_site(Site::new("b", 2));
        let book = AddressBook::new(&topology);
        for (host, (_, _, address)) in topology.hosts().enumerate() {
            assert_eq!(book.host_at(address), Some(host));
        }
        for stranger in [
            [10, 0, 0, 1],
            [10, 1, 0, 0],
            [10, 2, 0, 3],
            [10, 3, 0, 1],
            [11, 1, 0, 1],
            [224, 0, 0, 251],
        ] {
            assert_eq!(book.host_at(stranger.into()), None, "{stranger:?}");
        }
    }

    #[test]
    fn only_a_whole_ipv4_header_has_a_destination() {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[16..].copy_from_slice(&[10, 1, 0, 1]);
        assert_eq!(destination(&packet), Some([10, 1, 0, 1].into()));
        assert_eq!(destination(&packet[..19]), None);
        assert_eq!(destination(&[]), None);
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
    }

    /// A UDP packet without a checksum.
    fn packet(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> [u8; 28] {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&from);
        packet[16..20].copy_from_slice(&to);
        packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
        packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
        packet
    }

    #[test]
    fn hosts_behind_a_box_reach_each_other_and_outside_and_are_reached_by_answers_only() {
        let topology = Topology::default()
            .with_site(Site::new("out", 1))
            .with_site(Site::new("home", 2).with_nat(NatKind::PortRestricted));
        let (book, boxes) = (AddressBook::new(&topology), Boxes::new(&topology));
        let (out, home, mate) = ([10, 1, 0, 1], [10, 2, 0, 1], [10, 2, 0, 2]);
        let outer = [198, 18, 2, 1];
        // By their own addresses: neighbours can, strangers cannot.
        let mut inside = packet(home, mate, [7, 7]);
        assert_eq!(boxes.leave(0, &book, 1, &mut inside), Some(2));
        assert_eq!(inside, packet(home, mate, [7, 7]));
        assert!(boxes.arrive(0, 1, 2, &mut inside));
        assert_eq!(
            boxes.leave(0, &book, 0, &mut packet(out, home, [7, 7])),
            None
        );
        // Through the box.
        assert_eq!(
            boxes.leave(0, &book, 0, &mut packet(out, outer, [7, 20_000])),
            None
        );
        let mut question = packet(home, out, [7, 9]);
        assert_eq!(boxes.leave(0, &book, 1, &mut question), Some(0));
        assert_eq!(question[12..16], outer);
        assert!(boxes.arrive(0, 1, 0, &mut question));
        let port = u16::from_be_bytes([question[20], question[21]]);
        let mut answer = packet(out, outer, [9, port]);
        assert_eq!(boxes.leave(0, &book, 0, &mut answer), Some(1));
        assert!(boxes.arrive(0, 0, 1, &mut answer));
        assert_eq!(answer[16..20], home);
        assert_eq!(answer[22..24], [0, 7]);
        let mut stranger = packet(out, outer, [10, port]);
        assert_eq!(boxes.leave(0, &book, 0, &mut stranger), Some(1));
        assert!(!boxes.arrive(0, 0, 1, &mut stranger));
        // No hairpin.
        assert_eq!(
            boxes.leave(0, &book, 2, &mut packet(mate, outer, [9, port])),
            None
        );
    }
}
