//! TUN devices as the ends of a network: whatever a host sends leaves its namespace here as IP packets.
//!
//! Without segmentation offload: packets come as they would lie on a wire, so that rate, queue and loss act on each of them.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::nat::Nat;
use super::router::{Received, Wire};
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

impl Wire for TunWire {
    fn ports(&self) -> Vec<BorrowedFd<'_>> {
        self.devices.iter().map(AsFd::as_fd).collect()
    }

    fn receive(&self, port: usize, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = rustix::io::read(&self.devices[port], &mut *buffer)?;
        let packet = &mut buffer[..bytes];
        let to = self
            .boxes
            .leave(self.now_ns(), &self.addresses, port, packet);
        Ok(match to {
            Some(to) => Received::Packet {
                from: port,
                to,
                bytes,
            },
            None => Received::Unroutable { from: port, bytes },
        })
    }

    fn deliver(&self, from: usize, to: usize, packet: &mut [u8]) -> io::Result<()> {
        if !self.boxes.arrive(self.now_ns(), from, to, packet) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        rustix::io::write(&self.devices[to], packet)?;
        Ok(())
    }

    fn packet_bytes_max(&self) -> usize {
        self.packet_bytes_max
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
