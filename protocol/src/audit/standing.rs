//! What the audits of a peer mean for its pay.
//!
//! Rule `suspension`: after a failure in round r nothing that the peer does in rounds r to r + `suspension_rounds` - 1 counts.
//! Failures overlap: each has its own rounds.
//!
//! Rule `probation`: every round is audited of a newcomer, until `probation_rounds` rounds with an accepted update of its have
//! passed, and of a peer in the `probation_rounds` rounds after a suspension.
//!
//! Rule `unaudited-counts`: a round that nobody audited counts.
//!
//! Rule `open-waits`: a round about which a case is open counts neither way until it is closed. Whoever settles an epoch
//! waits for its cases, which end in a bounded number of rounds ([`super::docket`]).
//!
//! A ledger knows rounds and results alone. Results may come in any order, and the same results give the same ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::verdict::{Check, Verdict};
use crate::hash::Hash;
use crate::manifest::{Audit, RoundId};

/// The most failures that a ledger keeps, the newest ones. More in one suspension change nothing of note.
pub const FAILURES_MAX: usize = 256;
/// The most open rounds of a peer. A further one is not marked as open, so that it counts until its case is closed.
pub const OPEN_MAX: usize = 256;

/// A failed audit, as it is told to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The round.
    pub round: RoundId,
    /// The segment that was looked at.
    pub segment: u32,
    /// What failed.
    pub check: Check,
    /// Relative error of the segment's update, parts per billion.
    pub error_ppb: u64,
    /// What it might have been.
    pub tolerance_ppb: u64,
    /// Content hash of the evidence.
    pub evidence: Hash,
}

impl Finding {
    /// What `verdict`, which failed its peer, found.
    pub fn of(verdict: &Verdict) -> Finding {
        Finding {
            round: verdict.round,
            segment: verdict.segment,
            check: verdict.check,
            error_ppb: verdict.error_ppb,
            tolerance_ppb: verdict.tolerance_ppb,
            evidence: verdict.evidence,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "audit of round {}, segment {} failed: ",
            self.round, self.segment
        )?;
        match self.check {
            Check::Segment => {
                let (error, tolerance) = (Decimal(self.error_ppb), Decimal(self.tolerance_ppb));
                write!(f, "relative error {error} over {tolerance}")?;
            }
            Check::Compression => f.write_str("its frames do not follow from its update")?,
            Check::Start => f.write_str("it did not begin where it had to")?,
            Check::Availability => f.write_str("what its header commits to cannot be had")?,
        }
        write!(f, "; evidence {}", self.evidence)
    }
}

/// Parts per billion as a decimal fraction: the first three digits that say something, rounded down.
struct Decimal(u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WHOLE: u64 = 1_000_000_000;
        let spare = self.0.checked_ilog10().unwrap_or(0).saturating_sub(2);
        let unit = 10u64.pow(spare);
        let rounded = self.0 / unit * unit;
        write!(f, "{}", rounded / WHOLE)?;
        let fraction = format!("{:09}", rounded % WHOLE);
        match fraction.trim_end_matches('0') {
            "" => Ok(()),
            digits => write!(f, ".{digits}"),
        }
    }
}

/// The ledger of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    suspension_rounds: u64,
    probation_rounds: u64,
    /// The first rounds with an accepted update, up to `probation_rounds` of them.
    accepted: BTreeSet<RoundId>,
    failures: BTreeMap<RoundId, Finding>,
    open: BTreeSet<RoundId>,
}

impl Ledger {
    /// The ledger of a newcomer.
    pub fn new(audit: &Audit) -> Ledger {
        Ledger {
            suspension_rounds: audit.suspension_rounds.into(),
            probation_rounds: audit.probation_rounds.into(),
            accepted: BTreeSet::new(),
            failures: BTreeMap::new(),
            open: BTreeSet::new(),
        }
    }

