//! Where peers run: on this machine's loopback, or each in a network namespace, with a link of limited rate or in an
//! emulated wide-area network.
//!
//! With root even loopback is a namespace of its own, so that the counters of its interface count the peers alone.
//! Without root, namespaces cannot be made; loopback is then the machine's own.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use gradmesh_bench::netns;
use gradmesh_bench::wan::{Emulator, Topology};
use rustix::process::geteuid;
use tokio::process::Command;

use super::link::{Link, Site};

/// Names of namespaces begin with this and the process id.
const PREFIX: &str = "gradmesh-bench";
/// Of the peers' network; nothing else is in their namespaces.
const NETWORK: [u8; 3] = [10, 77, 0];
/// The most peers that have an address in it.
pub(crate) const PEERS_MAX: u32 = 64;
/// The longest that a packet waits in a full queue of the limited link: that of an ordinary router.
const QUEUE_MS: u32 = 50;
/// What the limiter lets through at once, at least: one packet of the largest size that a virtual link carries.
const BURST_BYTES_MIN: u64 = 64 << 10;
/// A limiter that is woken this often has to let through what came due since: the slowest usual timer of kernels.
const TIMER_HZ: u64 = 250;
/// The device of every host in an emulated network.
const WAN_INTERFACE: &str = gradmesh_bench::wan::DEVICE;

/// Where one peer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Absent: the machine's own network.
    netns: Option<String>,
    pub(crate) address: Ipv4Addr,
    pub(crate) interface: &'static str,
    /// The name of its site, where there are sites.
    pub(crate) site: Option<String>,
    /// What a daemon here declares that its link carries, in Mbit/s; without it, it measures.
    pub(crate) capacity_mbit: Option<u32>,
}

impl Place {
    /// A command that will run here.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match &self.netns {
            None => Command::new(program),
            Some(netns) => {
                // Replaces itself by the program: the process id stays.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns]).arg(program);
                command
            }
        }
    }

    /// Moves the calling thread here, for good.
    pub(crate) fn enter(&self) -> io::Result<()> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd as _;
        let Some(netns) = &self.netns else {
            return Ok(());
        };
        let file = fs::File::open(Path::new("/run/netns").join(netns))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }
}

/// Places for some peers; their namespaces go when this is dropped, which is to be after the processes in them.
pub(crate) struct Network {
    pub(crate) places: Vec<Place>,
    /// Of an emulated network, with the number of peers in each; those without any are left out.
    pub(crate) sites: Vec<Site>,
    namespaces: Vec<String>,
    emulator: Option<Emulator>,
}

impl Network {
    /// # Errors
    /// What is missing: root, or a tool.
    pub(crate) async fn make(link: &Link, peers: u32) -> anyhow::Result<Network> {
        let mut network = Network {
            places: Vec::new(),
            sites: Vec::new(),
            namespaces: Vec::new(),
            emulator: None,
        };
        match link {
            Link::Loopback => network.loopback(peers).await?,
            Link::Veth { bits_per_s } => {
                if !geteuid().is_root() {
                    bail!("{link} needs root, to make network namespaces");
                }
                network.bridge(peers, *bits_per_s).await?;
            }
            Link::Wan(wide) => {
                let topology = wide.topology(peers as usize)?;
                network.wide_area(&topology, peers)?;
            }
        }
        Ok(network)
    }

    /// What entered each of [`Network::sites`] from other sites since the counters were `before`, in bytes of IP packets.
    pub(crate) fn wan_bytes_since(&self, before: &[u64]) -> Vec<u64> {
        let now = self.wan_bytes();
        now.iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect()
    }

    /// What entered each of [`Network::sites`] from other sites so far, in bytes of IP packets.
    pub(crate) fn wan_bytes(&self) -> Vec<u64> {
        let Some(emulator) = &self.emulator else {
            return Vec::new();
        };
        let counters = emulator.counters();
        let indices = self
            .sites
            .iter()
            .filter_map(|site| emulator.topology().site_index(&site.name));
        indices
            .map(|site| counters.wan_delivered(site).bytes)
            .collect()
    }

    async fn loopback(&mut self, peers: u32) -> anyhow::Result<()> {
        let netns = match self.namespace("lo").await {
            Ok(netns) => Some(netns),
            Err(_) if !geteuid().is_root() => None,
            Err(error) => return Err(error),
        };
        let place = Place {
            netns,
            address: Ipv4Addr::LOCALHOST,
            interface: "lo",
            site: None,
            capacity_mbit: None,
        };
        self.places = vec![place; peers as usize];
        Ok(())
    }

    /// A bridge in a namespace of its own, and a namespace for each peer with a link to it, limited at both ends.
    async fn bridge(&mut self, peers: u32, bits_per_s: u64) -> anyhow::Result<()> {
        let hub = self.namespace("hub").await?;
        ip(&format!("-n {hub} link add br0 type bridge")).await?;
        ip(&format!("-n {hub} link set br0 up")).await?;
        for peer in 0..peers {
            let netns = self.namespace(&peer.to_string()).await?;
            let host = u8::try_from(peer + 1).context("too many peers")?;
            let [a, b, c] = NETWORK;
            let address = Ipv4Addr::new(a, b, c, host);
            ip(&format!(
                "-n {hub} link add p{peer} type veth peer name eth0 netns {netns}"
            ))
            .await?;
            ip(&format!("-n {hub} link set p{peer} master br0 up")).await?;
            ip(&format!("-n {netns} addr add {address}/24 dev eth0")).await?;
            ip(&format!("-n {netns} link set eth0 up")).await?;
            let burst = (bits_per_s / 8 / TIMER_HZ).max(BURST_BYTES_MIN);
            let limit = format!("root tbf rate {bits_per_s}bit burst {burst} latency {QUEUE_MS}ms");
            tool("tc", &format!("-n {netns} qdisc add dev eth0 {limit}")).await?;
            tool("tc", &format!("-n {hub} qdisc add dev p{peer} {limit}")).await?;
            self.places.push(Place {
                netns: Some(netns),
                address,
                interface: "eth0",
                site: None,
                capacity_mbit: None,
            });
        }
        Ok(())
    }

