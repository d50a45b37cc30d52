//! Certificates: enough signed votes, from the roster of the round, each counted once.

use std::collections::BTreeSet;

use arc_malachitebft_core_types as bft;
use bft::{NilOrVal, Round, ThresholdParam, ThresholdParams, Validator, ValidatorSet, VoteType};

use super::context::{Context, Vote, Voters};
use crate::hash::Hash;
use crate::key::{PeerKey, Signature};
use crate::manifest::{RoundId, RunId, TrustMode};
use crate::roster::Roster;

/// The engine's error for a certificate that does not hold.
pub type CertificateError = bft::CertificateError<Context>;

/// The shares of voting power that a trust mode asks for.
///
/// `quorum`: to decide. `honest`: of which one voter at least is correct, to move on to a later attempt.
pub fn thresholds(trust: TrustMode) -> ThresholdParams {
    match trust {
        TrustMode::Byzantine => ThresholdParams::default(),
        TrustMode::Crash => ThresholdParams {
            quorum: ThresholdParam::new(1, 2),
            honest: ThresholdParam::F_PLUS_ONE,
        },
    }
}

/// The voting power that a decision needs of `power`, that of all voters together (see [`Roster::power`]).
pub fn quorum(trust: TrustMode, power: u64) -> u64 {
    thresholds(trust).quorum.min_expected(power)
}

/// A voter's signature in a commit certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitSignature {
    /// Who voted.
    pub voter: PeerKey,
    /// Its signature under the precommit.
    pub signature: Signature,
}

/// The proof that a round was decided: precommits of a quorum of its roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitCertificate {
    /// The decided round.
    pub height: RoundId,
    /// The attempt in which it was decided.
    pub attempt: u32,
    /// Id of the decision.
    pub value: Hash,
    /// The precommits.
    pub signatures: Vec<CommitSignature>,
}

impl CommitCertificate {
    /// Whether this proves that `roster` decided `value` in `run`.
    pub fn proves(&self, run: &RunId, roster: &Roster, value: &Hash, trust: TrustMode) -> bool {
        let votes = self.signatures.iter().map(|s| {
            let vote = Vote {
                kind: VoteType::Precommit,
                height: self.height,
                round: Round::new(self.attempt),
                value: NilOrVal::Val(self.value),
                voter: s.voter,
            };
            (vote, s.signature)
        });
        self.height == roster.round()
            && self.value == *value
            && check_votes(
                run,
                &Voters::from(roster),
                votes,
                thresholds(trust).quorum,
                |vote, signature| {
                    CertificateError::InvalidCommitSignature(bft::CommitSignature::new(
                        vote.voter, signature,
                    ))
                },
            )
            .is_ok()
    }
}

/// Counts `votes` of `voters`: each voter once, each signature valid, together at least `threshold`.
///
/// `blame` makes the error for a vote whose signature is not its voter's.
pub(super) fn check_votes(
    run: &RunId,
    voters: &Voters,
    votes: impl Iterator<Item = (Vote, Signature)>,
    threshold: ThresholdParam,
    blame: impl Fn(&Vote, Signature) -> CertificateError,
) -> Result<(), CertificateError> {
    let mut seen = BTreeSet::new();
    let mut signed = 0u64;
    for (vote, signature) in votes {
        let Some(voter) = voters.get_by_address(&vote.voter) else {
            return Err(CertificateError::UnknownValidator(vote.voter));
        };
        if !seen.insert(vote.voter) {
            return Err(CertificateError::DuplicateVote(vote.voter));
        }
        if !vote.voter.verify(&vote.hash(run), &signature) {
            return Err(blame(&vote, signature));
        }
        signed = signed.saturating_add(voter.voting_power());
    }
    let total = voters.total_voting_power();
    if threshold.is_met(signed, total) {
        Ok(())
    } else {
        Err(CertificateError::NotEnoughVotingPower {
            signed,
            total,
            expected: threshold.min_expected(total),
        })
    }
}
