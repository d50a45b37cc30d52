//! Evidence for people and other programs: the same with names, as any format of serde writes it.

use serde::Serialize;

use super::{Claim, ClaimedSegment, Need, NeedKind, Redone, SignedEvidence, WrongTile};
use crate::audit::challenge::Beacon;
use crate::audit::judgement::Machine;
use crate::audit::segment::StateRoots;
use crate::audit::sketch::Sketch;
use crate::audit::verdict::{Check, Outcome, Verdict};
use crate::hash::Hash;

/// A view of evidence. Hashes, keys and signatures are hex; units stand in the names. Elements of sketches are numbers, `null`
/// in JSON where one is not finite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Content hash of its bytes.
    pub address: Hash,
    /// What was found.
    pub verdict: VerdictView,
    /// Id of the decision of the round.
    pub decision: Hash,
    /// What else the challenge followed from.
    pub beacon: BeaconView,
    /// Id of the decision that the data followed from.
    pub basis: Hash,
    /// Seed of the round.
    pub round_seed: Hash,
    /// What the header says.
    pub claim: ClaimView,
    /// What the peer said of the segment.
    pub segment: Option<SegmentView>,
    /// Where the validator audited.
    pub machine: MachineView,
    /// The segment done again.
    pub redone: Option<RedoneView>,
    /// The wrong tile.
    pub tile: Option<TileView>,
    /// What a replay needs.
    pub needs: Vec<NeedView>,
    /// The validator's signature.
    pub signature: String,
}

/// A view of a verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerdictView {
    pub run: Hash,
    pub round: u64,
    pub peer: String,
    pub header: Hash,
    pub validator: String,
    pub challenge: Hash,
    pub segment: u32,
    pub check: &'static str,
    pub outcome: &'static str,
    pub error_ppb: u64,
    pub tolerance_ppb: u64,
}

/// A view of a beacon: a block, or a decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BeaconView {
    pub block: Option<u64>,
    pub block_hash: Option<Hash>,
    pub drand_round: Option<u64>,
    pub drand_randomness: Option<Hash>,
    pub decision: Option<Hash>,
}

/// A view of a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineView {
    pub build: String,
    pub device: String,
}

/// A view of what a header says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimView {
    pub state_root: Hash,
    pub segments_root: Hash,
    pub inner_before: Hash,
    pub inner_after: Hash,
    pub feedback_before: Hash,
    pub feedback_after: Hash,
    pub tokens: u64,
    pub machine: MachineView,
}

/// A view of the roots of a state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RootsView {
    pub theta: Hash,
    pub inner: Hash,
}

/// A view of a segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentView {
    pub before: RootsView,
    pub after: RootsView,
    pub data: Hash,
    pub tokens: u64,
    pub loss_micronats: u64,
    pub gradient_norm_micro: u64,
    pub proof: Vec<Hash>,
}

/// A view of a segment that was done again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RedoneView {
    pub after: RootsView,
    pub loss_micronats: u64,
    pub gradient_norm_micro: u64,
    pub sketch_seed: Hash,
    pub sketch_claimed: Vec<f32>,
    pub sketch_redone: Vec<f32>,
}

/// A view of a tile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TileView {
    pub tile: u64,
    pub tiles: u64,
    pub feedback_before: Hash,
    pub feedback_before_proof: Vec<Hash>,
    pub feedback_after: Hash,
    pub feedback_after_proof: Vec<Hash>,
    pub theta: Vec<Hash>,
    pub frame: Hash,
}

/// A view of a content that a replay needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeedView {
    pub kind: &'static str,
    pub content: Hash,
}

impl From<&SignedEvidence> for View {
    fn from(signed: &SignedEvidence) -> View {
        let evidence = &signed.evidence;
        View {
            address: signed.address(),
            verdict: (&evidence.verdict).into(),
            decision: evidence.decision,
            beacon: (&evidence.beacon).into(),
            basis: evidence.basis,
            round_seed: evidence.round_seed(),
            claim: (&evidence.claim).into(),
            segment: evidence.segment.as_ref().map(Into::into),
            machine: (&evidence.machine).into(),
            redone: evidence.redone.as_ref().map(Into::into),
            tile: evidence.tile.as_ref().map(Into::into),
            needs: evidence.needs.iter().map(Into::into).collect(),
            signature: hex::encode(signed.signature.0),
        }
    }
}

