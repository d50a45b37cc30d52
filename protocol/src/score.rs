//! Scores of an epoch: what its decisions already prove about who did how much, and the weights that follow.
//!
//! Nothing here is measured or judged. A score counts what was claimed in a header and accepted by a decision; audits and
//! losses say whether it was worth anything, and come from elsewhere ([`audited`]).
//!
//! Rule `tokens-count`: of a round, a member's tokens count in proportion to its accepted shards, rounded down, and a claim
//! above what a round can train on counts as that. A peer's share of an epoch is its part of all counted tokens.

pub mod audited;

use std::collections::BTreeMap;

use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{Manifest, RoundId, RunId};
use crate::wire::DecisionRecord;

/// A share of the whole epoch, in the unit of [`PeerScore::share`].
pub const SHARE_WHOLE: u64 = 1 << 32;

const SCORES_DOMAIN: &str = "gradmesh scores v1";

/// An epoch of a run, counted from 1: rounds 1 to `rounds_per_epoch` are epoch 1. The founding round is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u64);

impl EpochId {
    /// The epoch of `round`; `None` for the founding round and beyond the end of the run.
    ///
    /// `manifest`: a sound one, here and below.
    pub fn of(round: RoundId, manifest: &Manifest) -> Option<EpochId> {
        let schedule = &manifest.schedule;
        (1..=schedule.rounds)
            .contains(&round.0)
            .then(|| EpochId(round.0.div_ceil(schedule.rounds_per_epoch.into())))
    }

    /// Its first round.
    pub fn first_round(self, manifest: &Manifest) -> RoundId {
        let rounds = u64::from(manifest.schedule.rounds_per_epoch);
        let before = self.0.saturating_sub(1).saturating_mul(rounds);
        RoundId(before).next()
    }

    /// Its last round: the epoch at the end of a run may be shorter than the others.
    pub fn last_round(self, manifest: &Manifest) -> RoundId {
        let rounds = u64::from(manifest.schedule.rounds_per_epoch);
        RoundId(self.0.saturating_mul(rounds).min(manifest.schedule.rounds))
    }
}

impl std::fmt::Display for EpochId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts an epoch, one decided round after the other.
///
/// Two peers that count the same records have equal tables; one that has stopped counts the stored records again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochScores {
    run: RunId,
    epoch: EpochId,
    first: RoundId,
    last: RoundId,
    tokens_per_round_max: u64,
    next: RoundId,
    decision: Option<Hash>,
    counts: BTreeMap<PeerKey, Count>,
    /// Counted tokens by round, and by key in each.
    tokens: Vec<RoundTokens>,
}

/// What one peer has to its credit in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTokens {
    /// The round.
    pub round: RoundId,
    /// The peer.
    pub peer: PeerKey,
    /// Its counted tokens.
    pub tokens: u64,
}

/// What one peer has to its credit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    updates: u64,
    shards: u64,
    tokens: u64,
}

/// Why a record cannot be counted. Nothing was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreFault {
    /// It belongs to another run.
    #[error("record of run {found} among those of run {expected}")]
    OtherRun {
        /// The run that is counted.
        expected: RunId,
        /// The run of the record.
        found: RunId,
    },
    /// The epoch is counted to its end.
    #[error("round {found} after epoch {epoch} has ended")]
    Ended {
        /// The epoch.
        epoch: EpochId,
        /// The round of the record.
        found: RoundId,
    },
    /// Rounds between, or the same round twice.
    #[error("round {found} where round {expected} comes next")]
    NotNext {
        /// The round that comes next.
        expected: RoundId,
        /// The round of the record.
        found: RoundId,
    },
    /// The round follows another history than the one that was counted.
    #[error("round {round} continues {found} instead of {expected}")]
    OtherHistory {
        /// The round of the record.
        round: RoundId,
        /// Id of the last decision that was counted.
        expected: Hash,
        /// The decision that the record links to.
        found: Hash,
    },
    /// The headers are not those that the decision names.
    #[error("headers of round {round} are not those of its decision")]
    Headers {
        /// The round of the record.
        round: RoundId,
    },
}

