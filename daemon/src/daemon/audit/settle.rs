//! Epochs on their way from decisions and audits to scores.
//!
//! An epoch is settled when its last state is there and its audits have come to an end. Epochs are settled in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gradmesh_protocol::audit::evidence::epoch_root;
use gradmesh_protocol::audit::standing::Ledger;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{Manifest, RoundId};
use gradmesh_protocol::score::audited::{AuditedScores, Gains};
use gradmesh_protocol::score::{EpochId, EpochScores};
use gradmesh_protocol::wire::DecisionRecord;

use crate::subnet::{AuditedEpoch, EpochShares};

/// Epochs that are not settled yet; when there are more, the oldest go unpaid. They wait for a chain that is away, or for audits.
const EPOCHS_MAX: usize = 64;

/// See the module documentation.
pub(super) struct Epochs {
    manifest: Arc<Manifest>,
    books: BTreeMap<EpochId, Book>,
}

/// What is known of an epoch.
struct Book {
    scores: EpochScores,
    gains: Gains,
    evidence: BTreeSet<Hash>,
    /// Its last round and the state root after it.
    ended: Option<(RoundId, Hash)>,
}

impl Epochs {
    pub(super) fn new(manifest: &Arc<Manifest>) -> Epochs {
        Epochs {
            manifest: Arc::clone(manifest),
            books: BTreeMap::new(),
        }
    }

    fn book(&mut self, round: RoundId) -> Option<&mut Book> {
        let epoch = EpochId::of(round, &self.manifest)?;
        self.books.get_mut(&epoch)
    }

    /// The next decision.
    pub(super) fn decided(&mut self, record: &DecisionRecord) {
        let Some(epoch) = EpochId::of(record.decision.round, &self.manifest) else {
            return;
        };
        let book = self.books.entry(epoch).or_insert_with(|| Book {
            scores: EpochScores::new(&self.manifest, epoch),
            gains: Gains::default(),
            evidence: BTreeSet::new(),
            ended: None,
        });
        if let Err(fault) = book.scores.count(record) {
            tracing::error!(%fault, "a decision is not counted");
        }
        while self.books.len() > EPOCHS_MAX {
            if let Some((epoch, _)) = self.books.pop_first() {
                tracing::warn!(%epoch, "an epoch is not settled: too many wait");
            }
        }
    }

    /// Losses on common data before and after an update, in millionths of a nat per token.
    pub(super) fn measured(&mut self, round: RoundId, peer: PeerKey, before: u64, after: u64) {
        if let Some(book) = self.book(round) {
            book.gains.measured(round, peer, before, after);
        }
    }

    /// This validator has written evidence about `round`.
    pub(super) fn evidence(&mut self, round: RoundId, evidence: Hash) {
        if let Some(book) = self.book(round) {
            book.evidence.insert(evidence);
        }
    }

    /// The state after the epoch's last round is `root`. Earlier ones of which this was not said were settled before a restart, or
    /// ended while this validator was away: they are forgotten, and hold up nothing.
    pub(super) fn ended(&mut self, last: RoundId, root: Hash) {
        let Some(ended) = EpochId::of(last, &self.manifest) else {
            return;
        };
        if let Some(book) = self.books.get_mut(&ended) {
            book.ended = Some((last, root));
        }
        self.books
            .retain(|epoch, book| *epoch >= ended || book.ended.is_some());
    }

    /// The oldest epoch that has ended and is not settled: its first and its last round.
    pub(super) fn next_ended(&self) -> Option<(RoundId, RoundId)> {
        let (epoch, book) = self.books.first_key_value()?;
        let (last, _) = book.ended?;
        Some((epoch.first_round(&self.manifest), last))
    }

    /// Settles the epoch of [`Epochs::next_ended`]: what is attested, and what each peer is paid by.
    pub(super) fn settle(
        &mut self,
        ledgers: &BTreeMap<PeerKey, Ledger>,
    ) -> Option<(AuditedEpoch, AuditedScores)> {
        let (last, state_root) = self.books.first_key_value()?.1.ended?;
        let (epoch, book) = self.books.pop_first()?;
        let counts = |peer: &PeerKey, round| ledgers.get(peer).is_none_or(|l| l.counts(round));
        let scores = AuditedScores::of(&book.scores, counts, &book.gains.qualities());
        for score in &scores.scores {
            tracing::info!(
                %epoch,
                peer = %score.peer.short(),
                tokens = score.tokens,
                paid = score.tokens_paid,
                quality_ppm = score.quality_ppm,
                share = score.share,
                "scored"
            );
        }
        let audited = AuditedEpoch {
            last,
            state_root,
            scores: scores.hash(),
            evidence_root: epoch_root(scores.hash(), state_root, book.evidence),
            paid: EpochShares {
                epoch,
                shares: scores.shares().collect(),
            },
        };
        Some((audited, scores))
    }
}

#[cfg(test)]
mod tests {
    use gradmesh_protocol::manifest;

    use super::*;

    /// A validator that has counted the first rounds of epochs 1 to `epochs`.
    fn counted(manifest: &Arc<Manifest>, epochs: u64) -> Epochs {
        let mut counted = Epochs::new(manifest);
        for epoch in (1..=epochs).map(EpochId) {
            let book = Book {
                scores: EpochScores::new(manifest, epoch),
                gains: Gains::default(),
                evidence: BTreeSet::new(),
                ended: None,
            };
            counted.books.insert(epoch, book);
        }
        counted
    }

    #[test]
    fn epochs_whose_end_was_missed_hold_up_none_that_follow() {
        let manifest = Arc::new(manifest::example(PeerKey([1; 32])));
        let mut epochs = counted(&manifest, 3);
        let [_, second, third] = [1, 2, 3].map(|epoch| EpochId(epoch).last_round(&manifest));
        assert_eq!(epochs.next_ended(), None);
        // It was settled before a restart, after which the second ends.
        epochs.ended(second, Hash([2; 32]));
        epochs.ended(third, Hash([3; 32]));
        let settled = || {
            let (audited, _) = epochs.settle(&BTreeMap::new())?;
            Some((audited.paid.epoch, audited.last, audited.state_root))
        };
        let settled: Vec<_> = std::iter::from_fn(settled).collect();
        let expected = [
            (EpochId(2), second, Hash([2; 32])),
            (EpochId(3), third, Hash([3; 32])),
        ];
        assert_eq!(settled, expected);
    }
}
