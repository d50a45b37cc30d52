//! All links of a topology, with their counters: when a packet from one host to another arrives.
//!
//! Reads no clock and moves no byte. Many threads may use it at once; every line and link has its own lock, held for some
//! ten nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::counters::{Counters, HostCounters, HostMeters, LatenessMeter, PairMeters};
use super::shaper::{Line, Shaper, Verdict};
use super::topology::{Link, Topology};

/// Part of a link's delay that its packets may wait at the receiver, so that several are handed over together.
const HOLD_OF_DELAY: u32 = 100;

/// Longest such wait. Network cards gather what arrives for tens to hundreds of microseconds before they interrupt.
const HOLD_MAX: Duration = Duration::from_micros(500);

/// The links of one topology.
#[derive(Debug)]
pub struct Fabric {
    site_names: Vec<String>,
    host_names: Vec<String>,
    /// Site of every host.
    site_of: Vec<usize>,
    /// Row by row, from site and to site; the diagonal is not used.
    links: Vec<Mutex<Shaper>>,
    /// One per sending host.
    lans: Vec<Mutex<Shaper>>,
    /// Nanoseconds, as [`Fabric::hold_ns`]; row by row, as `links`; the diagonal is the lan.
    holds: Vec<AtomicU64>,
    uplinks: Vec<Option<Mutex<Line>>>,
    downlinks: Vec<Option<Mutex<Line>>>,
    /// Row by row, as `links`; the diagonal is the lan.
    pairs: Vec<PairMeters>,
    hosts: Vec<HostMeters>,
    lateness: LatenessMeter,
}

