//! Links: who reaches whom, how long a message takes, and which messages do not arrive.

use std::collections::BTreeSet;

use crate::options::{Cut, Options};
use crate::queue::Instant;
use crate::random::{Purpose, Random};

/// Bytes that every message costs beyond its own: QUIC and UDP headers, a guess.
const OVERHEAD_BYTES: u64 = 80;
/// Gossip is dropped when the sender's uplink has more than this to do: the daemon's send queues are bounded.
const BACKLOG_MAX_US: u64 = 10_000_000;
/// The longest that a reordered message is late.
const REORDER_MAX_US: u64 = 1_000_000;

/// What a message is, as far as links care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May be lost, doubled and dropped from full queues.
    Gossip,
    /// Requests, answers and blobs.
    Direct,
}

/// All links of a run.
#[derive(Debug)]
pub struct Network {
    random: Random,
    uplinks_free: Vec<Instant>,
    cuts: Vec<Cut>,
    /// Pairs that are connected, lower peer first.
    connected: BTreeSet<(usize, usize)>,
    /// Whether the faults are over.
    calm: bool,
    /// Proposals and votes that were sent.
    pub agreement_messages: u64,
    /// Messages that were sent, also those that were lost.
    pub messages: u64,
    /// Their bytes, overhead included.
    pub bytes: u64,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Network {
    /// Links without connections.
    pub fn new(options: &Options) -> Network {
        Network {
            random: Random::new(options.seed, Purpose::Network),
            uplinks_free: vec![Instant::default(); options.peers.len()],
            cuts: Vec::new(),
            connected: BTreeSet::new(),
            calm: false,
            agreement_messages: 0,
            messages: 0,
            bytes: 0,
        }
    }

    /// Sends `bytes` bytes: the moments at which they arrive, none if they are lost.
    pub fn send(
        &mut self,
        options: &Options,
        now: Instant,
        (from, to): (usize, usize),
        bytes: usize,
        class: Class,
    ) -> Vec<Instant> {
        let sender = &options.peers[from];
        let free = self.uplinks_free[from].max(now);
        if class == Class::Gossip && free.0 - now.0 > BACKLOG_MAX_US {
            return Vec::new();
        }
        let bytes = self.count(bytes as u64);
        let sent = free + bytes * 1_000_000 / sender.uplink_bytes_per_s;
        self.uplinks_free[from] = sent;
        let (links, calm) = (&options.links, self.calm);
        let random = &mut self.random;
        let mut happens = |ppm: u32| ppm > 0 && !calm && random.chance(ppm);
        let (lost, late, twice) = (
            happens(links.loss_ppm),
            happens(links.reorder_ppm),
            class == Class::Gossip && happens(links.duplicate_ppm),
        );
        if lost || self.cuts.iter().any(|cut| cut.drops(from, to)) {
            return Vec::new();
        }
        let latency_us = sender.latency_us + options.peers[to].latency_us;
        let mut arrivals = Vec::with_capacity(2);
        for _ in 0..1 + usize::from(twice) {
            let mut arrival = sent + latency_us + self.random.within(0..=links.jitter_us);
            if late {
                arrival = arrival + self.random.within(0..=REORDER_MAX_US);
            }
            arrivals.push(arrival);
        }
        arrivals
    }

    /// Counts `bytes` bytes that go another way; returns them with their overhead.
    pub fn count(&mut self, bytes: u64) -> u64 {
        let bytes = bytes + OVERHEAD_BYTES;
        self.messages += 1;
        self.bytes += bytes;
        bytes
    }

    /// Changes a byte of a blob, sometimes.
    pub fn corrupt(&mut self, options: &Options, blob: &mut [u8]) {
        let ppm = options.links.corrupt_ppm;
        if ppm > 0 && !self.calm && !blob.is_empty() && self.random.chance(ppm) {
            let place = self.random.within(0..=blob.len() as u64 - 1) as usize;
            blob[place] ^= 1 << self.random.within(0..=7);
        }
    }

    /// A delay between two bounds, in microseconds, for whatever a link decides upon.
    pub fn delay_us(&mut self, (low, high): (u64, u64)) -> u64 {
        self.random.within(low..=high)
    }

    /// Begins a cut.
    pub fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
    }

    /// Ends a cut.
    pub fn heal(&mut self, cut: &Cut) {
        if let Some(place) = self.cuts.iter().position(|c| c == cut) {
            self.cuts.remove(place);
        }
    }

    /// Ends all faults.
    pub fn calm(&mut self) {
        self.calm = true;
        self.cuts.clear();
    }

    /// Whether a handshake between the two gets through.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        !self
            .cuts
            .iter()
            .any(|cut| cut.drops(a, b) || cut.drops(b, a))
    }

    /// Whether the two have a connection.
    pub fn is_connected(&self, a: usize, b: usize) -> bool {
        self.connected.contains(&pair(a, b))
    }

    /// Notes a connection; `false` if there is one.
    pub fn connect(&mut self, a: usize, b: usize) -> bool {
        self.connected.insert(pair(a, b))
    }

    /// Forgets a connection; `false` if there is none.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        self.connected.remove(&pair(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options without faults, and a uplink of 1 MB/s.
    fn calm_options() -> Options {
        let mut options = Options::new(1);
        for peer in &mut options.peers {
            peer.uplink_bytes_per_s = 1_000_000;
            peer.latency_us = 1000;
        }
        options.links.jitter_us = 0;
        options
    }

    #[test]
    fn messages_of_one_sender_share_its_uplink() {
        let options = calm_options();
        let mut network = Network::new(&options);
        network.calm();
        let bytes = 1000 - OVERHEAD_BYTES as usize;
        let mut send = |to| network.send(&options, Instant(0), (0, to), bytes, Class::Direct);
        // 1000 bytes at 1 MB/s are 1 ms; the latency is 1 ms at either end.
        assert_eq!(send(1), [Instant(3000)]);
        assert_eq!(send(2), [Instant(4000)]);
        assert_eq!((network.messages, network.bytes), (2, 2000));
    }

    #[test]
    fn gossip_is_dropped_when_the_uplink_is_behind() {
        let options = calm_options();
        let mut network = Network::new(&options);
        network.calm();
        let mut send = |class| network.send(&options, Instant(0), (0, 1), 11_000_000, class);
        assert_eq!(send(Class::Gossip).len(), 1);
        assert_eq!(send(Class::Gossip).len(), 0);
        assert_eq!(send(Class::Direct).len(), 1);
    }

    #[test]
    fn a_cut_drops_until_it_heals() {
        let options = calm_options();
        let mut network = Network::new(&options);
        network.calm();
        let cut = Cut {
            from: 1,
            to: 2,
            both_ways: false,
        };
        network.cut(cut.clone());
        assert!(!network.reaches(0, 1) && network.reaches(0, 2));
        let mut send = |ends| {
            network
                .send(&options, Instant(0), ends, 10, Class::Direct)
                .len()
        };
        assert_eq!((send((0, 1)), send((1, 0))), (0, 1));
        network.heal(&cut);
        assert!(network.reaches(0, 1));
    }
}
