//! What a network looks like: sites, their hosts, and the links between sites. Plain data, read from TOML or built in code.

mod file;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Most sites of a topology: an address has one byte for the site, and links grow with the square. A guess that is enough.
pub const SITES_MAX: usize = 128;

/// Most hosts of a topology: every one costs a namespace and a TUN device. A guess that is enough for one machine.
pub const HOSTS_MAX: usize = 512;

/// Smallest queue of a line unless told otherwise: some 40 packets of 1500 bytes, or seven of 9000.
const QUEUE_BYTES_MIN: u64 = 64 * 1024;

/// Round trip for which a queue is sized when the link itself has less.
const QUEUE_ROUND_TRIP_MIN: Duration = Duration::from_millis(20);

/// Longest delay of a link, jitter included.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// Slowest and fastest line, in bits per second: outside, times of packets lose their meaning.
const RATE_BITS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;

/// Smallest and largest MTU of a host's device, in bytes: IPv4's minimum reassembly size, and what fits an IPv4 length.
pub const MTU: std::ops::RangeInclusive<u32> = 576..=65_535;

/// How fast a line sends, and how much may wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits of IP packets per second; frames of a lower layer are not counted.
    pub bits_per_s: u64,
    /// Bytes that may wait; what does not fit is dropped. `None`: the bytes of one round trip over this link and back,
    /// at least of 20 ms, at least 64 KiB (one bandwidth-delay product: what a single flow needs to fill the line).
    pub queue_bytes: Option<u64>,
}

impl Rate {
    /// A line of `mbit` times 10^6 bits per second with the default queue.
    #[must_use]
    pub const fn mbit(mbit: u64) -> Self {
        Self {
            bits_per_s: mbit * 1_000_000,
            queue_bytes: None,
        }
    }

    /// The queue of this line when `one_way` lies behind it.
    #[must_use]
    pub fn queue_bytes(&self, one_way: Duration) -> u64 {
        self.queue_bytes.unwrap_or_else(|| {
            let round_trip = one_way.saturating_mul(2).max(QUEUE_ROUND_TRIP_MIN);
            let bytes = u128::from(self.bits_per_s) * round_trip.as_nanos() / 8_000_000_000;
            u64::try_from(bytes)
                .unwrap_or(u64::MAX)
                .max(QUEUE_BYTES_MIN)
        })
    }
}

/// One direction between two sites. The default is a wire: no delay, no loss, no rate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Uniform in `-jitter..=jitter` around the delay, at most the delay. Does not reorder.
    pub jitter: Duration,
    /// Probability that a packet is lost on the way, 0 to 1.
    pub loss: f64,
    /// `None`: as fast as this machine.
    pub rate: Option<Rate>,
}

impl Link {
    /// A link with nothing but a delay.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// A link that loses everything: what a partition is made of.
    #[must_use]
    pub fn severed() -> Self {
        Self {
            loss: 1.0,
            ..Self::default()
        }
    }

    /// The same link with a rate of `mbit` times 10^6 bits per second and the default queue.
    #[must_use]
    pub fn with_mbit(self, mbit: u64) -> Self {
        Self {
            rate: Some(Rate::mbit(mbit)),
            ..self
        }
    }

    /// The same link with a probability of loss.
    #[must_use]
    pub fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// The same link with jitter.
    #[must_use]
    pub fn with_jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// Bytes that may wait for the line; `None` without a rate.
    #[must_use]
    pub fn queue_bytes(&self) -> Option<u64> {
        self.rate
            .map(|rate| rate.queue_bytes(self.delay.saturating_add(self.jitter)))
    }

    /// Looks for every fault at once.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] with all of them.
    pub fn validate(&self) -> Result<(), TopologyError> {
        let mut faults = Vec::new();
        self.faults("link", &mut faults);
        refuse_any(faults)
    }

    /// What is wrong with it, if anything; `what` names it.
    fn faults(&self, what: &str, faults: &mut Vec<String>) {
        if !(0.0..=1.0).contains(&self.loss) {
            faults.push(format!("{what}: loss {} is not within 0 to 1", self.loss));
        }
        if self.jitter > self.delay {
            faults.push(format!(
                "{what}: jitter {:?} is more than the delay {:?}",
                self.jitter, self.delay
            ));
        }
        if self.delay.saturating_add(self.jitter) > DELAY_MAX {
            faults.push(format!(
                "{what}: delay {:?} with jitter {:?} is more than {DELAY_MAX:?}",
                self.delay, self.jitter
            ));
        }
        rate_faults(self.rate, what, faults);
    }
}

