//! Hosts on one switch, joined by veth pairs: the kernel alone carries packets, at a rate that `tc` sets.
//!
//! No delay, jitter or loss: those are the emulator's (`wan`).

use std::net::Ipv4Addr;

use super::{Namespace, NetnsError};

/// Name of every host's device.
const DEVICE: &str = "eth0";

/// Most hosts on one switch; addresses have one byte for the host.
const HOSTS_MAX: usize = 250;

/// Longest that a packet waits at a full device: its queue, in milliseconds of the rate.
const QUEUE_MS: u64 = 50;

/// Namespaces around a bridge in a namespace of its own. Every host sends and receives through token buckets (TBF) of the
/// same rate, one at its device and one at the switch's port, so that many senders to one receiver wait as they would for a
/// real switch.
///
/// TBF counts Ethernet frames: of 1514 bytes 1500 are IP. A bucket holds a millisecond of the rate, at least 16 KiB and one
/// frame; the queue before it holds 50 ms.
#[derive(Debug)]
pub struct VethLink {
    hosts: Vec<(Namespace, Ipv4Addr)>,
    /// Removed last: it holds the ports of the hosts.
    _switch: Namespace,
}

impl VethLink {
    /// Joins `hosts` namespaces; `bits_per_s` of `None` is as fast as this machine.
    ///
    /// # Errors
    /// [`NetnsError`].
    ///
    /// # Panics
    /// If there are more than 250 hosts.
    pub fn start(hosts: usize, bits_per_s: Option<u64>, mtu: u32) -> Result<Self, NetnsError> {
        assert!(hosts <= HOSTS_MAX, "{hosts} hosts, more than {HOSTS_MAX}");
        let switch = Namespace::create("switch")?;
        switch.ip(&format!(
            "link add dev br0 mtu {mtu} type bridge\nlink set dev br0 addrgenmode none up\n"
        ))?;
        let mut joined = Vec::with_capacity(hosts);
        for (number, suffix) in (0..hosts).zip(1u8..) {
            let address = Ipv4Addr::new(10, 0, 0, suffix);
            let host = Namespace::create(&format!("veth-{number}"))?;
            let port = format!("port{number}");
            switch.ip(&format!(
                "link add dev {port} mtu {mtu} type veth peer name {DEVICE} mtu {mtu} netns {}\n\
                 link set dev {port} master br0 addrgenmode none up\n",
                host.name()
            ))?;
            host.ip(&format!(
                "link set dev {DEVICE} addrgenmode none up\naddress add {address}/24 dev {DEVICE}\n"
            ))?;
            if let Some(bits_per_s) = bits_per_s {
                host.tc(&bucket(DEVICE, bits_per_s, mtu))?;
                switch.tc(&bucket(&port, bits_per_s, mtu))?;
            }
            joined.push((host, address));
        }
        Ok(Self {
            hosts: joined,
            _switch: switch,
        })
    }

    /// Namespace and address of every host.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = (&Namespace, Ipv4Addr)> {
        self.hosts
            .iter()
            .map(|(namespace, address)| (namespace, *address))
    }
}

fn bucket(device: &str, bits_per_s: u64, mtu: u32) -> String {
    let frame_bytes = u64::from(mtu) + 18;
    let burst_bytes = (bits_per_s / 8000).max(16 * 1024).max(frame_bytes);
    let limit_bytes = (bits_per_s / 8000 * QUEUE_MS).max(burst_bytes * 2);
    format!(
        "qdisc add dev {device} root tbf rate {bits_per_s}bit burst {burst_bytes} limit {limit_bytes}\n"
    )
}
