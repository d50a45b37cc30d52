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