    /// A decision accepted part of the peer's update of `round`.
    pub fn accepted(&mut self, round: RoundId) {
        self.accepted.insert(round);
        if self.accepted.len() as u64 > self.probation_rounds {
            self.accepted.pop_last();
        }
    }

    /// A case about `round` is open.
    pub fn open(&mut self, round: RoundId) {
        if self.open.len() < OPEN_MAX {
            self.open.insert(round);
        }
    }

    /// The audits of `round` have ended; `failure` if the peer failed them.
    pub fn close(&mut self, round: RoundId, failure: Option<Finding>) {
        self.open.remove(&round);
        if let Some(finding) = failure {
            self.failures.insert(round, finding);
            if self.failures.len() > FAILURES_MAX {
                self.failures.pop_first();
            }
        }
    }

    /// Whether `round` is paid for, as far as is known now.
    pub fn counts(&self, round: RoundId) -> bool {
        !self.open.contains(&round) && self.suspended_by(round).is_none()
    }

    /// Whether nobody has said the last word on `round` yet (rule `open-waits`).
    pub fn is_open(&self, round: RoundId) -> bool {
        self.open.contains(&round)
    }

    /// The newest failure for which `round` does not count, if there is one.
    pub fn suspended_by(&self, round: RoundId) -> Option<&Finding> {
        let (failed, finding) = self.failures.range(..=round).next_back()?;
        (round.0 - failed.0 < self.suspension_rounds).then_some(finding)
    }

    /// Whether the peer's work of `round` is audited whatever the coverage, by rule `probation`.
    ///
    /// What is decided and found of rounds up to `round` matters, nothing after it.
    pub fn is_audited_always(&self, round: RoundId) -> bool {
        let passed = self.accepted.range(..round).count() as u64;
        let newcomer = passed < self.probation_rounds;
        let back = self.failures.range(..=round).next_back();
        let probation = back.is_some_and(|(failed, _)| {
            let since = (round.0 - failed.0).checked_sub(self.suspension_rounds);
            since.is_some_and(|since| since < self.probation_rounds)
        });
        newcomer || probation
    }

