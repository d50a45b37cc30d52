//! Scores of an epoch with what audits found.
//!
//! Rule `work-by-quality`: a peer's pay is its counted tokens of the rounds that count ([`crate::audit::standing`]) times its
//! quality. Its share is its part of all pay.
//!
//! Rule `half-is-full`: the quality of an update is its gain, the loss before it less the loss after it on sequences that are the
//! same for all peers, against the median gain of the peers that were measured in the round: full from half the median on,
//! proportionally less below, nothing for no gain or a loss. Lenient on purpose: what honest peers gain differs by the luck of
//! their batches, which should move nobody's pay, so that validators that measure a little differently agree. Work itself is
//! measured by audits. Where half of the measured peers gain nothing there is nothing to go by, and all have full quality.
//!
//! Rule `mean-quality`: the quality of a peer in an epoch is the mean over its measured updates, rounded down; a peer that was not
//! measured has full quality.

use std::collections::BTreeMap;

use super::{EpochId, EpochScores, share};
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{RoundId, RunId};

/// Full quality.
pub const QUALITY_WHOLE: u32 = 1_000_000;

const AUDITED_DOMAIN: &str = "gradmesh audited scores v1";

/// Gains that were measured in an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gains {
    /// In millionths of a nat per token.
    by_round: BTreeMap<RoundId, BTreeMap<PeerKey, i64>>,
}

impl Gains {
    /// Notes what an update gained: the loss before it less the loss after it, in millionths of a nat per token. The last one for
    /// a peer and round stays.
    pub fn measured(&mut self, round: RoundId, peer: PeerKey, before: u64, after: u64) {
        let gain = i128::from(before) - i128::from(after);
        let gain = i64::try_from(gain).unwrap_or(if gain < 0 { i64::MIN } else { i64::MAX });
        self.by_round.entry(round).or_default().insert(peer, gain);
    }

    /// The quality of each measured peer, by rules `half-is-full` and `mean-quality`, in parts of [`QUALITY_WHOLE`].
    pub fn qualities(&self) -> BTreeMap<PeerKey, u32> {
        let mut sums = BTreeMap::<PeerKey, (u64, u64)>::new();
        for gains in self.by_round.values() {
            let median = median(gains.values().copied().collect());
            for (peer, gain) in gains {
                let (sum, count) = sums.entry(*peer).or_default();
                *sum += u64::from(quality_ppm(*gain, median));
                *count += 1;
            }
        }
        let mean = |(sum, count): (u64, u64)| u32::try_from(sum / count).unwrap_or(QUALITY_WHOLE);
        sums.into_iter()
            .map(|(peer, sums)| (peer, mean(sums)))
            .collect()
    }
}

/// The middle one; of two middle ones the lower. 0 for none.
fn median(mut gains: Vec<i64>) -> i64 {
    gains.sort_unstable();
    let middle = gains.len().saturating_sub(1) / 2;
    gains.get(middle).copied().unwrap_or(0)
}

/// The quality of an update by rule `half-is-full`, in parts of [`QUALITY_WHOLE`], rounded down.
///
/// `gain`, `median`: of the update and of the measured peers of its round, in the same unit.
pub fn quality_ppm(gain: i64, median: i64) -> u32 {
    if median <= 0 {
        return QUALITY_WHOLE;
    }
    let doubled = 2 * i128::from(gain.max(0)) * i128::from(QUALITY_WHOLE);
    u32::try_from(doubled / i128::from(median)).map_or(QUALITY_WHOLE, |q| q.min(QUALITY_WHOLE))
}

/// What an epoch's decisions and audits together say of each peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedScores {
    /// The run.
    pub run: RunId,
    /// The epoch.
    pub epoch: EpochId,
    /// Rounds that were counted, from the epoch's first on.
    pub rounds: u64,
    /// Id of the last decision that was counted; [`Hash::ZERO`] where none was.
    pub decision: Hash,
    /// Everyone of whom at least one shard was accepted, sorted by key; who is not paid has a row of zeros.
    pub scores: Vec<AuditedScore>,
}

/// One row of [`AuditedScores`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedScore {
    /// The peer.
    pub peer: PeerKey,
    /// Its counted tokens, whatever audits found.
    pub tokens: u64,
    /// Those of them that count.
    pub tokens_paid: u64,
    /// Its quality, in parts of [`QUALITY_WHOLE`].
    pub quality_ppm: u32,
    /// Its part of all pay, in parts of [`super::SHARE_WHOLE`], rounded down.
    pub share: u64,
}

impl AuditedScore {
    /// Tokens times quality, in millionths of a token: below 2^84.
    fn pay(&self) -> u128 {
        u128::from(self.tokens_paid) * u128::from(self.quality_ppm)
    }
}

