//! The model chain: which peers it registers with which stakes at which block, and what each peer sees of it when.
//!
//! Blocks are not modelled, only the snapshots at every `snapshot_blocks`-th of them, which have numbers from 1 on. All
//! changes come before the faults end; after that the registry stays as it is.

use std::collections::BTreeMap;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{Powers, Subnet};
use gradmesh_protocol::registry::{Registry, RegistryMark, powers};

use crate::queue::Instant;
use crate::random::Random;

/// What the chain does in a run.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// The subnet, as in the manifest.
    pub subnet: Subnet,
    /// Time between two snapshots.
    pub interval_us: u64,
    /// Stake of each peer at first, in rao; `None` if it is not registered.
    pub stakes: Vec<Option<u64>>,
    /// Stakes that change, by snapshot: number, peer, stake.
    pub changes: Vec<(u64, usize, Option<u64>)>,
    /// What each peer sees.
    pub views: Vec<ViewOptions>,
}

/// How a peer sees the chain.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// It sees a snapshot so much later than it is taken.
    pub delay_us: u64,
    /// Its node of the chain is away from the first moment to the second: what comes meanwhile it never sees.
    pub outage: Option<(Instant, Instant)>,
}

/// Numbers of the newest two snapshots that a process has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The last but one.
    pub before: Option<u64>,
    /// The newest.
    pub newest: Option<u64>,
}

impl Seen {
    /// Sees snapshot `number`; an older one than the newest is nothing new.
    pub fn note(&mut self, number: u64) {
        if self.newest < Some(number) {
            self.before = self.newest;
            self.newest = Some(number);
        }
    }
}

/// The longest delay of a view.
pub const DELAY_MAX_US: u64 = 12_000_000;
/// A stake of middling size, in rao.
const STAKE: u64 = 1_000_000_000_000;

impl ChainOptions {
    /// A chain for a run of `peers` peers whose faults end at `end`. `liar`: its stake stays below what could harm.
    pub fn new(r: &mut Random, peers: usize, liar: Option<usize>, end: Instant) -> ChainOptions {
        let subnet = Subnet {
            genesis: Hash::of_content(b"simulated chain"),
            netuid: r.within(0..=u16::MAX.into()) as u16,
            powers: r.pick(&[Powers::Equal, Powers::Stake, Powers::Stake]),
            snapshot_blocks: r.within(1..=30) as u32,
        };
        let interval_us = r.within(1_000_000..=8_000_000);
        // A liar has less than a quarter of what anybody else has, so that two quorums always share an honest vote.
        let stake = |r: &mut Random, peer: usize| {
            if Some(peer) == liar {
                STAKE / 100
            } else {
                STAKE / 20 * r.pick(&[1, 1, 2, 5, 20, 60])
            }
        };
        let unregistered = r.pick(&[0, 0, 1, 1, 2]).min(peers as u64 - 3);
        let mut stakes: Vec<Option<u64>> = (0..peers).map(|p| Some(stake(r, p))).collect();
        for _ in 0..unregistered {
            stakes[r.within(0..=peers as u64 - 1) as usize] = None;
        }
        let numbers = end.0 / interval_us;
        let mut changes = Vec::new();
        for _ in 0..r.within(0..=peers as u64) {
            let peer = r.within(0..=peers as u64 - 1) as usize;
            let number = r.within(1..=numbers.max(1));
            let restaked = stake(r, peer);
            match r.within(0..=3) {
                0 => changes.push((number, peer, Some(restaked))),
                1 => changes.push((number, peer, None)),
                _ => {
                    // Out for a while.
                    changes.push((number, peer, None));
                    let back = (number + r.within(1..=6)).min(numbers.max(1));
                    changes.push((back, peer, Some(restaked)));
                }
            }
        }
        if r.chance(300_000) {
            // Many out at once.
            let number = r.within(1..=numbers.max(1));
            for peer in 0..peers {
                if r.chance(600_000) {
                    changes.push((number, peer, None));
                    let back = (number + r.within(2..=8)).min(numbers.max(1));
                    changes.push((back, peer, Some(stake(r, peer))));
                }
            }
        }
        changes.sort_by_key(|(number, ..)| *number);
        let slow = r.chance(400_000);
        let failing = r.chance(300_000);
        let views = (0..peers)
            .map(|_| ViewOptions {
                delay_us: if slow {
                    r.within(50_000..=DELAY_MAX_US)
                } else {
                    r.within(50_000..=1_500_000)
                },
                outage: (failing && r.chance(500_000)).then(|| {
                    let from = r.within(0..=end.0 - 1);
                    (
                        Instant(from),
                        Instant((from + r.within(1_000_000..=40_000_000)).min(end.0)),
                    )
                }),
            })
            .collect();
        let mut chain = ChainOptions {
            subnet,
            interval_us,
            stakes,
            changes,
            views,
        };
        // Three peers at least are registered in the end, so that there is a run to speak of.
        let last = chain.stakes_at(u64::MAX);
        let wanted = 3usize.saturating_sub(last.iter().flatten().count());
        let missing: Vec<usize> = (0..peers).filter(|peer| last[*peer].is_none()).collect();
        for peer in missing.into_iter().take(wanted) {
            let restaked = stake(r, peer);
            chain.changes.push((numbers.max(1), peer, Some(restaked)));
        }
        chain
    }

