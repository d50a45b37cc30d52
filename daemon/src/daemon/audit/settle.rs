//! Epochs on their way from decisions and audits to scores.

use std::collections::BTreeMap;
use std::sync::Arc;

use gradmesh_protocol::audit::standing::Ledger;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{Manifest, RoundId};
use gradmesh_protocol::wire::DecisionRecord;

use crate::subnet::{AuditedEpoch, EpochShares};

/// See the module documentation.
pub(super) struct Epochs {
    manifest: Arc<Manifest>,
}

impl Epochs {
    pub(super) fn new(manifest: &Arc<Manifest>) -> Epochs {
        Epochs {
            manifest: Arc::clone(manifest),
        }
    }
    pub(super) fn decided(&mut self, _record: &DecisionRecord) {}
    pub(super) fn gained(&mut self, _round: RoundId, _peer: PeerKey, _common: i64) {}
    pub(super) fn evidence(&mut self, _round: RoundId, _evidence: Hash) {}
    pub(super) fn ended(&mut self, _last: RoundId, _root: Hash) {}
    pub(super) fn next_ended(&self) -> Option<(RoundId, Hash)> {
        None
    }
    pub(super) fn first_round(&self, last: RoundId) -> RoundId {
        let _ = &self.manifest;
        last
    }
    pub(super) fn settle(
        &mut self,
        last: RoundId,
        root: Hash,
        _ledgers: &BTreeMap<PeerKey, Ledger>,
    ) -> AuditedEpoch {
        AuditedEpoch {
            last,
            state_root: root,
            scores: Hash::ZERO,
            evidence_root: Hash::ZERO,
            paid: EpochShares {
                epoch: gradmesh_protocol::score::EpochId(0),
                shares: Vec::new(),
            },
        }
    }
}