impl EpochScores {
    /// Nothing counted yet.
    pub fn new(manifest: &Manifest, epoch: EpochId) -> EpochScores {
        let first = epoch.first_round(manifest);
        EpochScores {
            run: manifest.run(),
            epoch,
            first,
            last: epoch.last_round(manifest),
            tokens_per_round_max: manifest.tokens_per_round_max(),
            next: first,
            decision: None,
            counts: BTreeMap::new(),
            tokens: Vec::new(),
        }
    }

    /// The scores after `records`, which are those of the epoch from its first round on, in order.
    ///
    /// # Errors
    /// As [`EpochScores::count`], at the first record that cannot be counted.
    pub fn replay<'a>(
        manifest: &Manifest,
        epoch: EpochId,
        records: impl IntoIterator<Item = &'a DecisionRecord>,
    ) -> Result<EpochScores, ScoreFault> {
        let mut scores = EpochScores::new(manifest, epoch);
        for record in records {
            scores.count(record)?;
        }
        Ok(scores)
    }

    /// The round whose record is to be counted next.
    pub fn next_round(&self) -> RoundId {
        self.next
    }

    /// Whether all rounds of the epoch are counted.
    pub fn is_complete(&self) -> bool {
        self.next > self.last
    }

    /// The counted tokens of each round, by round and then by key: everyone of whom at least one shard was accepted.
    pub fn by_round(&self) -> &[RoundTokens] {
        &self.tokens
    }

    /// Counts the next round by rule `tokens-count`.
    ///
    /// `record`: its decision has been checked against the roster of its round.
    ///
    /// # Errors
    /// [`ScoreFault`], before anything is counted.
    pub fn count(&mut self, record: &DecisionRecord) -> Result<(), ScoreFault> {
        self.check(record)?;
        let decision = &record.decision;
        for (place, signed) in record.headers.iter().enumerate() {
            let accepted = decision
                .shards
                .iter()
                .filter(|s| s.accepted.contains(place));
            let accepted = accepted.count() as u64;
            if accepted == 0 {
                continue;
            }
            let claimed = signed.header.update.tokens.min(self.tokens_per_round_max);
            let tokens = scaled(claimed, accepted, decision.shards.len() as u64);
            let count = self.counts.entry(signed.header.peer).or_default();
            count.updates = count.updates.saturating_add(1);
            count.shards = count.shards.saturating_add(accepted);
            count.tokens = count.tokens.saturating_add(tokens);
            self.tokens.push(RoundTokens {
                round: decision.round,
                peer: signed.header.peer,
                tokens,
            });
        }
        self.decision = Some(decision.id());
        self.next = self.next.next();
        Ok(())
    }

    fn check(&self, record: &DecisionRecord) -> Result<(), ScoreFault> {
        let decision = &record.decision;
        let round = decision.round;
        if decision.run != self.run {
            return Err(ScoreFault::OtherRun {
                expected: self.run,
                found: decision.run,
            });
        }
        if self.is_complete() {
            return Err(ScoreFault::Ended {
                epoch: self.epoch,
                found: round,
            });
        }
        if round != self.next {
            return Err(ScoreFault::NotNext {
                expected: self.next,
                found: round,
            });
        }
        if let Some(expected) = self.decision.filter(|id| *id != decision.previous) {
            return Err(ScoreFault::OtherHistory {
                round,
                expected,
                found: decision.previous,
            });
        }
        let named = decision
            .members
            .iter()
            .zip(&record.headers)
            .all(|(member, signed)| {
                member.peer == signed.header.peer && member.header == signed.header.hash()
            });
        if !named || decision.members.len() != record.headers.len() {
            return Err(ScoreFault::Headers { round });
        }
        Ok(())
    }

    /// The scores so far. Only the table of a complete epoch is worth agreeing on.
    pub fn table(&self) -> ScoreTable {
        let tokens = self
            .counts
            .values()
            .map(|count| u128::from(count.tokens))
            .sum::<u128>();
        let share = |of: u64| share(of.into(), tokens);
        let scores = self.counts.iter().map(|(peer, count)| PeerScore {
            peer: *peer,
            updates: count.updates,
            shards: count.shards,
            tokens: count.tokens,
            share: share(count.tokens),
        });
        ScoreTable {
            run: self.run,
            epoch: self.epoch,
            rounds: self.next.0 - self.first.0,
            decision: self.decision.unwrap_or(Hash::ZERO),
            scores: scores.collect(),
        }
    }
}

