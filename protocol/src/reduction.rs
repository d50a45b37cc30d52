//! Reductions: what the owners of a group's shards say that they made of the group's frames.
//!
//! An owner sums the accepted frames of one group in one shard, adds the owner residual, and encodes the sum again. It signs
//! what went in, what came out and the residual on both sides. All of it is a function of the inputs, so that the two
//! owners of a shard say the same, and anyone who has the inputs can recompute a lie.

use crate::decision::Bitmap;
use crate::hash::Hash;
use crate::header::FrameRef;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::{RoundId, RunId};
use crate::plan::GroupId;
use crate::wire;

const REDUCTIONS_DOMAIN: &str = "gradmesh reductions v1";

/// What was made of one group's frames of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The group.
    pub group: GroupId,
    /// The shard.
    pub shard: u32,
    /// Which of the list's headers went in.
    pub accepted: Bitmap,
    /// What came out.
    pub frame: FrameRef,
    /// Content hash of the owner residual that was added; [`Hash::ZERO`] if there was none yet or it was lost.
    pub residual_before: Hash,
    /// Content hash of the owner residual that was left.
    pub residual: Hash,
}

/// An owner's list for a round, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reductions {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: RoundId,
    /// The owner.
    pub owner: PeerKey,
    /// Hashes of the headers that went into any of the reductions, ascending.
    pub headers: Vec<Hash>,
    /// The reductions, ascending by group and shard.
    pub reductions: Vec<Reduction>,
}

/// A list with its owner's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReductions {
    /// The list.
    pub reductions: Reductions,
    /// The owner's signature over it.
    pub signature: Signature,
}

impl Reductions {
    /// Signs the list as its owner.
    pub fn sign(self, owner: &Keypair) -> SignedReductions {
        let signature = owner.sign(&self.hash());
        SignedReductions {
            reductions: self,
            signature,
        }
    }

    fn hash(&self) -> Hash {
        Hash::in_domain(REDUCTIONS_DOMAIN, &wire::encode_reductions(self))
    }
}

impl SignedReductions {
    /// Whether the signature is the owner's.
    pub fn is_authentic(&self) -> bool {
        let list = &self.reductions;
        list.owner.verify(&list.hash(), &self.signature)
    }
}
