//! Who sent how much to whom, and what became of it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Packets and their bytes (IP length).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// One directed pair of sites; a site and itself for its lan. Packets on the way are the difference between `sent` and all
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PairCounters {
    /// Handed to the network by a host.
    pub sent: Tally,
    /// Handed to a host.
    pub delivered: Tally,
    /// Lost on the link.
    pub lost: Tally,
    /// Dropped by a full queue: of the link, of the uplink or downlink, or of the router itself.
    pub overflowed: Tally,
    /// Not taken by the receiving host's device, or by the NAT box of its site.
    pub refused: Tally,
}

/// One host, to and from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HostCounters {
    /// The host, as the topology numbers and names it.
    pub name: String,
    /// Handed to the network.
    pub sent: Tally,
    /// Received from it.
    pub delivered: Tally,
    /// Addressed to nobody: another network, multicast, a host behind a NAT box, or not IPv4.
    pub unroutable: Tally,
    /// Dropped by the host's own device, because the router did not read in time. Anything but zero says that this machine is
    /// too slow for the traffic; always zero in the relay, which cannot know.
    pub overrun_packets: u64,
}

/// How late packets were handed over, against the time the link gave them: the error of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Lateness {
    /// Packets handed over.
    pub packets: u64,
    /// Mean.
    pub mean_us: u64,
    /// Worst.
    pub max_us: u64,
    /// Packets more than a millisecond late.
    pub above_1ms: u64,
}

/// Everything at one moment; numbers of different kinds may be some packets apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counters {
    /// Names of the sites, in the order of rows and columns of `pairs`.
    pub sites: Vec<String>,
    /// From site (row) to site (column).
    pub pairs: Vec<Vec<PairCounters>>,
    /// In the order of the hosts.
    pub hosts: Vec<HostCounters>,
    /// Timing of the router.
    pub lateness: Lateness,
}

impl Counters {
    /// What left the site for other sites: its bytes on the WAN, whatever became of them.
    ///
    /// # Panics
    /// If there is no such site.
    #[must_use]
    pub fn wan_sent(&self, site: usize) -> Tally {
        let mut sum = Tally::default();
        for (to, pair) in self.pairs[site].iter().enumerate() {
            if to != site {
                sum += pair.sent;
            }
        }
        sum
    }

    /// What entered the site from other sites.
    ///
    /// # Panics
    /// If there is no such site.
    #[must_use]
    pub fn wan_delivered(&self, site: usize) -> Tally {
        let mut sum = Tally::default();
        for (from, row) in self.pairs.iter().enumerate() {
            if from != site {
                sum += row[site].delivered;
            }
        }
        sum
    }
}

/// A tally that threads add to.
#[derive(Debug, Default)]
pub(super) struct Meter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    pub(super) fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Tally {
        Tally {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// [`PairCounters`] that threads add to.
#[derive(Debug, Default)]
pub(super) struct PairMeters {
    pub(super) sent: Meter,
    pub(super) delivered: Meter,
    pub(super) lost: Meter,
    pub(super) overflowed: Meter,
    pub(super) refused: Meter,
}

impl PairMeters {
    pub(super) fn read(&self) -> PairCounters {
        PairCounters {
            sent: self.sent.read(),
            delivered: self.delivered.read(),
            lost: self.lost.read(),
            overflowed: self.overflowed.read(),
            refused: self.refused.read(),
        }
    }
}

/// [`HostCounters`] that threads add to.
#[derive(Debug, Default)]
pub(super) struct HostMeters {
    pub(super) sent: Meter,
    pub(super) delivered: Meter,
    pub(super) unroutable: Meter,
}

/// [`Lateness`] that threads add to.
#[derive(Debug, Default)]
pub(super) struct LatenessMeter {
    packets: AtomicU64,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
    above_1ms: AtomicU64,
}

impl LatenessMeter {
    pub(super) fn add(&self, late_ns: u64) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(late_ns, Ordering::Relaxed);
        self.max_ns.fetch_max(late_ns, Ordering::Relaxed);
        if late_ns > 1_000_000 {
            self.above_1ms.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Lateness {
        let packets = self.packets.load(Ordering::Relaxed);
        Lateness {
            packets,
            mean_us: self.sum_ns.load(Ordering::Relaxed) / packets.max(1) / 1000,
            max_us: self.max_ns.load(Ordering::Relaxed) / 1000,
            above_1ms: self.above_1ms.load(Ordering::Relaxed),
        }
    }
}
