//! The header: a peer's signed commitment to its update, published before any frame of it is served.

use crate::hash::Hash;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::{RoundId, RunId};
use crate::wire;

const HEADER_DOMAIN: &str = "gradmesh header v1";

/// One frame of an update: its content hash and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameRef {
    /// BLAKE3 of the frame.
    pub hash: Hash,
    /// Its length.
    pub bytes: u64,
}

/// Where a frame is on its way, which says what codec its bytes are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// From a member to the owners of its site: the manifest's dense local format.
    Local,
    /// Over the WAN on the way up: the run's codec.
    Update,
    /// From an owner to everybody: more is kept of it than on the way up, or it is dense as the run is.
    Reduced,
}

/// One figure for each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerStage {
    /// Of [`Stage::Local`].
    pub local: u64,
    /// Of [`Stage::Update`].
    pub update: u64,
    /// Of [`Stage::Reduced`].
    pub reduced: u64,
}

impl PerStage {
    /// The figure of `stage`.
    pub fn of(&self, stage: Stage) -> u64 {
        match stage {
            Stage::Local => self.local,
            Stage::Update => self.update,
            Stage::Reduced => self.reduced,
        }
    }

    /// Each figure over `parts`, rounded up.
    pub fn divided_by(&self, parts: u64) -> PerStage {
        let part = |figure: u64| figure.div_ceil(parts.max(1));
        PerStage {
            local: part(self.local),
            update: part(self.update),
            reduced: part(self.reduced),
        }
    }
}

/// A frame as a header or a decision names it: its content, its length, and the shard and stage that it is a frame of.
///
/// All four belong to its identity. The same bytes named for another shard or stage, or with another length, are another
/// frame, which stands or falls by itself: otherwise a header could name somebody's good frame wrongly and be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameId {
    /// BLAKE3 of the frame.
    pub hash: Hash,
    /// Its length.
    pub bytes: u64,
    /// The shard.
    pub shard: u32,
    /// The stage.
    pub stage: Stage,
}

impl FrameRef {
    /// This frame as one of `shard` at `stage`.
    pub fn id(&self, shard: u32, stage: Stage) -> FrameId {
        FrameId {
            hash: self.hash,
            bytes: self.bytes,
            shard,
            stage,
        }
    }
}

/// What a header says of how its update came about (see [`crate::audit::segment`]). All zero in a run without audits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkCommitment {
    /// Root over the segment leaves.
    pub segments_root: Hash,
    /// Root of the inner optimizer's state before the first step.
    pub inner_before: Hash,
    /// The same after the last one.
    pub inner_after: Hash,
}

/// What a worker knows of an update once it is encoded; the node makes the header of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateSummary {
    /// One frame for each shard that the round exchanges, in shard order.
    pub frames: Vec<FrameRef>,
    /// Root over the error feedback before the update went in, and over the drift that training began with
    /// ([`crate::fragment`]).
    pub feedback_before: Hash,
    /// Root over what is left of both after the frames were taken out.
    pub feedback_after: Hash,
    /// What training did, segment by segment.
    pub work: WorkCommitment,
    /// Tokens that the update was trained on.
    pub tokens: u64,
    /// Inner steps that were done.
    pub steps: u32,
    /// Mean loss of the first step, in millionths of a nat per token.
    pub loss_first_micronats: u64,
    /// Mean loss of the last step, in millionths of a nat per token.
    pub loss_last_micronats: u64,
    /// Version of the program that trained.
    pub build: String,
    /// Device class, for the choice of an audit lane.
    pub device: String,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: RoundId,
    /// The author.
    pub peer: PeerKey,
    /// The state root from which the author trained.
    pub state_root: Hash,
    /// The update.
    pub update: UpdateSummary,
}

/// A header with its author's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHeader {
    /// The header.
    pub header: Header,
    /// The author's signature over it.
    pub signature: Signature,
}

impl Header {
    /// The hash that is signed, and by which decisions name the header.
    pub fn hash(&self) -> Hash {
        Hash::in_domain(HEADER_DOMAIN, &wire::encode_header(self))
    }

    /// Signs the header as its author.
    pub fn sign(self, author: &Keypair) -> SignedHeader {
        let signature = author.sign(&self.hash());
        SignedHeader {
            header: self,
            signature,
        }
    }
}

impl SignedHeader {
    /// Whether the signature is the author's. The node checks this once, when a header arrives.
    pub fn is_authentic(&self) -> bool {
        self.header
            .peer
            .verify(&self.header.hash(), &self.signature)
    }
}
