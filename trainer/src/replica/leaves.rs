//! Hashes of tiles, kept up with every change, and the roots over them.

use std::ops::Range;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

use super::Replica;

/// Hashes tiles one after the other without a new buffer for each.
#[derive(Default)]
pub(super) struct TileHasher {
    content: Vec<u8>,
}

impl TileHasher {
    /// The hash of the little-endian bytes of `parts`, one after the other.
    pub(super) fn hash(&mut self, parts: &[&[f32]]) -> Hash {
        self.content.clear();
        for part in parts {
            let bytes = part.iter().flat_map(|value| value.to_le_bytes());
            self.content.extend(bytes);
        }
        Hash::of_content(&self.content)
    }
}

impl Replica {
    /// Root over theta, the outer optimizer's state and the residuals of owners. Cost: one hash per leaf.
    pub fn state_root(&self) -> Hash {
        merkle::Tree::from_leaves(self.leaves()).root()
    }

    /// Merkle root over the error feedback, a leaf per tile (the little-endian bytes of its f32 values). Cost: one hash
    /// per leaf.
    pub fn feedback_root(&self) -> Hash {
        merkle::Tree::from_leaves(self.feedback_leaves.clone()).root()
    }

    pub(super) fn rehash_tiles(&mut self, tiles: Range<usize>) {
        let mut hasher = TileHasher::default();
        for index in tiles {
            let elements = self.layout.tiles()[index].elements();
            let momentum = self.momentum.get(elements.clone()).unwrap_or_default();
            self.tile_leaves[index] = hasher.hash(&[&self.theta[elements], momentum]);
        }
    }

    pub(super) fn rehash_feedback(&mut self, tiles: Range<usize>) {
        let mut hasher = TileHasher::default();
        // Without a residual all tiles of a length have the same content.
        let mut zeros = (0, Hash::ZERO);
        for index in tiles {
            let tile = self.layout.tiles()[index];
            self.feedback_leaves[index] = match self.feedback.residual() {
                Some(residual) => hasher.hash(&[&residual[tile.elements()]]),
                None => {
                    if zeros.0 != tile.len() {
                        zeros = (tile.len(), hasher.hash(&[&vec![0.0; tile.len()]]));
                    }
                    zeros.1
                }
            };
        }
    }
}
