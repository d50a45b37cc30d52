//! Hosts in network namespaces, with a router between them (root).

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::counters::Counters;
use super::fabric::Fabric;
use super::router::Router;
use super::topology::{Link, Topology, TopologyError};
use super::tun::{self, DEVICE, TunWire};
use crate::netns::{Namespace, NetnsError};

/// Packets that a host's device keeps for the router. Enough for a receive window of a fast flow while the router is not
/// scheduled; more are dropped and counted as overrun.
const DEVICE_QUEUE_PACKETS: u32 = 8192;

/// Why an emulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// The topology is at fault.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A namespace cannot be had.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A TUN device, descriptor or thread cannot be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// One host of the network.
#[derive(Debug)]
pub struct Host {
    /// `SITE-n`.
    pub name: String,
    /// The number of its site.
    pub site: usize,
    /// What others reach it by.
    pub address: Ipv4Addr,
    /// Where its processes run.
    pub namespace: Namespace,
    /// The counters of its devices.
    devices: File,
}

impl Host {
    /// Packets that its device has dropped because the router did not read in time.
    fn overrun_packets(&self) -> u64 {
        let mut text = vec![0; 4096];
        let bytes = self.devices.read_at(&mut text, 0).unwrap_or(0);
        overrun_packets(&String::from_utf8_lossy(&text[..bytes])).unwrap_or(0)
    }
}

/// The transmit drops of our device in the text of `/proc/net/dev`.
fn overrun_packets(text: &str) -> Option<u64> {
    let numbers = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    // Eight numbers of what was received, then bytes, packets, errors and drops of what was sent.
    numbers.split_ascii_whitespace().nth(11)?.parse().ok()
}

/// A running network. Dropping it kills the processes in it and removes it.
pub struct Emulator {
    // In this order: no packet moves any more when namespaces go.
    router: Option<Router>,
    hosts: Vec<Host>,
    fabric: Arc<Fabric>,
    topology: Topology,
}

impl Emulator {
    /// Makes the namespaces, joins them and begins to carry packets.
    ///
    /// # Errors
    /// [`EmulatorError`]; nothing is left behind.
    pub fn start(topology: &Topology) -> Result<Self, EmulatorError> {
        topology.validate()?;
        let mut hosts = Vec::new();
        let mut devices = Vec::new();
        for (name, site, address) in topology.hosts() {
            let namespace = Namespace::create(&name)?;
            let (device, counters) = namespace.inside(|| {
                let counters = File::open("/proc/thread-self/net/dev");
                (tun::create(), counters)
            })?;
            let fault = |what: &str| {
                let what = format!("{what} of host {name}");
                move |source| EmulatorError::Io { what, source }
            };
            devices.push(device.map_err(fault("create the tun device"))?);
            let counters = counters.map_err(fault("open the device counters"))?;
            namespace.ip(&format!(
                "link set dev {DEVICE} mtu {} txqueuelen {DEVICE_QUEUE_PACKETS} addrgenmode none up\n\
                 address add {address}/32 dev {DEVICE}\n\
                 route add default dev {DEVICE} src {address}\n",
                topology.mtu
            ))?;
            hosts.push(Host {
                name,
                site,
                address,
                namespace,
                devices: counters,
            });
        }
        let fabric = Arc::new(Fabric::new(topology));
        let wire = Arc::new(TunWire::new(devices, topology));
        let router =
            Router::start(wire, Arc::clone(&fabric)).map_err(|source| EmulatorError::Io {
                what: "start the router".to_owned(),
                source,
            })?;
        Ok(Self {
            router: Some(router),
            hosts,
            fabric,
            topology: topology.clone(),
        })
    }

    /// In the order of the topology.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What was asked for; links changed since are not in it.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Changes the link from one site to another, by their numbers, while packets pass; [`Link::severed`] makes a partition.
    /// Packets on the way still arrive.
    ///
    /// # Errors
    /// If the link is not valid.
    ///
    /// # Panics
    /// If there is no such pair of sites.
    pub fn set_link(&self, from: usize, to: usize, link: &Link) -> Result<(), TopologyError> {
        link.validate()?;
        self.fabric.set_link(from, to, link);
        Ok(())
    }

    /// What has passed so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.fabric.counters();
        for (host, counted) in self.hosts.iter().zip(&mut counters.hosts) {
            counted.overrun_packets = host.overrun_packets();
        }
        counters
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for host in &self.hosts {
            host.namespace.kill();
        }
        self.router = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overruns_are_read_from_the_right_column() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                lo:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16\n  \
              wan0:     101     102  103  104  105   106        107       108      109     110  111  112  113   114     115        116\n";
        assert_eq!(overrun_packets(text), Some(112));
        assert_eq!(overrun_packets("no such device"), None);
    }
}