impl Fabric {
    /// Idle links, as the topology has them.
    ///
    /// # Panics
    /// If the topology is not valid.
    #[must_use]
    pub fn new(topology: &Topology) -> Self {
        let sites = topology.sites.len();
        let site_of = topology.host_sites();
        // One generator per link: what crosses one link changes nothing on another.
        let seed = |index: usize| {
            topology
                .seed
                .wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(index as u64 + 1))
        };
        let between = |pair: usize| match (pair / sites, pair % sites) {
            (from, to) if from == to => topology.sites[from].lan,
            (from, to) => topology.link(from, to),
        };
        let links = (0..sites * sites)
            .map(|pair| Mutex::new(Shaper::new(&between(pair), seed(pair))))
            .collect();
        let holds = (0..sites * sites)
            .map(|pair| AtomicU64::new(hold_ns(&between(pair))))
            .collect();
        let lans = site_of
            .iter()
            .enumerate()
            .map(|(host, site)| {
                let lan = &topology.sites[*site].lan;
                Mutex::new(Shaper::new(lan, seed(sites * sites + host)))
            })
            .collect();
        let access = |rate: Option<super::Rate>| rate.map(|rate| Mutex::new(Line::access(rate)));
        Self {
            site_names: topology
                .sites
                .iter()
                .map(|site| site.name.clone())
                .collect(),
            host_names: topology.hosts().map(|(name, _, _)| name).collect(),
            links,
            holds,
            lans,
            uplinks: topology
                .sites
                .iter()
                .map(|site| access(site.uplink))
                .collect(),
            downlinks: topology
                .sites
                .iter()
                .map(|site| access(site.downlink))
                .collect(),
            pairs: (0..sites * sites).map(|_| PairMeters::default()).collect(),
            hosts: site_of.iter().map(|_| HostMeters::default()).collect(),
            site_of,
            lateness: LatenessMeter::default(),
        }
    }

    /// Takes a packet from host `from` for host `to` and counts it: when it is through uplink and link, unless it is
    /// dropped. It then still has to pass [`Fabric::leave`].
    pub fn enter(&self, now_ns: u64, from: usize, to: usize, bytes: usize) -> Option<u64> {
        let (site, far) = (self.site_of[from], self.site_of[to]);
        let pair = self.pair(from, to);
        pair.sent.add(bytes);
        self.hosts[from].sent.add(bytes);
        let verdict = if site == far {
            lock(&self.lans[from]).offer(now_ns, bytes)
        } else {
            // The uplink stays locked over the link, so that packets enter the link in the order in which they left it.
            let mut uplink = self.uplinks[site].as_ref().map(lock);
            let sent_ns = match &mut uplink {
                None => Some(now_ns),
                Some(line) => line.offer(now_ns, bytes),
            };
            match sent_ns {
                None => Verdict::Overflows,
                Some(sent_ns) => lock(&self.links[site * self.sites() + far]).offer(sent_ns, bytes),
            }
        };
        match verdict {
            Verdict::Arrives { at_ns } => Some(at_ns),
            Verdict::Lost => {
                pair.lost.add(bytes);
                None
            }
            Verdict::Overflows => {
                pair.overflowed.add(bytes);
                None
            }
        }
    }

    /// Takes a packet off its link at the time that [`Fabric::enter`] gave: when it is through the downlink of the receiving
    /// site, unless that drops it. To be called in the order of time.
    pub fn leave(&self, due_ns: u64, from: usize, to: usize, bytes: usize) -> Option<u64> {
        let far = self.site_of[to];
        let downlink = match &self.downlinks[far] {
            Some(downlink) if self.site_of[from] != far => downlink,
            Some(_) | None => return Some(due_ns),
        };
        let sent_ns = lock(downlink).offer(due_ns, bytes);
        if sent_ns.is_none() {
            self.pair(from, to).overflowed.add(bytes);
        }
        sent_ns
    }

    /// Changes a link while it is used.
    ///
    /// # Panics
    /// If there is no such pair of sites.
    pub fn set_link(&self, from_site: usize, to_site: usize, link: &Link) {
        assert!(
            from_site != to_site && from_site < self.sites() && to_site < self.sites(),
            "no link from site {from_site} to site {to_site}"
        );
        let pair = from_site * self.sites() + to_site;
        lock(&self.links[pair]).set_link(link);
        self.holds[pair].store(hold_ns(link), Ordering::Relaxed);
    }

    /// Packets from one host to another are handed over at multiples of this time: a hundredth of the delay between them, at
    /// most half a millisecond, at least a nanosecond.
    pub fn hold_ns(&self, from: usize, to: usize) -> u64 {
        let pair = self.site_of[from] * self.sites() + self.site_of[to];
        self.holds[pair].load(Ordering::Relaxed)
    }

    pub(super) fn delivered(&self, from: usize, to: usize, bytes: usize, late_ns: u64) {
        self.pair(from, to).delivered.add(bytes);
        self.hosts[to].delivered.add(bytes);
        self.lateness.add(late_ns);
    }

    pub(super) fn refused(&self, from: usize, to: usize, bytes: usize) {
        self.pair(from, to).refused.add(bytes);
    }

    /// Dropped by a queue that is none of the links'.
    pub(super) fn overflowed(&self, from: usize, to: usize, bytes: usize) {
        self.pair(from, to).overflowed.add(bytes);
    }

    pub(super) fn unroutable(&self, from: usize, bytes: usize) {
        self.hosts[from].unroutable.add(bytes);
    }

    /// Everything counted so far; overruns, which no link sees, are zero.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            sites: self.site_names.clone(),
            pairs: self
                .pairs
                .chunks(self.sites())
                .map(|row| row.iter().map(PairMeters::read).collect())
                .collect(),
            hosts: self
                .host_names
                .iter()
                .zip(&self.hosts)
                .map(|(name, host)| HostCounters {
                    name: name.clone(),
                    sent: host.sent.read(),
                    delivered: host.delivered.read(),
                    unroutable: host.unroutable.read(),
                    overrun_packets: 0,
                })
                .collect(),
            lateness: self.lateness.read(),
        }
    }

    fn sites(&self) -> usize {
        self.site_names.len()
    }

    fn pair(&self, from: usize, to: usize) -> &PairMeters {
        &self.pairs[self.site_of[from] * self.sites() + self.site_of[to]]
    }
}

