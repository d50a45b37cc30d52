//! TUN devices as the ends of a network: whatever a host sends leaves its namespace here as IP packets.
//!
//! Without segmentation offload: packets come as they would lie on a wire, so that rate, queue and loss act on each of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::router::{Received, Wire};
use super::topology::Topology;

/// Name of the device in every namespace.
pub(super) const DEVICE: &str = "wan0";

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

/// The devices of all hosts, in their order.
pub(super) struct TunWire {
    devices: Vec<SyncDevice>,
    addresses: AddressBook,
    packet_bytes_max: usize,
}

impl TunWire {
    pub(super) fn new(devices: Vec<SyncDevice>, topology: &Topology) -> Self {
        Self {
            devices,
            addresses: AddressBook::new(topology),
            packet_bytes_max: topology.mtu as usize,
        }
    }
}

impl Wire for TunWire {
    fn ports(&self) -> Vec<BorrowedFd<'_>> {
        self.devices.iter().map(AsFd::as_fd).collect()
    }

    fn receive(&self, port: usize, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = rustix::io::read(&self.devices[port], &mut *buffer)?;
        Ok(match self.addresses.host_of(&buffer[..bytes]) {
            Some(to) => Received::Packet {
                from: port,
                to,
                bytes,
            },
            None => Received::Unroutable { from: port, bytes },
        })
    }

    fn deliver(&self, _from: usize, to: usize, packet: &[u8]) -> io::Result<()> {
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

    /// The host that an IPv4 packet is for.
    fn host_of(&self, packet: &[u8]) -> Option<usize> {
        if packet.first()? >> 4 != 4 {
            return None;
        }
        let &[network, site, high, low] = packet.get(16..20)? else {
            return None;
        };
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
    use super::super::topology::Site;
    use super::*;

    #[test]
    fn every_host_is_found_by_its_address_and_nobody_else() {
        let topology = Topology::default()
            .with_site(Site::new("a", 300))
            .with_site(Site::new("b", 2));
        let book = AddressBook::new(&topology);
        let packet = |destination: [u8; 4]| {
            let mut packet = [0; 20];
            packet[0] = 0x45;
            packet[16..].copy_from_slice(&destination);
            packet
        };
        for (host, (_, _, address)) in topology.hosts().enumerate() {
            assert_eq!(book.host_of(&packet(address.octets())), Some(host));
        }
        for stranger in [
            [10, 0, 0, 1],
            [10, 1, 0, 0],
            [10, 2, 0, 3],
            [10, 3, 0, 1],
            [11, 1, 0, 1],
            [224, 0, 0, 251],
        ] {
            assert_eq!(book.host_of(&packet(stranger)), None, "{stranger:?}");
        }
        let mut six = packet([10, 1, 0, 1]);
        six[0] = 0x60;
        assert_eq!(book.host_of(&six), None);
        assert_eq!(book.host_of(&packet([10, 1, 0, 1])[..19]), None);
        assert_eq!(book.host_of(&[]), None);
    }
}