fn refuse_any(faults: Vec<String>) -> Result<(), TopologyError> {
    if faults.is_empty() {
        Ok(())
    } else {
        Err(TopologyError::Invalid { faults })
    }
}

fn rate_faults(rate: Option<Rate>, what: &str, faults: &mut Vec<String>) {
    let Some(rate) = rate else { return };
    if !RATE_BITS.contains(&rate.bits_per_s) {
        faults.push(format!(
            "{what}: rate {} bit/s is not within {} to {}",
            rate.bits_per_s,
            RATE_BITS.start(),
            RATE_BITS.end()
        ));
    }
    if rate.queue_bytes == Some(0) {
        faults.push(format!("{what}: a queue of no bytes"));
    }
}

/// How a NAT box maps what is behind it; `nat.rs` has the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatKind {
    /// One outer port for an inner one, whoever it talks to: two such boxes can be punched through.
    PortRestricted,
    /// Another outer port for every destination: between two such boxes only a relay helps.
    Symmetric,
}

/// Hosts joined by a fast network.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Lower-case letters, digits and hyphens, at most 16.
    pub name: String,
    /// At least one.
    pub hosts: usize,
    /// What every host of the site sends to its neighbours through; one line per sending host.
    pub lan: Link,
    /// Shared by all that its hosts send to other sites.
    pub uplink: Option<Rate>,
    /// Shared by all that its hosts receive from other sites.
    pub downlink: Option<Rate>,
    /// What lies between its hosts and other sites; its hosts share one outer address then, and cannot be reached by their own.
    pub nat: Option<NatKind>,
}

impl Site {
    /// A site whose hosts are joined by wires and whose way out is as fast as its links.
    #[must_use]
    pub fn new(name: &str, hosts: usize) -> Self {
        Self {
            name: name.to_owned(),
            hosts,
            lan: Link::default(),
            uplink: None,
            downlink: None,
            nat: None,
        }
    }

    /// The same site behind a NAT box.
    #[must_use]
    pub fn with_nat(self, kind: NatKind) -> Self {
        Self {
            nat: Some(kind),
            ..self
        }
    }

    /// The same site behind an access line of `mbit` times 10^6 bits per second in each direction.
    #[must_use]
    pub fn with_access_mbit(self, mbit: u64) -> Self {
        Self {
            uplink: Some(Rate::mbit(mbit)),
            downlink: Some(Rate::mbit(mbit)),
            ..self
        }
    }
}

/// Sites and what lies between them.
///
/// Hosts are numbered from zero in the order of the sites; host `n` of site `s` (both from zero) is called `SITE-n` and has
/// the address `10.(s + 1).x.y` with `x.y` = `n + 1`. The NAT box of site `s` has the outer address `198.18.(s + 1).1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// In the order in which hosts are numbered.
    pub sites: Vec<Site>,
    /// From site, to site, link: exceptions from [`Topology::between`].
    pub links: Vec<(String, String, Link)>,
    /// Between sites for which no link is given.
    pub between: Link,
    /// MTU of every host's device, in bytes.
    pub mtu: u32,
    /// Seed of losses and jitter.
    pub seed: u64,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            sites: Vec::new(),
            links: Vec::new(),
            between: Link::default(),
            mtu: 1500,
            seed: 0,
        }
    }
}

/// Why a topology is refused.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Not the TOML of a topology.
    #[error("topology cannot be read: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Every fault found, one per line.
    #[error("topology is not valid:\n{}", .faults.join("\n"))]
    Invalid {
        /// One sentence each.
        faults: Vec<String>,
    },
}

impl Topology {
    /// `count` sites of one host each, `name0`, `name1`, ..., with `link` between any two.
    #[must_use]
    pub fn mesh(count: usize, link: Link) -> Self {
        Self {
            sites: (0..count)
                .map(|site| Site::new(&format!("s{site}"), 1))
                .collect(),
            between: link,
            ..Self::default()
        }
    }

    /// Adds a site.
    #[must_use]
    pub fn with_site(mut self, site: Site) -> Self {
        self.sites.push(site);
        self
    }

    /// Gives both directions between `one` and `other` the same `link`.
    #[must_use]
    pub fn with_links(mut self, one: &str, other: &str, link: Link) -> Self {
        self.links.push((one.to_owned(), other.to_owned(), link));
        self.links.push((other.to_owned(), one.to_owned(), link));
        self
    }