/// As [`Fabric::hold_ns`] gives it.
fn hold_ns(link: &Link) -> u64 {
    let hold = (link.delay / HOLD_OF_DELAY).min(HOLD_MAX);
    u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A thread that panicked in here left a number behind that is at worst a packet off.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::topology::{Rate, Site};
    use super::*;

    fn two_sites() -> Topology {
        let mut lan_site = Site::new("a", 2);
        lan_site.lan = Link::delayed(Duration::from_micros(100));
        Topology::default()
            .with_site(lan_site)
            .with_site(Site::new("b", 2).with_access_mbit(8))
            .with_links("a", "b", Link::delayed(Duration::from_millis(10)))
    }

    #[test]
    fn neighbours_take_the_lan_and_others_the_link() {
        let fabric = Fabric::new(&two_sites());
        assert_eq!(fabric.enter(0, 0, 1, 1000), Some(100_000));
        assert_eq!(fabric.leave(100_000, 0, 1, 1000), Some(100_000));
        assert_eq!(fabric.enter(0, 0, 2, 1000), Some(10_000_000));
    }

    #[test]
    fn hosts_of_a_site_share_its_access_lines() {
        let fabric = Fabric::new(&two_sites());
        // 1000 bytes at 8 Mbit/s take a millisecond: up, then the delay; the second host waits for the first.
        assert_eq!(fabric.enter(0, 2, 0, 1000), Some(11_000_000));
        assert_eq!(fabric.enter(0, 3, 1, 1000), Some(12_000_000));
        // Down, after the delay.
        let due = fabric.enter(0, 0, 2, 1000).unwrap();
        assert_eq!(fabric.leave(due, 0, 2, 1000), Some(11_000_000));
        assert_eq!(fabric.leave(due, 1, 3, 1000), Some(12_000_000));
        // Neighbours do not pass the access line.
        assert_eq!(fabric.enter(0, 2, 3, 1000), Some(0));
        assert_eq!(fabric.leave(0, 2, 3, 1000), Some(0));
    }

    #[test]
    fn counters_tell_pairs_and_hosts_apart() {
        let mut topology = two_sites();
        topology.links[0].2.rate = Some(Rate {
            bits_per_s: 8_000_000,
            queue_bytes: Some(1000),
        });
        topology.links[1].2 = Link::severed();
        let fabric = Fabric::new(&topology);
        assert!(fabric.enter(0, 0, 2, 1000).is_some());
        assert!(fabric.enter(0, 1, 3, 500).is_none());
        assert!(fabric.enter(0, 3, 1, 70).is_none());
        fabric.delivered(0, 2, 1000, 2_000_000);
        let counters = fabric.counters();
        let there = &counters.pairs[0][1];
        let tally = |packets, bytes| super::super::Tally { packets, bytes };
        assert_eq!(there.sent, tally(2, 1500));
        assert_eq!(there.delivered, tally(1, 1000));
        assert_eq!(there.overflowed, tally(1, 500));
        assert_eq!(there.lost, tally(0, 0));
        assert_eq!(counters.pairs[1][0].lost, tally(1, 70));
        assert_eq!(counters.hosts[0].sent, tally(1, 1000));
        assert_eq!(counters.hosts[2].delivered, tally(1, 1000));
        assert_eq!(counters.hosts[3].name, "b-1");
        assert_eq!(counters.wan_sent(0), tally(2, 1500));
        assert_eq!(counters.wan_delivered(1), tally(1, 1000));
        assert_eq!(counters.lateness.above_1ms, 1);
    }

    #[test]
    fn packets_are_held_for_a_hundredth_of_their_delay_and_never_long() {
        let fabric = Fabric::new(&two_sites());
        // Of 100 us and of 10 ms; then of none and of a second.
        assert_eq!(fabric.hold_ns(0, 1), 1_000);
        assert_eq!(fabric.hold_ns(0, 2), 100_000);
        fabric.set_link(0, 1, &Link::default());
        fabric.set_link(1, 0, &Link::delayed(Duration::from_secs(1)));
        assert_eq!(fabric.hold_ns(0, 2), 1);
        assert_eq!(fabric.hold_ns(2, 0), 500_000);
    }

    #[test]
    fn a_partition_comes_and_goes() {
        let fabric = Fabric::new(&two_sites());
        fabric.set_link(0, 1, &Link::severed());
        assert_eq!(fabric.enter(0, 0, 2, 1000), None);
        assert!(fabric.enter(0, 2, 0, 1000).is_some());
        fabric.set_link(0, 1, &Link::delayed(Duration::from_millis(1)));
        assert_eq!(fabric.enter(0, 0, 2, 1000), Some(1_000_000));
    }
}