    /// The newest failure.
    pub fn last_failure(&self) -> Option<&Finding> {
        self.failures.last_key_value().map(|(_, finding)| finding)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::InnerState;

    fn audit() -> Audit {
        Audit {
            segments: 5,
            coverage_ppm: 500_000,
            probation_rounds: 3,
            suspension_rounds: 4,
            loss_sequences: 64,
            loss_ppm: 0,
            inner: InnerState::Carried,
            tolerances: Vec::new(),
        }
    }

    fn finding(round: u64) -> Finding {
        Finding {
            round: RoundId(round),
            segment: 3,
            check: Check::Segment,
            error_ppb: 520_000_000,
            tolerance_ppb: 20_000_000,
            evidence: Hash([0xab; 32]),
        }
    }

    fn rounds(range: std::ops::Range<u64>, holds: impl Fn(RoundId) -> bool) -> Vec<u64> {
        range.filter(|round| holds(RoundId(*round))).collect()
    }

    /// A peer that has been there since round 1.
    fn old_hand() -> Ledger {
        let mut ledger = Ledger::new(&audit());
        (1..10).for_each(|round| ledger.accepted(RoundId(round)));
        ledger
    }

    #[test]
    fn after_a_failure_nothing_counts_for_the_suspension_and_then_all_is_audited() {
        let mut ledger = old_hand();
        ledger.close(RoundId(10), Some(finding(10)));
        assert_eq!(rounds(8..20, |r| !ledger.counts(r)), [10, 11, 12, 13]);
        assert_eq!(rounds(8..20, |r| ledger.is_audited_always(r)), [14, 15, 16]);
        assert_eq!(ledger.suspended_by(RoundId(12)), Some(&finding(10)));
        assert_eq!(ledger.suspended_by(RoundId(14)), None);
        assert_eq!(ledger.last_failure(), Some(&finding(10)));
    }

    #[test]
    fn a_failure_in_a_suspension_or_a_probation_begins_another() {
        let mut ledger = old_hand();
        for round in [10, 12, 17] {
            ledger.close(RoundId(round), Some(finding(round)));
        }
        let unpaid = rounds(8..30, |r| !ledger.counts(r));
        assert_eq!(unpaid, [10, 11, 12, 13, 14, 15, 17, 18, 19, 20]);
        let audited = rounds(8..30, |r| ledger.is_audited_always(r));
        assert_eq!(audited, [16, 21, 22, 23]);
    }

    #[test]
    fn a_newcomer_is_audited_in_its_first_rounds_with_an_accepted_update() {
        let mut ledger = Ledger::new(&audit());
        assert!(ledger.is_audited_always(RoundId(1)));
        for round in [3, 4, 8, 9] {
            ledger.accepted(RoundId(round));
        }
        let audited = rounds(1..12, |r| ledger.is_audited_always(r));
        assert_eq!(audited, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(rounds(1..12, |r| ledger.counts(r)).len(), 11);
    }

    #[test]
    fn an_open_round_waits_and_counts_once_its_case_is_closed_well() {
        let mut ledger = old_hand();
        ledger.open(RoundId(11));
        assert!(ledger.is_open(RoundId(11)));
        assert_eq!(rounds(10..13, |r| ledger.counts(r)), [10, 12]);
        ledger.close(RoundId(11), None);
        assert_eq!(rounds(10..13, |r| ledger.counts(r)), [10, 11, 12]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut ledger = Ledger::new(&audit());
        for round in 1..2000 {
            ledger.accepted(RoundId(round));
            ledger.open(RoundId(round));
        }
        assert_eq!((ledger.accepted.len(), ledger.open.len()), (3, OPEN_MAX));
        for round in 1..2000 {
            ledger.close(RoundId(round), Some(finding(round)));
        }
        assert_eq!(
            (ledger.failures.len(), ledger.open.len()),
            (FAILURES_MAX, 0)
        );
        assert!(!ledger.counts(RoundId(2002)) && ledger.counts(RoundId(2003)));
    }

    #[test]
    fn a_finding_says_what_happened() {
        let text = finding(41).to_string();
        let evidence = "ab".repeat(32);
        let expected = format!(
            "audit of round 41, segment 3 failed: relative error 0.52 over 0.02; evidence {evidence}"
        );
        assert_eq!(text, expected);
        let frames = Finding {
            check: Check::Compression,
            ..finding(41)
        };
        let text = frames.to_string();
        assert!(text.contains("failed: its frames do not follow from its update; evidence ab"));
    }

    #[test]
    fn errors_are_shown_with_three_digits() {
        for (ppb, shown) in [
            (0, "0"),
            (7, "0.000000007"),
            (10_000, "0.00001"),
            (523_456_789, "0.523"),
            (1_000_000_000, "1"),
            (2_345_678_901, "2.34"),
            (1_234_567_890_123, "1230"),
            (u64::MAX, "18400000000"),
        ] {
            assert_eq!(Decimal(ppb).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn what_counts_is_what_no_failure_covers_whatever_the_order(
            (failures, shuffled) in prop::collection::vec(0..60u64, 0..8)
                .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
            accepted in prop::collection::vec(0..60u64, 0..8),
        ) {
            let ledger = |failures: &[u64], accepted: &mut dyn Iterator<Item = &u64>| {
                let mut ledger = Ledger::new(&audit());
                accepted.for_each(|round| ledger.accepted(RoundId(*round)));
                failures.iter().for_each(|round| ledger.close(RoundId(*round), Some(finding(*round))));
                ledger
            };
            let one = ledger(&failures, &mut accepted.iter());
            prop_assert_eq!(&one, &ledger(&shuffled, &mut accepted.iter().rev()));
            for round in 0..80 {
                let covered = failures.iter().any(|failed| (*failed..failed + 4).contains(&round));
                prop_assert_eq!(one.counts(RoundId(round)), !covered);
            }
        }
    }
}