impl AuditedScores {
    /// The scores of what `scores` has counted, by rule `work-by-quality`.
    ///
    /// `counts`: whether a peer's round is paid for. `qualities`: of [`Gains::qualities`].
    pub fn of(
        scores: &EpochScores,
        counts: impl Fn(&PeerKey, RoundId) -> bool,
        qualities: &BTreeMap<PeerKey, u32>,
    ) -> AuditedScores {
        let mut rows = BTreeMap::<PeerKey, AuditedScore>::new();
        for entry in scores.by_round() {
            let row = rows.entry(entry.peer).or_insert_with(|| AuditedScore {
                peer: entry.peer,
                tokens: 0,
                tokens_paid: 0,
                quality_ppm: qualities
                    .get(&entry.peer)
                    .map_or(QUALITY_WHOLE, |q| (*q).min(QUALITY_WHOLE)),
                share: 0,
            });
            row.tokens = row.tokens.saturating_add(entry.tokens);
            if counts(&entry.peer, entry.round) {
                row.tokens_paid = row.tokens_paid.saturating_add(entry.tokens);
            }
        }
        let whole: u128 = rows.values().map(AuditedScore::pay).sum();
        let table = scores.table();
        AuditedScores {
            run: table.run,
            epoch: table.epoch,
            rounds: table.rounds,
            decision: table.decision,
            scores: rows
                .into_values()
                .map(|row| AuditedScore {
                    share: share(row.pay(), whole),
                    ..row
                })
                .collect(),
        }
    }

