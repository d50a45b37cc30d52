//! Which segment of a failed round is the first that went wrong: for people, who want to know where a machine or a cheat began.
//! No verdict needs it, and none waits for it.
//!
//! Rule `accuser-searches`: when the validators have failed a segment, the one whose verdict it is searches below it, by bisection
//! ([`Bisection`]): at most floor(log2 n) + 1 audits of one segment each for n segments below. Of several that failed it, that is
//! the first in the order of the case, so that one of them searches.
//!
//! Rule `search-last`: a step of a search begins only if no audit can. Steps look at the start and the segment, not at tiles or
//! losses.
//!
//! A search is given up when the state of a segment cannot be had, when the round is forgotten (rule `too-late`), and when there
//! are more than [`SEARCHES_MAX`].

use gradmesh_protocol::audit::bisection::Bisection;
use gradmesh_protocol::audit::challenge::Pick;
use gradmesh_protocol::audit::standing::Finding;
use gradmesh_protocol::audit::verdict::{Check, Outcome};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;

use super::{Auditor, Job};
use crate::store::record::AuditEntry;
use crate::worker::AuditFindings;

/// Searches that wait; when there are more, the oldest is given up. A guess: one has a few rounds before its round is forgotten.
const SEARCHES_MAX: usize = 16;

/// A search in progress, and what it has cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    bisection: Bisection,
    audits: u32,
}

impl Auditor {
    /// The validators have failed `peer` by `finding`. Does nothing if that is another validator's, or none of a segment.
    pub(super) fn search_below(&mut self, peer: PeerKey, finding: &Finding) {
        let Some(round) = self.rounds.get(&finding.round) else {
            return;
        };
        if round.failed.get(&peer) != Some(finding) || finding.check != Check::Segment {
            return;
        }
        if let Some(job) = round.panel_job(&self.run, &peer, &self.audit) {
            let search = Search {
                bisection: Bisection::below(finding.segment),
                audits: 0,
            };
            self.go_on(job, search);
        }
    }

    /// A step of a search is done.
    pub(super) fn step_done(&mut self, job: Box<Job>, findings: &AuditFindings) {
        let seconds = findings.seconds.as_secs_f64();
        self.status.change_audit(|status| status.seconds += seconds);
        if let Some(mut search) = job.search {
            search.bisection.answer(findings.outcome != Outcome::Failed);
            search.audits += 1;
            self.go_on(job, search);
        }
    }

    /// Asks for the next step, or says what was found.
    fn go_on(&mut self, mut job: Box<Job>, search: Search) {
        let (round, peer) = (job.round, job.header.header.peer);
        if let Some(segment) = search.bisection.next() {
            job.search = Some(search);
            job.pick = Pick {
                segment,
                ..job.pick
            };
            self.searches.push_back(job);
            if self.searches.len() > SEARCHES_MAX {
                self.searches.pop_front();
            }
        } else if let Some(segment) = search.bisection.found() {
            let (peer_short, audits) = (peer.short(), search.audits);
            tracing::info!(%round, peer = %peer_short, segment, audits, "first segment that fails");
            self.append(&AuditEntry::FirstFailing {
                round: round.0,
                peer: peer.0,
                segment,
            });
            self.show_first_failing(round, &peer, segment);
        }
    }

    /// Shows what a search has found.
    pub(super) fn show_first_failing(&self, round: RoundId, peer: &PeerKey, segment: u32) {
        let peer = peer.to_string();
        self.status.change_audit(|status| {
            for finding in status.findings_of(&peer, round.0) {
                finding.first_failing = Some(segment);
            }
        });
    }
}
