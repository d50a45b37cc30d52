//! The snapshots of the registry that a node has, and which of them it goes by.

use std::collections::VecDeque;

use crate::key::PeerKey;
use crate::manifest::{Chain, RoundId};
use crate::registry::Registry;
use crate::roster::Roster;

/// The newest snapshots that a node has, and which of them it goes by.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    /// Oldest first.
    kept: VecDeque<Registry>,
}

/// Snapshots kept: a proposer whose chain is six snapshots behind still names one that others can look up.
const SNAPSHOTS_MAX: usize = 8;

/// Why a node does not take a snapshot in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SnapshotRefusal {
    /// The run has no chain.
    #[error("the run has no chain")]
    NoChain,
    /// Between the blocks at which snapshots are taken.
    #[error("block {0} is not one at which snapshots are taken")]
    BetweenSnapshots(u64),
    /// Not newer than the newest one.
    #[error("block {found} comes after block {newest}")]
    GoesBack {
        /// Its block.
        found: u64,
        /// The newest block.
        newest: u64,
    },
}

impl Snapshots {
    /// Takes in a newer snapshot. The oldest makes room.
    pub(super) fn insert(
        &mut self,
        registry: Registry,
        chain: &Chain,
    ) -> Result<(), SnapshotRefusal> {
        let Chain::Subnet(subnet) = chain else {
            return Err(SnapshotRefusal::NoChain);
        };
        let found = registry.mark().block;
        if !found.is_multiple_of(subnet.snapshot_blocks.into()) {
            return Err(SnapshotRefusal::BetweenSnapshots(found));
        }
        if let Some(newest) = self.newest().filter(|newest| newest.mark().block >= found) {
            let newest = newest.mark().block;
            return Err(SnapshotRefusal::GoesBack { found, newest });
        }
        if self.kept.len() == SNAPSHOTS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(registry);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn newest(&self) -> Option<&Registry> {
        self.kept.back()
    }

    /// The snapshot of `block`.
    pub(super) fn at(&self, block: u64) -> Option<&Registry> {
        self.kept
            .iter()
            .find(|registry| registry.mark().block == block)
    }

    /// Whether any of them has `peer`: one that is too new or too old for a decision may be in the one that counts.
    pub(super) fn any_has(&self, peer: &PeerKey) -> bool {
        self.kept
            .iter()
            .any(|registry| registry.power_of(peer).is_some())
    }

    /// The one that a proposer at `roster` goes by, by rule `last-but-one`. If others have named a newer one since, the
    /// newest.
    pub(super) fn to_propose(&self, roster: &Roster) -> Option<&Registry> {
        let newest = self.kept.iter().rev();
        let skipped = usize::from(roster.round() != RoundId::FOUNDING && self.kept.len() > 1);
        let usable = |registry: &&Registry| registry.mark().follows(roster.registry());
        newest
            .clone()
            .nth(skipped)
            .filter(usable)
            .or_else(|| self.newest().filter(usable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use crate::manifest::{Powers, Subnet, example};
    use crate::registry::RegistryMark;

    const CHAIN: Chain = Chain::Subnet(Subnet {
        genesis: Hash::ZERO,
        netuid: 1,
        powers: Powers::Equal,
        snapshot_blocks: 10,
    });

    fn registry(block: u64) -> Registry {
        let block_hash = Hash::ZERO;
        Registry::new(
            RegistryMark { block, block_hash },
            vec![(PeerKey([1; 32]), 1)],
        )
        .unwrap()
    }

    #[test]
    fn a_snapshot_is_taken_in_at_its_block_and_never_back() {
        let mut snapshots = Snapshots::default();
        let refused = snapshots.insert(registry(20), &Chain::None);
        assert_eq!(refused, Err(SnapshotRefusal::NoChain));
        assert_eq!(snapshots.insert(registry(20), &CHAIN), Ok(()));
        for found in [20, 10] {
            let newest = 20;
            let refused = snapshots.insert(registry(found), &CHAIN);
            assert_eq!(refused, Err(SnapshotRefusal::GoesBack { found, newest }));
        }
        let refused = snapshots.insert(registry(25), &CHAIN);
        assert_eq!(refused, Err(SnapshotRefusal::BetweenSnapshots(25)));
        assert_eq!(
            snapshots.insert(registry(50), &CHAIN),
            Ok(()),
            "some are missed"
        );
        assert_eq!(snapshots.len(), 2);
    }

    #[test]
    fn the_newest_are_kept_up_to_a_bound() {
        let mut snapshots = Snapshots::default();
        for block in 1..=20 {
            assert_eq!(snapshots.insert(registry(10 * block), &CHAIN), Ok(()));
        }
        assert_eq!(snapshots.len(), SNAPSHOTS_MAX);
        assert_eq!(snapshots.at(120), None);
        assert_eq!(snapshots.at(130), Some(&registry(130)));
        assert_eq!(snapshots.newest(), Some(&registry(200)));
    }

    #[test]
    fn a_proposer_goes_by_the_last_but_one_unless_others_were_ahead() {
        let mut manifest = example(PeerKey([1; 32]));
        manifest.chain = CHAIN;
        let founding = Roster::founding(&manifest);
        let after = |block: Option<u64>| {
            let decision = crate::decision::Decision {
                run: crate::manifest::RunId(Hash::ZERO),
                round: RoundId::FOUNDING,
                previous: Hash::ZERO,
                state_root: Hash::ZERO,
                members: Vec::new(),
                shards: Vec::new(),
                joins: Vec::new(),
                leaves: Vec::new(),
                registry: block.map(|block| registry(block).mark()),
                powers: Vec::new(),
                capacities: Vec::new(),
            };
            founding.after(&decision, &manifest)
        };
        let mut snapshots = Snapshots::default();
        assert_eq!(snapshots.to_propose(&founding), None);
        snapshots.insert(registry(10), &CHAIN).unwrap();
        let block = |snapshots: &Snapshots, roster: &Roster| {
            snapshots
                .to_propose(roster)
                .map(|registry| registry.mark().block)
        };
        assert_eq!(block(&snapshots, &after(None)), Some(10));
        snapshots.insert(registry(20), &CHAIN).unwrap();
        snapshots.insert(registry(30), &CHAIN).unwrap();
        assert_eq!(block(&snapshots, &founding), Some(30));
        assert_eq!(block(&snapshots, &after(Some(10))), Some(20));
        assert_eq!(block(&snapshots, &after(Some(20))), Some(20));
        assert_eq!(block(&snapshots, &after(Some(30))), Some(30));
        assert_eq!(block(&snapshots, &after(Some(40))), None);
    }
}