impl From<&Verdict> for VerdictView {
    fn from(verdict: &Verdict) -> VerdictView {
        VerdictView {
            run: verdict.run.0,
            round: verdict.round.0,
            peer: verdict.peer.to_string(),
            header: verdict.header,
            validator: verdict.validator.to_string(),
            challenge: verdict.challenge,
            segment: verdict.segment,
            check: match verdict.check {
                Check::Segment => "segment",
                Check::Compression => "compression",
                Check::Start => "start",
                Check::Availability => "availability",
            },
            outcome: match verdict.outcome {
                Outcome::Passed => "passed",
                Outcome::Grey => "grey",
                Outcome::Failed => "failed",
            },
            error_ppb: verdict.error_ppb,
            tolerance_ppb: verdict.tolerance_ppb,
        }
    }
}

impl From<&Beacon> for BeaconView {
    fn from(beacon: &Beacon) -> BeaconView {
        match beacon {
            Beacon::Block {
                number,
                hash,
                pulse,
            } => BeaconView {
                block: Some(*number),
                block_hash: Some(*hash),
                drand_round: pulse.map(|pulse| pulse.round),
                drand_randomness: pulse.map(|pulse| pulse.randomness),
                decision: None,
            },
            Beacon::Decision(id) => BeaconView {
                decision: Some(*id),
                ..BeaconView::default()
            },
        }
    }
}

impl From<&Machine> for MachineView {
    fn from(machine: &Machine) -> MachineView {
        MachineView {
            build: machine.build.clone(),
            device: machine.device.clone(),
        }
    }
}

impl From<&Claim> for ClaimView {
    fn from(claim: &Claim) -> ClaimView {
        ClaimView {
            state_root: claim.state_root,
            segments_root: claim.work.segments_root,
            inner_before: claim.work.inner_before,
            inner_after: claim.work.inner_after,
            feedback_before: claim.feedback_before,
            feedback_after: claim.feedback_after,
            tokens: claim.tokens,
            machine: (&claim.machine).into(),
        }
    }
}

impl From<&StateRoots> for RootsView {
    fn from(roots: &StateRoots) -> RootsView {
        RootsView {
            theta: roots.theta,
            inner: roots.inner,
        }
    }
}

impl From<&ClaimedSegment> for SegmentView {
    fn from(segment: &ClaimedSegment) -> SegmentView {
        SegmentView {
            before: (&segment.before).into(),
            after: (&segment.after).into(),
            data: segment.work.data,
            tokens: segment.work.tokens,
            loss_micronats: segment.work.loss_micronats,
            gradient_norm_micro: segment.work.gradient_norm_micro,
            proof: segment.proof.clone(),
        }
    }
}

impl From<&Redone> for RedoneView {
    fn from(redone: &Redone) -> RedoneView {
        let elements = |sketch: &Sketch| sketch.bits.map(f32::from_bits).to_vec();
        RedoneView {
            after: (&redone.after).into(),
            loss_micronats: redone.loss_micronats,
            gradient_norm_micro: redone.gradient_norm_micro,
            sketch_seed: redone.sketch_seed,
            sketch_claimed: elements(&redone.claimed),
            sketch_redone: elements(&redone.redone),
        }
    }
}

impl From<&WrongTile> for TileView {
    fn from(tile: &WrongTile) -> TileView {
        TileView {
            tile: tile.tile,
            tiles: tile.tiles,
            feedback_before: tile.before,
            feedback_before_proof: tile.before_proof.clone(),
            feedback_after: tile.after,
            feedback_after_proof: tile.after_proof.clone(),
            theta: tile.theta.clone(),
            frame: tile.frame,
        }
    }
}

impl From<&Need> for NeedView {
    fn from(need: &Need) -> NeedView {
        NeedView {
            kind: match need.kind {
                NeedKind::Data => "data",
                NeedKind::Segments => "segments",
                NeedKind::ThetaBefore => "theta_before",
                NeedKind::InnerBefore => "inner_before",
                NeedKind::ThetaAfter => "theta_after",
                NeedKind::InnerAfter => "inner_after",
                NeedKind::Feedback => "feedback",
                NeedKind::Frame => "frame",
            },
            content: need.content,
        }
    }
}
