//! The record of one audit, which anybody can check and replay.
//!
//! It says what was claimed, what was found, how one follows from public data, and which contents a replay needs, by hash.
//! [`Evidence::check`] verifies all that can be verified without running anything; a replay does the rest.
//!
//! Its bytes are canonical CBOR ([`encoding`]) and its address is their plain BLAKE3, which the published verdict names. The
//! verdict inside has [`Hash::ZERO`] in that place. Rule `signed-whole`: the validator signs the bytes without the signature, so
//! that the same findings have one address.
//!
//! What it does not prove: that the contents say what the validator found (a replay does), that the header is as claimed
//! ([`Evidence::is_about`] does, for whoever has it), and that decision and beacon are those of the run.

pub mod encoding;
pub mod view;

use super::challenge::{self, Beacon};
use super::judgement::{self, Machine};
use super::segment::{self, StateRoots, Work};
use super::sketch::Sketch;
use super::verdict::{Check, Outcome, Verdict};
use crate::hash::Hash;
use crate::header::{Header, WorkCommitment};
use crate::key::{Keypair, Signature};
use crate::manifest::Manifest;
use crate::merkle;

pub use encoding::EvidenceError;

/// The longest evidence.
pub const EVIDENCE_BYTES_MAX: usize = 64 * 1024;
/// The most contents that evidence lists: 36 KiB of them. A state in more chunks is named by its root alone.
pub const NEEDS_MAX: usize = 1024;
/// The most chunks of parameters that one tile lies in.
pub const TILE_CHUNKS_MAX: usize = 8;

const SIGNATURE_DOMAIN: &str = "gradmesh evidence v1";

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What was found; its `evidence` is [`Hash::ZERO`].
    pub verdict: Verdict,
    /// Id of the decision of the round.
    pub decision: Hash,
    /// What the challenge followed from beside it.
    pub beacon: Beacon,
    /// Id of the decision that the round's seed, and so its data, follows from ([`Manifest::round_seed`]).
    pub basis: Hash,
    /// What the header says.
    pub claim: Claim,
    /// What the peer said of the segment; `None` if it could not be had.
    pub segment: Option<ClaimedSegment>,
    /// Where the validator audited.
    pub machine: Machine,
    /// The segment, done again; for [`Check::Segment`] alone.
    pub redone: Option<Redone>,
    /// The tile whose compression is wrong; for [`Check::Compression`] alone.
    pub tile: Option<WrongTile>,
    /// What a replay needs, sorted by kind.
    pub needs: Vec<Need>,
}

/// What of a header an audit goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The state root from which the author trained.
    pub state_root: Hash,
    /// What it commits to of its work.
    pub work: WorkCommitment,
    /// Root over its error feedback before the update.
    pub feedback_before: Hash,
    /// The same after it.
    pub feedback_after: Hash,
    /// Tokens of the update.
    pub tokens: u64,
    /// Where the author trained.
    pub machine: Machine,
}

/// A segment as its peer committed to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedSegment {
    /// The state before it.
    pub before: StateRoots,
    /// The state after it.
    pub after: StateRoots,
    /// What was done.
    pub work: Work,
    /// Merkle proof of its leaf under the header's root.
    pub proof: Vec<Hash>,
}

/// What a validator got when it did a segment again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redone {
    /// The state after it.
    pub after: StateRoots,
    /// Mean loss, in millionths of a nat per token.
    pub loss_micronats: u64,
    /// Mean norm of the gradient, in millionths.
    pub gradient_norm_micro: u64,
    /// Seed of both sketches.
    pub sketch_seed: Hash,
    /// Sketch of the update of the segment as the peer claims it.
    pub claimed: Sketch,
    /// Sketch of what the validator got.
    pub redone: Sketch,
}

/// A tile whose frame does not follow from update and error feedback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongTile {
    /// The tile.
    pub tile: u64,
    /// Tiles of the model.
    pub tiles: u64,
    /// Content hash of the tile's error feedback before the update.
    pub before: Hash,
    /// Merkle proof of it under the header's root.
    pub before_proof: Vec<Hash>,
    /// Content hash of the tile's error feedback after the update.
    pub after: Hash,
    /// Merkle proof of it under the header's root.
    pub after_proof: Vec<Hash>,
    /// Content hashes of the chunks of the peer's parameters that the tile lies in, in order.
    pub theta: Vec<Hash>,
    /// Content hash of the frame.
    pub frame: Hash,
}