    /// The stakes in snapshot `number`.
    pub fn stakes_at(&self, number: u64) -> Vec<Option<u64>> {
        let mut stakes = self.stakes.clone();
        for (_, peer, stake) in self.changes.iter().filter(|(at, ..)| *at <= number) {
            stakes[*peer] = *stake;
        }
        stakes
    }

    /// Whether `peer` is registered in the end.
    pub fn ends_registered(&self, peer: usize) -> bool {
        self.stakes_at(u64::MAX)[peer].is_some()
    }

    /// Snapshot `number` as a peer reads it.
    pub fn registry(&self, number: u64, names: &[PeerKey]) -> Registry {
        let stakes = self.stakes_at(number).into_iter().zip(names);
        let registered = stakes.filter_map(|(stake, name)| Some((*name, stake?)));
        let entries = powers(self.subnet.powers, registered);
        Registry::new(self.mark(number), entries).expect("the powers of a few peers are a registry")
    }

    /// The name of snapshot `number`.
    pub fn mark(&self, number: u64) -> RegistryMark {
        let block = number * u64::from(self.subnet.snapshot_blocks);
        RegistryMark {
            block,
            block_hash: Hash::of_content(&block.to_le_bytes()),
        }
    }

    /// The powers in snapshot `number`, by definition and with other code than the protocol's.
    pub fn powers(&self, number: u64, names: &[PeerKey]) -> BTreeMap<PeerKey, u32> {
        let stakes = self.stakes_at(number);
        let all: u128 = stakes
            .iter()
            .flatten()
            .map(|stake| u128::from(*stake))
            .sum();
        let named = stakes.iter().zip(names);
        named
            .filter_map(|(stake, name)| {
                let stake = u128::from((*stake)?);
                let power = match self.subnet.powers {
                    Powers::Equal => 1,
                    Powers::Stake => (stake * 10_000 / all).max(1) as u32,
                };
                Some((*name, power))
            })
            .collect()
    }

    /// When `peer` sees snapshot `number`.
    pub fn seen_at(&self, peer: usize, number: u64) -> Instant {
        Instant(number * self.interval_us + self.views[peer].delay_us)
    }

    /// Whether `peer` reaches its node of the chain at `now`.
    pub fn reaches(&self, peer: usize, now: Instant) -> bool {
        let outage = self.views[peer].outage;
        outage.is_none_or(|(from, until)| now < from || until <= now)
    }

    /// The newest snapshots that `peer` finds when it starts at `now`, two at most, oldest first.
    pub fn found(&self, peer: usize, now: Instant) -> Vec<u64> {
        let newest = now.0.saturating_sub(self.views[peer].delay_us) / self.interval_us;
        if self.reaches(peer, now) {
            (newest.saturating_sub(1).max(1)..=newest).collect()
        } else {
            Vec::new()
        }
    }
}