/// What an epoch's decisions prove of each peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreTable {
    /// The run.
    pub run: RunId,
    /// The epoch.
    pub epoch: EpochId,
    /// Rounds that were counted, from the epoch's first on.
    pub rounds: u64,
    /// Id of the last decision that was counted, and through it of all before; [`Hash::ZERO`] where none was.
    pub decision: Hash,
    /// Everyone of whom at least one shard was accepted, sorted by key.
    pub scores: Vec<PeerScore>,
}

/// One row of a [`ScoreTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerScore {
    /// The peer.
    pub peer: PeerKey,
    /// Rounds in which at least one of its shards was accepted.
    pub updates: u64,
    /// Its accepted shards.
    pub shards: u64,
    /// Its counted tokens.
    pub tokens: u64,
    /// Its part of all counted tokens, in parts of [`SHARE_WHOLE`], rounded down.
    pub share: u64,
}

impl ScoreTable {
    /// Canonical bytes: run (32), epoch, rounds, decision (32), then for each score peer (32), updates, shards, tokens and
    /// share. Numbers are u64, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(80 + 64 * self.scores.len());
        bytes.extend_from_slice(&self.run.0.0);
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.rounds.to_le_bytes());
        bytes.extend_from_slice(&self.decision.0);
        for score in &self.scores {
            bytes.extend_from_slice(&score.peer.0);
            for figure in [score.updates, score.shards, score.tokens, score.share] {
                bytes.extend_from_slice(&figure.to_le_bytes());
            }
        }
        bytes
    }

    /// The hash that stands for the table on chain.
    pub fn hash(&self) -> Hash {
        Hash::in_domain(SCORES_DOMAIN, &self.encode())
    }

    /// Each peer's share, as [`weights`] takes it.
    pub fn shares(&self) -> impl Iterator<Item = (PeerKey, u64)> + '_ {
        self.scores.iter().map(|score| (score.peer, score.share))
    }
}

/// The weights of all uids from 0 to `uid_count` - 1, zeros included: the largest is 65,535, the others in proportion, to the
/// nearest and up from half. All are zero where nobody with a uid has a score.
///
/// `scores`: any unit; equal ones give equal weights. Those of peers on one uid add up. `uids`: who is not in it, or has
/// a uid that does not exist, counts for nothing, also not as the largest.
pub fn weights(
    scores: impl IntoIterator<Item = (PeerKey, u64)>,
    uids: &BTreeMap<PeerKey, u16>,
    uid_count: u16,
) -> Vec<(u16, u16)> {
    let mut by_uid = vec![0u64; uid_count.into()];
    for (peer, score) in scores {
        let uid = uids.get(&peer).map(|uid| usize::from(*uid));
        if let Some(sum) = uid.and_then(|uid| by_uid.get_mut(uid)) {
            *sum = sum.saturating_add(score);
        }
    }
    let largest = u128::from(by_uid.iter().copied().max().unwrap_or(0));
    let weight = |score: u64| {
        let scaled = u128::from(score) * u128::from(u16::MAX) + largest / 2;
        u16::try_from(scaled.checked_div(largest).unwrap_or(0)).unwrap_or(u16::MAX)
    };
    (0..).zip(by_uid.into_iter().map(weight)).collect()
}

/// What `part` is of `whole`, in parts of [`SHARE_WHOLE`], rounded down; zero where the whole is. Both below 2^95.
fn share(part: u128, whole: u128) -> u64 {
    let parts = part.saturating_mul(SHARE_WHOLE.into());
    u64::try_from(parts.checked_div(whole).unwrap_or(0)).unwrap_or(SHARE_WHOLE)
}

/// floor(amount * part / whole); zero where the whole is.
fn scaled(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount) * u128::from(part);
    u64::try_from(product.checked_div(u128::from(whole)).unwrap_or(0)).unwrap_or(amount)
}

#[cfg(test)]
mod tests;
