//! Hashes of tiles, kept up with every change, and the roots over them.

use std::borrow::Cow;
use std::ops::Range;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

use super::Replica;
use crate::optimizer::le_bytes;

/// The hash of the little-endian bytes of `parts`, one after the other.
pub(super) fn hash_values(parts: &[&[f32]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&le_bytes(part));
    }
    Hash(*hasher.finalize().as_bytes())
}

impl Replica {
    /// Root over theta, the outer optimizer's state and the residuals of owners. Cost: one hash per leaf.
    pub fn state_root(&self) -> Hash {
        merkle::Tree::from_leaves(self.leaves()).root()
    }

    /// Merkle root over the error feedback, a leaf per tile (the little-endian bytes of its f32 values), and as many for the
    /// drift, if there is any. Cost: one hash per leaf.
    pub fn feedback_root(&self) -> Hash {
        let leaves = self.feedback_leaves.iter().chain(self.drift.leaves());
        merkle::Tree::from_leaves(leaves.copied().collect()).root()
    }

    /// Hashes of the tiles of the error feedback, in order: the leaves of [`Replica::feedback_root`] while there is no drift.
    pub fn feedback_leaves(&self) -> &[Hash] {
        &self.feedback_leaves
    }

    /// The error feedback, flat.
    pub fn feedback_values(&self) -> Cow<'_, [f32]> {
        match self.feedback.residual() {
            Some(residual) => Cow::Borrowed(residual),
            None => Cow::Owned(vec![0.0; self.feedback.elements()]),
        }
    }

    pub(super) fn rehash_tiles(&mut self, tiles: Range<usize>) {
        for index in tiles {
            let elements = self.shape.layout.tiles()[index].elements();
            let momentum = self.momentum.get(elements.clone()).unwrap_or_default();
            self.tile_leaves[index] = hash_values(&[&self.theta[elements], momentum]);
        }
    }

    pub(super) fn rehash_feedback(&mut self, tiles: Range<usize>) {
        // Without a residual all tiles of a length have the same content.
        let mut zeros = (0, Hash::ZERO);
        for index in tiles {
            let tile = self.shape.layout.tiles()[index];
            self.feedback_leaves[index] = match self.feedback.residual() {
                Some(residual) => hash_values(&[&residual[tile.elements()]]),
                None => {
                    if zeros.0 != tile.len() {
                        zeros = (tile.len(), hash_values(&[&vec![0.0; tile.len()]]));
                    }
                    zeros.1
                }
            };
        }
    }
}