/// What a content is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NeedKind {
    /// The data manifest.
    Data,
    /// The list of segments.
    Segments,
    /// A chunk of the parameters before the segment.
    ThetaBefore,
    /// A chunk of the inner optimizer's state before it.
    InnerBefore,
    /// A chunk of the parameters after it.
    ThetaAfter,
    /// A chunk of the inner optimizer's state after it.
    InnerAfter,
    /// A tile of error feedback.
    Feedback,
    /// A frame.
    Frame,
}

impl NeedKind {
    /// All kinds, in order.
    pub const ALL: [NeedKind; 8] = [
        NeedKind::Data,
        NeedKind::Segments,
        NeedKind::ThetaBefore,
        NeedKind::InnerBefore,
        NeedKind::ThetaAfter,
        NeedKind::InnerAfter,
        NeedKind::Feedback,
        NeedKind::Frame,
    ];
}

/// A content that a replay needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// What it is for.
    pub kind: NeedKind,
    /// Its hash. Contents of one kind come in the order of the state that they are chunks of.
    pub content: Hash,
}

/// Evidence with its validator's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEvidence {
    /// The evidence.
    pub evidence: Evidence,
    /// The validator's signature over [`Evidence::hash`].
    pub signature: Signature,
}

/// What contradicts itself in evidence. Its validator is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceFault {
    /// It is of another run, or of one without audits.
    #[error("it is of another run than the manifest, or the run has no audits")]
    OtherRun,
    /// The signature is not the validator's.
    #[error("the signature is not the validator's")]
    Signature,
    /// The verdict inside names evidence.
    #[error("the verdict inside names evidence {0}")]
    Circular(Hash),
    /// The challenge does not follow from decision and beacon.
    #[error("challenge {found} where decision and beacon give {expected}")]
    Challenge {
        /// What follows from them.
        expected: Hash,
        /// What the verdict says.
        found: Hash,
    },
    /// The challenge picks another segment.
    #[error("segment {found} where the challenge picks {expected}")]
    Segment {
        /// What it picks.
        expected: u32,
        /// What the verdict says.
        found: u32,
    },
    /// A part is missing, or there although the check has none.
    #[error("{0} is missing, or does not belong to the check that failed")]
    Part(&'static str),
    /// The segment is not what the header commits to.
    #[error("the segment does not belong to the header's root")]
    Leaf,
    /// The segment has more tokens than the header.
    #[error("a segment of {segment} tokens in an update of {update}")]
    Tokens {
        /// Tokens of the segment.
        segment: u64,
        /// Tokens of the header.
        update: u64,
    },
    /// The tolerance is not that of the two devices.
    #[error("tolerance of {found} ppb where the devices have {expected}")]
    Tolerance {
        /// By the manifest.
        expected: u32,
        /// What the verdict says.
        found: u64,
    },
    /// The outcome does not follow from error and tolerance, or from the check that failed.
    #[error("outcome {0:?} does not follow from the error, or from the check that failed")]
    Outcome(Outcome),
    /// An error between equal states.
    #[error("an error of {0} ppb between equal parameters")]
    EqualStates(u64),
    /// The sketches are not drawn from the challenge, or say another error.
    #[error("the sketches do not support an error of {0} ppb")]
    Sketches(u64),
    /// The tile is none that the challenge picks, or its feedback is not what the header commits to.
    #[error("tile {0} is not picked, or its error feedback does not belong to the header")]
    Tile(u64),
}

impl Claim {
    /// What `header` says.
    pub fn of(header: &Header) -> Claim {
        let update = &header.update;
        Claim {
            state_root: header.state_root,
            work: update.work,
            feedback_before: update.feedback_before,
            feedback_after: update.feedback_after,
            tokens: update.tokens,
            machine: Machine {
                build: update.build.clone(),
                device: update.device.clone(),
            },
        }
    }
}

