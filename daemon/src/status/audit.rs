//! What is known of audits: on a validator what it did, on every peer what was said of it.

use std::collections::{BTreeMap, VecDeque};

use gradmesh_protocol::hash::Hash;
use serde::{Deserialize, Serialize};

/// Findings kept; older ones are forgotten here, never their evidence.
const FINDINGS_MAX: usize = 256;

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Whether this daemon is a validator.
    pub validates: bool,
    /// Audits that it has done, by how they came out.
    pub passed: u64,
    /// Within the tolerance, and beyond half of it.
    pub grey: u64,
    /// Beyond the tolerance, or provably wrong.
    pub failed: u64,
    /// Audits that could not be done here, for reasons that say nothing of the audited peer.
    pub undone: u64,
    /// Rounds decided and not yet audited.
    pub open_rounds: usize,
    /// The newest epoch whose audits are all done, and whose scores are settled.
    pub settled_epoch: u64,
    /// Seconds of computing that its audits took: segments, compression and losses.
    pub seconds: f64,
    /// The newest failed audits, oldest first: all that a validator knows of, on other peers those of their own work.
    pub findings: VecDeque<FindingStatus>,
    /// Until which round (inclusive) nothing that a peer does is paid for, by the first eight digits of its key.
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
    /// Whether the validators have agreed on it; `false` while a dispute is open.
    pub closed: bool,
}

impl AuditStatus {
    /// Notes a finding; one that is there already takes what is new.
    pub fn note(&mut self, finding: FindingStatus) {
        let same = |known: &&mut FindingStatus| {
            (&known.peer, known.round, &known.validator)
                == (&finding.peer, finding.round, &finding.validator)
        };
        if let Some(known) = self.findings.iter_mut().find(same) {
            known.closed |= finding.closed;
            return;
        }
        self.findings.push_back(finding);
        if self.findings.len() > FINDINGS_MAX {
            self.findings.pop_front();
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

    fn finding(round: u64, closed: bool) -> FindingStatus {
        FindingStatus {
            peer: "aa".into(),
            round,
            validator: "bb".into(),
            evidence: Hash::ZERO,
            words: "audit failed".into(),
            closed,
        }
    }

    #[test]
    fn a_finding_is_noted_once_and_stays_closed_and_old_ones_go() {
        let mut status = AuditStatus::default();
        status.note(finding(3, false));
        status.note(finding(3, true));
        status.note(finding(3, false));
        assert_eq!(status.findings, [finding(3, true)]);
        for round in 4..4 + FINDINGS_MAX as u64 {
            status.note(finding(round, false));
        }
        assert_eq!(status.findings.len(), FINDINGS_MAX);
        assert_eq!(status.findings[0].round, 4);
    }
}