    /// The hosts of `topology`, of which the peers take one at each site in turn.
    fn wide_area(&mut self, topology: &Topology, peers: u32) -> anyhow::Result<()> {
        netns::available().context("an emulated network cannot be had here")?;
        let taken = taken_in_turn(&topology.host_sites(), peers as usize);
        ensure!(
            taken.len() == peers as usize,
            "{peers} peers, but the network has {} hosts",
            taken.len()
        );
        let emulator = Emulator::start(topology)?;
        for host in taken {
            let host = &emulator.hosts()[host];
            let site = &topology.sites[host.site].name;
            match self.sites.iter_mut().find(|known| known.name == *site) {
                Some(known) => known.peers += 1,
                None => self.sites.push(Site {
                    name: site.clone(),
                    peers: 1,
                }),
            }
            self.places.push(Place {
                netns: Some(host.namespace.name().to_owned()),
                address: host.address,
                interface: WAN_INTERFACE,
                site: Some(site.clone()),
                capacity_mbit: None,
            });
        }
        self.emulator = Some(emulator);
        Ok(())
    }

    /// A new namespace with its loopback up.
    async fn namespace(&mut self, name: &str) -> anyhow::Result<String> {
        let netns = format!("{PREFIX}-{}-{name}", std::process::id());
        ip(&format!("netns add {netns}")).await?;
        self.namespaces.push(netns.clone());
        ip(&format!("-n {netns} link set lo up")).await?;
        Ok(netns)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for netns in &self.namespaces {
            let deleted = std::process::Command::new("ip")
                .args(["netns", "delete", netns])
                .stdin(Stdio::null())
                .status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!(
                    "cannot delete network namespace {netns}: do it with `ip netns delete {netns}`"
                );
            }
        }
    }
}

/// The first `count` hosts when sites take turns, each with its hosts in order; fewer when there are not so many.
/// `site_of`: the site of every host.
fn taken_in_turn(site_of: &[usize], count: usize) -> Vec<usize> {
    let mut seen = Vec::new();
    let mut hosts: Vec<(usize, usize)> = Vec::new();
    for (host, &site) in site_of.iter().enumerate() {
        seen.resize(seen.len().max(site + 1), 0);
        hosts.push((seen[site], host));
        seen[site] += 1;
    }
    // Hosts are in the order of their sites.
    hosts.sort_unstable();
    hosts
        .into_iter()
        .map(|(_, host)| host)
        .take(count)
        .collect()
}

async fn ip(words: &str) -> anyhow::Result<()> {
    tool("ip", words).await
}

/// Runs `name` with `words`, separated by blanks.
async fn tool(name: &str, words: &str) -> anyhow::Result<()> {
    let output = Command::new(name)
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        // Not interrupted by a Ctrl-C at the terminal: what it makes is registered when it is done.
        .process_group(0)
        .output()
        .await
        .with_context(|| format!("running {name}, of the package iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    bail!("{name} {words}: {}", reason.trim())
}

/// Bytes that all peers' interfaces received so far; an interface that peers share counts once.
pub(crate) fn received<'a>(peers: impl Iterator<Item = (&'a Place, u32)>) -> f64 {
    let mut seen: Vec<&Place> = Vec::new();
    let mut bytes = 0;
    for (place, id) in peers {
        if !seen.contains(&place) {
            seen.push(place);
            bytes += received_bytes(id, place.interface).unwrap_or(0);
        }
    }
    bytes as f64
}

/// Bytes that `interface` received so far, headers included, in the network of process `id`.
fn received_bytes(id: u32, interface: &str) -> Option<u64> {
    let table = fs::read_to_string(format!("/proc/{id}/net/dev")).ok()?;
    received_in(&table, interface)
}

fn received_in(table: &str, interface: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let first = counters.split_whitespace().next()?;
        (name.trim() == interface).then(|| first.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_take_turns_in_taking_peers() {
        let site_of = [0, 0, 0, 1, 2, 2];
        assert_eq!(taken_in_turn(&site_of, 3), [0, 3, 4]);
        assert_eq!(taken_in_turn(&site_of, 9), [0, 3, 4, 1, 5, 2]);
    }

    #[test]
    fn the_first_counter_of_an_interface_is_what_it_received() {
        let table = "Inter-|   Receive                  |  Transmit\n face |bytes    packets errs |bytes\n    \
                     lo: 123   4 0 0\n  eth0:456 7 0 0\n";
        assert_eq!(received_in(table, "lo"), Some(123));
        assert_eq!(received_in(table, "eth0"), Some(456));
        assert_eq!(received_in(table, "eth1"), None);
    }
}