impl Evidence {
    /// The hash that is signed.
    pub fn hash(&self) -> Hash {
        Hash::in_domain(SIGNATURE_DOMAIN, &encoding::encode(self, None))
    }

    /// Signs it as its validator.
    ///
    /// # Panics
    /// If it is longer than [`EVIDENCE_BYTES_MAX`], or a list in it than may be, so that nobody could read it.
    pub fn sign(self, validator: &Keypair) -> SignedEvidence {
        let signature = validator.sign(&self.hash());
        let signed = SignedEvidence {
            evidence: self,
            signature,
        };
        let read = SignedEvidence::decode(&signed.encode());
        assert_eq!(read.as_ref(), Ok(&signed), "evidence reads back");
        signed
    }

    /// The seed of the round, from which follows which data the peer was assigned.
    pub fn round_seed(&self) -> Hash {
        Manifest::round_seed(&self.verdict.run, self.verdict.round, &self.basis)
    }

    /// Whether it is about `header`, and says of it what is there.
    pub fn is_about(&self, header: &Header) -> bool {
        let verdict = &self.verdict;
        verdict.header == header.hash()
            && (verdict.run, verdict.round, verdict.peer) == (header.run, header.round, header.peer)
            && self.claim == Claim::of(header)
    }

    /// Verifies all that follows from the evidence itself, but the signature.
    ///
    /// `manifest`: of the run.
    ///
    /// # Errors
    /// The first fault, in the order of [`EvidenceFault`].
    pub fn check(&self, manifest: &Manifest) -> Result<(), EvidenceFault> {
        let verdict = &self.verdict;
        let audit = manifest.audit.as_ref();
        let audit = audit
            .filter(|_| manifest.run() == verdict.run)
            .ok_or(EvidenceFault::OtherRun)?;
        if verdict.evidence != Hash::ZERO {
            return Err(EvidenceFault::Circular(verdict.evidence));
        }
        let expected =
            challenge::challenge(&verdict.run, verdict.round, &self.decision, &self.beacon);
        if verdict.challenge != expected {
            return Err(EvidenceFault::Challenge {
                expected,
                found: verdict.challenge,
            });
        }
        let pick = challenge::pick(&expected, &verdict.peer, audit, true);
        let pick = pick.ok_or(EvidenceFault::OtherRun)?;
        if verdict.segment != pick.segment {
            return Err(EvidenceFault::Segment {
                expected: pick.segment,
                found: verdict.segment,
            });
        }
        let availability = verdict.check == Check::Availability;
        for (part, is_there, belongs) in [
            ("the segment", self.segment.is_some(), !availability),
            (
                "the segment done again",
                self.redone.is_some(),
                verdict.check == Check::Segment,
            ),
            (
                "the tile",
                self.tile.is_some(),
                verdict.check == Check::Compression,
            ),
        ] {
            // What could be had of a segment may stay where something else could not.
            if is_there != belongs && !(availability && part == "the segment") {
                return Err(EvidenceFault::Part(part));
            }
        }
        if let Some(segment) = &self.segment {
            self.check_segment(segment, audit.segments)?;
        }
        let devices = (&self.claim.machine.device, &self.machine.device);
        let tolerance = audit.tolerance_ppb(devices.0, devices.1, manifest.model.dtype);
        if verdict.tolerance_ppb != u64::from(tolerance) {
            return Err(EvidenceFault::Tolerance {
                expected: tolerance,
                found: verdict.tolerance_ppb,
            });
        }
        let outcome = match verdict.check {
            Check::Segment => judgement::judge(verdict.error_ppb, verdict.tolerance_ppb),
            Check::Compression | Check::Start | Check::Availability => Outcome::Failed,
        };
        let error = verdict.check == Check::Segment || verdict.error_ppb == 0;
        if verdict.outcome != outcome || !error {
            return Err(EvidenceFault::Outcome(verdict.outcome));
        }
        if let (Some(redone), Some(segment)) = (&self.redone, &self.segment) {
            if redone.after.theta == segment.after.theta && verdict.error_ppb > 0 {
                return Err(EvidenceFault::EqualStates(verdict.error_ppb));
            }
            let supported = redone.redone.supports(&redone.claimed, verdict.error_ppb);
            if redone.sketch_seed != pick.sketch || !supported {
                return Err(EvidenceFault::Sketches(verdict.error_ppb));
            }
        }
        match &self.tile {
            Some(tile) if !self.is_picked(tile, &pick.tiles) => Err(EvidenceFault::Tile(tile.tile)),
            Some(_) | None => Ok(()),
        }
    }