    /// Looks for every fault at once.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] with all of them.
    pub fn validate(&self) -> Result<(), TopologyError> {
        let mut faults = Vec::new();
        if self.sites.is_empty() || self.sites.len() > SITES_MAX {
            faults.push(format!("{} sites, not 1 to {SITES_MAX}", self.sites.len()));
        }
        let hosts = self
            .sites
            .iter()
            .fold(0, |sum: usize, site| sum.saturating_add(site.hosts));
        if hosts > HOSTS_MAX {
            faults.push(format!("{hosts} hosts, more than {HOSTS_MAX}"));
        }
        if !MTU.contains(&self.mtu) {
            faults.push(format!(
                "mtu {} is not within {} to {}",
                self.mtu,
                MTU.start(),
                MTU.end()
            ));
        }
        let mut seen = HashMap::new();
        for (index, site) in self.sites.iter().enumerate() {
            let what = format!("site {:?}", site.name);
            let well_formed = (1..=16).contains(&site.name.len())
                && site
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !well_formed {
                faults.push(format!(
                    "{what}: a name is 1 to 16 lower-case letters, digits and hyphens"
                ));
            }
            if seen.insert(site.name.as_str(), index).is_some() {
                faults.push(format!("{what} is there twice"));
            }
            if site.hosts == 0 {
                faults.push(format!("{what} has no host"));
            }
            site.lan.faults(&format!("{what}, lan"), &mut faults);
            rate_faults(site.uplink, &format!("{what}, uplink"), &mut faults);
            rate_faults(site.downlink, &format!("{what}, downlink"), &mut faults);
        }
        self.between.faults("between", &mut faults);
        let mut pairs = std::collections::HashSet::new();
        for (from, to, link) in &self.links {
            let what = format!("link {from} -> {to}");
            for name in [from, to] {
                if !seen.contains_key(name.as_str()) {
                    faults.push(format!("{what}: there is no site {name:?}"));
                }
            }
            if from == to {
                faults.push(format!("{what}: inside a site it is the site's lan"));
            }
            if !pairs.insert((from, to)) {
                faults.push(format!("{what} is there twice"));
            }
            link.faults(&what, &mut faults);
        }
        refuse_any(faults)
    }

    /// The number of the site called `name`.
    #[must_use]
    pub fn site_index(&self, name: &str) -> Option<usize> {
        self.sites.iter().position(|site| site.name == name)
    }

    /// The link between two different sites, by their numbers.
    ///
    /// # Panics
    /// If a site is not there.
    #[must_use]
    pub fn link(&self, from: usize, to: usize) -> Link {
        let (from, to) = (&self.sites[from].name, &self.sites[to].name);
        self.links
            .iter()
            .find(|(a, b, _)| a == from && b == to)
            .map_or(self.between, |(_, _, link)| *link)
    }

    /// The site of every host, in the order of the hosts.
    #[must_use]
    pub fn host_sites(&self) -> Vec<usize> {
        self.sites
            .iter()
            .enumerate()
            .flat_map(|(index, site)| std::iter::repeat_n(index, site.hosts))
            .collect()
    }

    /// The address that hosts of `site` have outside when it has a NAT box. The range is that of RFC 2544, for measurements.
    pub(super) fn outer_address(site: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, site + 1, 1)
    }

    /// Name and address of every host.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (String, usize, Ipv4Addr)> + '_ {
        (1u8..).zip(&self.sites).flat_map(|(site_byte, site)| {
            (0..site.hosts).zip(1u16..).map(move |(number, suffix)| {
                let [high, low] = suffix.to_be_bytes();
                (
                    format!("{}-{number}", site.name),
                    usize::from(site_byte) - 1,
                    Ipv4Addr::new(10, site_byte, high, low),
                )
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_queue_holds_one_round_trip() {
        let link = Link::delayed(Duration::from_millis(50)).with_mbit(200);
        assert_eq!(link.queue_bytes(), Some(200_000_000 / 8 / 10));
        assert_eq!(
            Link::default().with_mbit(100).queue_bytes(),
            Some(100_000_000 / 8 / 50)
        );
        assert_eq!(
            Link::default().with_mbit(1).queue_bytes(),
            Some(QUEUE_BYTES_MIN)
        );
        assert_eq!(Link::default().queue_bytes(), None);
    }
}