    /// Canonical bytes: run (32), epoch, rounds, decision (32), then for each score peer (32), tokens, tokens paid, quality and
    /// share. Numbers are u64, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(80 + 64 * self.scores.len());
        bytes.extend_from_slice(&self.run.0.0);
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.rounds.to_le_bytes());
        bytes.extend_from_slice(&self.decision.0);
        for score in &self.scores {
            bytes.extend_from_slice(&score.peer.0);
            let quality = score.quality_ppm.into();
            for figure in [score.tokens, score.tokens_paid, quality, score.share] {
                bytes.extend_from_slice(&figure.to_le_bytes());
            }
        }
        bytes
    }

    /// The hash that stands for the scores on chain. Validators that found or measured differently have different ones.
    pub fn hash(&self) -> Hash {
        Hash::in_domain(AUDITED_DOMAIN, &self.encode())
    }

    /// Each peer's share, as [`super::weights`] takes it.
    pub fn shares(&self) -> impl Iterator<Item = (PeerKey, u64)> + '_ {
        self.scores.iter().map(|score| (score.peer, score.share))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::SHARE_WHOLE;
    use super::super::tests::{ALL, Claim, example, key, records};
    use super::*;
    use crate::audit::standing::{Finding, Ledger};
    use crate::audit::verdict::Check;

    fn epoch(rounds: &[&[Claim]]) -> EpochScores {
        let manifest = example();
        let records = records(&manifest, 1, rounds);
        EpochScores::replay(&manifest, EpochId(1), &records).unwrap()
    }

    /// Four rounds in which two peers do as much as each other.
    fn even() -> EpochScores {
        let round: &[Claim] = &[(1, 160, ALL), (2, 160, ALL)];
        epoch(&[round; 4])
    }

    fn row(scores: &AuditedScores, peer: u8) -> AuditedScore {
        let row = scores.scores.iter().find(|row| row.peer == key(peer));
        *row.unwrap()
    }

    #[test]
    fn without_findings_shares_are_those_of_the_plain_table() {
        let scores = epoch(&[
            &[(1, 160, ALL), (2, 160, 0b0111)],
            &[(1, 160, ALL), (2, 150, 0b1110)],
            &[(1, 160, ALL), (3, 1600, ALL)],
        ]);
        let audited = AuditedScores::of(&scores, |_, _| true, &BTreeMap::new());
        let plain = scores.table();
        assert!(audited.shares().eq(plain.shares()));
        let tokens = audited
            .scores
            .iter()
            .map(|row| (row.tokens, row.tokens_paid));
        assert!(tokens.eq(plain.scores.iter().map(|row| (row.tokens, row.tokens))));
        assert_eq!(
            (audited.decision, audited.rounds),
            (plain.decision, plain.rounds)
        );
    }

    #[test]
    fn rounds_of_a_suspension_are_not_paid() {
        let mut ledger = Ledger::new(&crate::manifest::Audit {
            segments: 1,
            coverage_ppm: 1_000_000,
            probation_rounds: 0,
            suspension_rounds: 2,
            loss_sequences: 1,
            loss_ppm: 0,
            inner: crate::manifest::InnerState::Reset,
            tolerances: Vec::new(),
        });
        let finding = Finding {
            round: RoundId(2),
            segment: 0,
            check: Check::Segment,
            error_ppb: 1,
            tolerance_ppb: 0,
            evidence: Hash::ZERO,
        };
        ledger.close(RoundId(2), Some(finding));
        let counts = |peer: &PeerKey, round| *peer != key(2) || ledger.counts(round);
        let audited = AuditedScores::of(&even(), counts, &BTreeMap::new());
        assert_eq!(
            (row(&audited, 1).tokens_paid, row(&audited, 2).tokens_paid),
            (640, 320)
        );
        assert_eq!(row(&audited, 2).tokens, 640);
        assert_eq!(row(&audited, 2).share, SHARE_WHOLE / 3);
    }

    #[test]
    fn who_is_paid_nothing_has_a_row_of_zeros() {
        let audited = AuditedScores::of(&even(), |peer, _| *peer == key(1), &BTreeMap::new());
        assert_eq!(
            (row(&audited, 1).share, row(&audited, 2).share),
            (SHARE_WHOLE, 0)
        );
        let nobody = AuditedScores::of(&even(), |_, _| false, &BTreeMap::new());
        assert!(nobody.shares().all(|(_, share)| share == 0));
    }

    #[test]
    fn quality_is_full_from_half_the_median_and_falls_to_nothing() {
        for (gain, median, expected) in [
            (100, 100, 1_000_000),
            (50, 100, 1_000_000),
            (49, 100, 980_000),
            (1, 3, 666_666),
            (1, 100, 20_000),
            (0, 100, 0),
            (-5, 100, 0),
            (i64::MIN, i64::MAX, 0),
            (i64::MAX, i64::MAX, 1_000_000),
            (-5, 0, 1_000_000),
            (-5, -7, 1_000_000),
        ] {
            assert_eq!(quality_ppm(gain, median), expected, "{gain} of {median}");
        }
    }

    #[test]
    fn a_peer_has_the_mean_quality_of_its_measured_rounds() {
        let mut gains = Gains::default();
        let mut measured = |round, peer, gain: i64| {
            let after = u64::try_from(1000 - gain).unwrap();
            gains.measured(RoundId(round), key(peer), 1000, after);
        };
        // Median 100: the lower of the middle two of 10, 100, 120, 130.
        for (peer, gain) in [(1, 10), (2, 100), (3, 120), (4, 130)] {
            measured(1, peer, gain);
        }
        for (peer, gain) in [(1, 90), (2, -10), (3, 100)] {
            measured(2, peer, gain);
        }
        let qualities = gains.qualities();
        let of = |peer| qualities.get(&key(peer)).copied();
        // Peer 1: 200,000 and 1,000,000.
        assert_eq!(
            [1, 2, 3, 4, 5].map(of),
            [
                Some(600_000),
                Some(500_000),
                Some(1_000_000),
                Some(1_000_000),
                None
            ]
        );

        let audited = AuditedScores::of(&even(), |_, _| true, &qualities);
        assert_eq!(row(&audited, 1).share, SHARE_WHOLE * 6 / 11);
        assert_eq!(row(&audited, 2).share, SHARE_WHOLE * 5 / 11);
    }

    #[test]
    fn losses_beyond_what_a_gain_can_say_are_the_largest_that_it_can() {
        let mut gains = Gains::default();
        gains.measured(RoundId(1), key(1), u64::MAX, 0);
        gains.measured(RoundId(1), key(2), 0, u64::MAX);
        let kept: Vec<_> = gains.by_round[&RoundId(1)].values().copied().collect();
        assert!(kept.contains(&i64::MAX) && kept.contains(&i64::MIN));
    }

    #[test]
    fn the_hash_of_audited_scores_is_pinned() {
        let row = |peer: u8, tokens_paid, quality_ppm| AuditedScore {
            peer: PeerKey([peer; 32]),
            tokens: 640,
            tokens_paid,
            quality_ppm,
            share: SHARE_WHOLE / 2,
        };
        let scores = AuditedScores {
            run: RunId(Hash([1; 32])),
            epoch: EpochId(2),
            rounds: 4,
            decision: Hash([3; 32]),
            scores: vec![row(4, 640, 500_000), row(5, 320, QUALITY_WHOLE)],
        };
        assert_eq!(scores.encode().len(), 80 + 2 * 64);
        assert_eq!(scores.hash().short(), "97afed9d");
    }

    proptest! {
        /// Honest gains from 0.8 to 1.2 of what is usual, measured up to a tenth off: at least 0.7, against half of a median of at
        /// most 1.3. So two validators pay honest peers alike.
        #[test]
        fn noise_of_measuring_does_not_move_honest_pay(
            peers in prop::collection::vec((800..=1200i64, -100..=100i64), 1..12),
        ) {
            let mut gains = Gains::default();
            for (peer, (gain, noise)) in (1..).zip(&peers) {
                let after = u64::try_from(10_000 - gain - noise).unwrap();
                gains.measured(RoundId(1), key(peer), 10_000, after);
            }
            prop_assert!(gains.qualities().values().all(|quality| *quality == QUALITY_WHOLE));
        }

        #[test]
        fn quality_never_falls_with_gain(a in any::<i64>(), b in any::<i64>(), median in any::<i64>()) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(quality_ppm(low, median) <= quality_ppm(high, median));
            prop_assert!(quality_ppm(high, median) <= QUALITY_WHOLE);
        }

        #[test]
        fn shares_of_the_largest_counts_do_not_overflow(tokens in prop::collection::vec(any::<u64>(), 1..64)) {
            let pays: Vec<_> = tokens.iter().map(|t| u128::from(*t) * u128::from(QUALITY_WHOLE)).collect();
            let whole = pays.iter().sum();
            let total: u64 = pays.iter().map(|pay| share(*pay, whole)).sum();
            prop_assert!(total <= SHARE_WHOLE);
            prop_assert!(whole == 0 || total + 64 >= SHARE_WHOLE);
        }
    }
}