    fn check_segment(&self, segment: &ClaimedSegment, segments: u32) -> Result<(), EvidenceFault> {
        let number = self.verdict.segment;
        let leaf = segment::leaf(number, &segment.before, &segment.after, &segment.work);
        let root = &self.claim.work.segments_root;
        let proven = match (usize::try_from(segments), usize::try_from(number)) {
            (Ok(count), Ok(index)) => merkle::verify(root, count, index, &leaf, &segment.proof),
            _ => false,
        };
        let work = &self.claim.work;
        let first = number == 0 && segment.before.inner != work.inner_before;
        let last = number + 1 == segments && segment.after.inner != work.inner_after;
        if !proven || first || last {
            return Err(EvidenceFault::Leaf);
        }
        if segment.work.tokens > self.claim.tokens {
            return Err(EvidenceFault::Tokens {
                segment: segment.work.tokens,
                update: self.claim.tokens,
            });
        }
        Ok(())
    }

    fn is_picked(&self, tile: &WrongTile, seed: &Hash) -> bool {
        let (Ok(count), Ok(index)) = (usize::try_from(tile.tiles), usize::try_from(tile.tile))
        else {
            return false;
        };
        let proven = |root, leaf, proof| merkle::verify(root, count, index, leaf, proof);
        let picked = challenge::tiles(seed, tile.tiles, challenge::TILES);
        picked.binary_search(&tile.tile).is_ok()
            && proven(
                &self.claim.feedback_before,
                &tile.before,
                &tile.before_proof,
            )
            && proven(&self.claim.feedback_after, &tile.after, &tile.after_proof)
    }
}

impl SignedEvidence {
    /// Its bytes, which are the only ones that say the same.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(&self.evidence, Some(&self.signature))
    }

    /// Reads evidence.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn decode(bytes: &[u8]) -> Result<SignedEvidence, EvidenceError> {
        encoding::decode(bytes)
    }

    /// Where it can be had.
    pub fn address(&self) -> Hash {
        Hash::of_content(&self.encode())
    }

    /// The verdict that names it.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            evidence: self.address(),
            ..self.evidence.verdict.clone()
        }
    }

    /// Verifies everything that can be verified without running anything.
    ///
    /// # Errors
    /// The first of [`EvidenceFault`]'s cases that applies.
    pub fn check(&self, manifest: &Manifest) -> Result<(), EvidenceFault> {
        let validator = &self.evidence.verdict.validator;
        if !validator.verify(&self.evidence.hash(), &self.signature) {
            return Err(EvidenceFault::Signature);
        }
        self.evidence.check(manifest)
    }
}

/// The tree over what an epoch leaves: leaf 0 is the hash of its scores, leaf 1 the root of its checkpoint's state, then come the
/// addresses of its evidence, sorted, each once.
pub fn epoch_tree(
    scores: Hash,
    state_root: Hash,
    evidence: impl IntoIterator<Item = Hash>,
) -> merkle::Tree {
    let evidence: std::collections::BTreeSet<_> = evidence.into_iter().collect();
    let leaves = [scores, state_root].into_iter().chain(evidence);
    merkle::Tree::from_leaves(leaves.collect())
}

/// What an epoch is attested by on chain: the root of [`epoch_tree`].
pub fn epoch_root(
    scores: Hash,
    state_root: Hash,
    evidence: impl IntoIterator<Item = Hash>,
) -> Hash {
    epoch_tree(scores, state_root, evidence).root()
}

#[doc(hidden)]
pub mod example;

#[cfg(test)]
mod tests;
