//! What a validator says it found.

use crate::hash::Hash;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::{RoundId, RunId};
use crate::wire;

const VERDICT_DOMAIN: &str = "gradmesh verdict v1";

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// A segment, done again.
    Segment,
    /// The frames, against the update and the error feedback, tile by tile.
    Compression,
    /// That the round began where it had to: the shared parameters, the carried optimizer state, the assigned data.
    Start,
    /// That what the header commits to can be had.
    Availability,
}

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Within half the tolerance.
    Passed,
    /// Between half the tolerance and the tolerance: it counts as passed, and is counted.
    Grey,
    /// Over the tolerance, or provably wrong.
    Failed,
}

/// One audit, as its validator reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The run.
    pub run: RunId,
    /// The round that was audited.
    pub round: RoundId,
    /// Whose work it was.
    pub peer: PeerKey,
    /// The header that commits to it.
    pub header: Hash,
    /// Who looked.
    pub validator: PeerKey,
    /// The randomness that picked peer and segment.
    pub challenge: Hash,
    /// The segment.
    pub segment: u32,
    /// The first check that failed; the segment if none did.
    pub check: Check,
    /// How it came out.
    pub outcome: Outcome,
    /// Error of the segment's update relative to the update, in parts per billion; 0 where another check failed.
    pub error_ppb: u64,
    /// What it may be at most.
    pub tolerance_ppb: u64,
    /// Content hash of the evidence; [`Hash::ZERO`] for an audit that passed, of which none is kept.
    pub evidence: Hash,
}

/// A verdict with its validator's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedVerdict {
    /// The verdict.
    pub verdict: Verdict,
    /// The validator's signature over it.
    pub signature: Signature,
}

impl Verdict {
    /// The hash that is signed.
    pub fn hash(&self) -> Hash {
        Hash::in_domain(VERDICT_DOMAIN, &wire::encode_verdict(self))
    }

    /// Signs it as its validator.
    pub fn sign(self, validator: &Keypair) -> SignedVerdict {
        let signature = validator.sign(&self.hash());
        SignedVerdict {
            verdict: self,
            signature,
        }
    }
}

impl SignedVerdict {
    /// Whether the signature is the validator's.
    pub fn is_authentic(&self) -> bool {
        let verdict = &self.verdict;
        verdict.validator.verify(&verdict.hash(), &self.signature)
    }
}
