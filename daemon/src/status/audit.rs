//! What is known of audits: on a validator what it did, on every peer what was said of it.

use std::collections::{BTreeMap, VecDeque};

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::score::SHARE_WHOLE;
use gradmesh_protocol::score::audited::AuditedScores;
use serde::{Deserialize, Serialize};

/// Findings kept; older ones are forgotten here, never their evidence.
const FINDINGS_MAX: usize = 256;
/// Settled epochs kept.
const SETTLED_MAX: usize = 8;

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Whether this daemon is a validator.
    pub validates: bool,
    /// Validators that judge now, this one among them, as far as it has heard of them.
    pub validators: usize,
    /// Audits that it has done, by how they came out.
    pub passed: u64,
    /// Within the tolerance, and beyond half of it.
    pub grey: u64,
    /// Beyond the tolerance, or provably wrong.
    pub failed: u64,
    /// Audits that could not be done here, for reasons that say nothing of the audited peer.
    pub undone: u64,
    /// Audits that it was asked for because another validator had failed a peer that it had not looked at.
    pub panels: u64,
    /// Rounds decided and not yet audited.
    pub open_rounds: usize,
    /// The newest epoch whose audits are all done, and whose scores are settled.
    pub settled_epoch: u64,
    /// The newest settled epochs, oldest first.
    pub settled: VecDeque<SettledStatus>,
    /// Seconds of computing that its audits took: segments, compression and losses.
    pub seconds: f64,
    /// The newest failed audits, oldest first: all that a validator knows of, on other peers those of their own work.
    pub findings: VecDeque<FindingStatus>,
    /// Until which round (inclusive) nothing that a peer does is paid for, by the first eight digits of its key: on a validator of
    /// all peers, else of this one.
    pub suspended: BTreeMap<String, u64>,
    /// Validators that were outvoted or contradicted themselves, and how often.
    pub flagged: BTreeMap<String, u64>,
}

/// A failed audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingStatus {
    /// The audited peer, 64 hex digits.
    pub peer: String,
    /// The round.
    pub round: u64,
    /// Who says so, the first eight hex digits of its key.
    pub validator: String,
    /// Content hash of the evidence.
    pub evidence: Hash,
    /// What was found, in words.
    pub words: String,
    /// What has become of it.
    pub state: FindingState,
    /// The first segment of the round that fails, where this validator has searched for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_failing: Option<u32>,
}

/// What has become of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// The validators have not decided yet.
    Disputed,
    /// They have agreed that the peer failed.
    Stands,
    /// They have agreed that it did not, or not agreed in time.
    Overruled,
}

/// A settled epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettledStatus {
    /// The epoch.
    pub epoch: u64,
    /// What each peer is paid by.
    pub scores: Vec<ScoreStatus>,
}

/// What a peer is paid by in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreStatus {
    /// The peer, 64 hex digits.
    pub peer: String,
    /// Tokens of its accepted updates.
    pub tokens: u64,
    /// Those of them that count.
    pub tokens_paid: u64,
    /// Its quality, in parts per million.
    pub quality_ppm: u32,
    /// Its part of all pay, in parts per million, rounded down.
    pub share_ppm: u64,
}

impl SettledStatus {
    /// What `audited` says.
    pub fn of(audited: &AuditedScores) -> SettledStatus {
        let share_ppm = |share: u64| u128::from(share) * 1_000_000 / u128::from(SHARE_WHOLE);
        let scores = audited.scores.iter().map(|score| ScoreStatus {
            peer: score.peer.to_string(),
            tokens: score.tokens,
            tokens_paid: score.tokens_paid,
            quality_ppm: score.quality_ppm,
            share_ppm: u64::try_from(share_ppm(score.share)).unwrap_or(u64::MAX),
        });
        SettledStatus {
            epoch: audited.epoch.0,
            scores: scores.collect(),
        }
    }
}

impl AuditStatus {
    /// Notes a finding, unless it is there already.
    pub fn note(&mut self, finding: FindingStatus) {
        let same = |known: &FindingStatus| {
            (&known.peer, known.round, &known.validator)
                == (&finding.peer, finding.round, &finding.validator)
        };
        if self.findings.iter().any(same) {
            return;
        }
        self.findings.push_back(finding);
        if self.findings.len() > FINDINGS_MAX {
            self.findings.pop_front();
        }
    }

    /// What validators found of a peer's round.
    pub fn findings_of(
        &mut self,
        peer: &str,
        round: u64,
    ) -> impl Iterator<Item = &mut FindingStatus> {
        let found = self.findings.iter_mut();
        found.filter(move |finding| (finding.peer.as_str(), finding.round) == (peer, round))
    }

    /// Notes a settled epoch.
    pub fn settle(&mut self, settled: SettledStatus) {
        self.settled_epoch = settled.epoch;
        self.settled.push_back(settled);
        if self.settled.len() > SETTLED_MAX {
            self.settled.pop_front();
        }
    }

    /// Audits done.
    pub fn audits(&self) -> u64 {
        self.passed + self.grey + self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(round: u64, validator: &str) -> FindingStatus {
        FindingStatus {
            peer: "aa".into(),
            round,
            validator: validator.into(),
            evidence: Hash::ZERO,
            words: "audit failed".into(),
            state: FindingState::Disputed,
            first_failing: None,
        }
    }

    #[test]
    fn a_finding_is_noted_once_and_old_ones_go() {
        let mut status = AuditStatus::default();
        status.note(finding(3, "bb"));
        status.note(finding(3, "cc"));
        status.note(finding(3, "bb"));
        assert_eq!(status.findings, [finding(3, "bb"), finding(3, "cc")]);
        assert_eq!(status.findings_of("aa", 3).count(), 2);
        assert_eq!(status.findings_of("aa", 4).count(), 0);
        for round in 4..4 + FINDINGS_MAX as u64 {
            status.note(finding(round, "bb"));
        }
        assert_eq!(status.findings.len(), FINDINGS_MAX);
        assert_eq!(status.findings[0].round, 4);
    }

    #[test]
    fn the_newest_settled_epochs_are_kept() {
        let mut status = AuditStatus::default();
        for epoch in 1..=20 {
            let scores = Vec::new();
            status.settle(SettledStatus { epoch, scores });
        }
        let first = status.settled.front().map(|settled| settled.epoch);
        assert_eq!((status.settled_epoch, first), (20, Some(13)));
    }
}
