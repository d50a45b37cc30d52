//! The shared state as Merkle leaves: how replicas compare themselves, and how a joiner fetches one.
//!
//! The content of leaf `i` is the little-endian bytes of the f32 values of tile `i` of theta, followed, when the outer
//! optimizer has momentum, by those of its momentum. When owners keep residuals, one leaf per shard follows, which names
//! them (`residuals.rs`). A leaf is the plain BLAKE3 hash of its content, so it is also the address under which any peer
//! serves it.

use std::borrow::Cow;
use std::ops::Range;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

use super::{Outer, Replica, ReplicaConfig, ReplicaError};
use crate::model::{ParameterSpec, elements};
use crate::optimizer::{f32_values, le_bytes};

/// Why fetched state was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("{got} leaves, the model has {tiles} tiles in {shards} shards: ask another peer")]
    LeafCount {
        got: usize,
        tiles: usize,
        shards: usize,
    },
    #[error("leaves have the root {got:?}, not {expected:?}: ask another peer")]
    Root { got: Hash, expected: Hash },
    #[error("leaf {index} does not exist, there are {leaves}")]
    NoLeaf { index: usize, leaves: usize },
    #[error("content of leaf {index} is not what it names: ask another peer")]
    Content { index: usize },
    #[error("tile {index} holds a value that is not finite: the state itself is bad")]
    NotFinite { index: usize },
    #[error("leaf {index} names residuals in a form that no peer writes: the state itself is bad")]
    Residuals { index: usize },
    #[error("{missing} leaves are still missing")]
    Incomplete { missing: usize },
}

impl Replica {
    /// The leaves under [`Self::state_root`], in order.
    pub fn leaves(&self) -> Vec<Hash> {
        let mut leaves = self.tile_leaves.clone();
        leaves.extend(self.residual_leaves());
        leaves
    }

    /// Those of [`Self::leaves`] that name the residuals of owners.
    pub fn residual_leaves(&self) -> Vec<Hash> {
        if self.residuals.is_empty() {
            return Vec::new();
        }
        let contents = (0..self.shape.shards.len()).filter_map(|shard| self.residuals.leaf(shard));
        contents.map(|content| Hash::of_content(&content)).collect()
    }

    /// Number of leaves: one per tile and, when a residual is known, one per shard.
    pub fn leaf_count(&self) -> usize {
        let residuals = if self.residuals.is_empty() {
            0
        } else {
            self.shape.shards.len()
        };
        self.tile_leaves.len() + residuals
    }

    /// Length of the content of leaf `index`; `None` for one that does not exist.
    pub fn leaf_bytes(&self, index: usize) -> Option<u64> {
        let tiles = self.shape.layout.tiles();
        let bytes = match tiles.get(index) {
            Some(tile) if self.momentum.is_empty() => tile.len() * 4,
            Some(tile) => tile.len() * 8,
            None => self.export_leaf(index)?.len(),
        };
        Some(bytes as u64)
    }

    /// The content of leaf `index`; `None` for one that does not exist.
    pub fn export_leaf(&self, index: usize) -> Option<Vec<u8>> {
        Some(self.leaf_parts(index)?.concat())
    }

    /// [`Self::export_leaf`] in two parts, without a copy of theta and momentum.
    pub fn leaf_parts(&self, index: usize) -> Option<[Cow<'_, [u8]>; 2]> {
        let Some(tile) = self.shape.layout.tiles().get(index) else {
            let shard = index - self.shape.layout.tiles().len();
            let content = self.residuals.leaf(shard);
            let content = content.filter(|_| !self.residuals.is_empty())?;
            return Some([content.into(), Cow::default()]);
        };
        let range = tile.elements();
        let momentum = self.momentum.get(range.clone()).unwrap_or_default();
        Some([le_bytes(&self.theta[range]), le_bytes(momentum)])
    }
}

/// A replica being fetched leaf by leaf, in any order, from any peers; each content is verified as it comes.
#[derive(Debug, Clone)]
pub struct StateImport {
    replica: Replica,
    leaves: Vec<Hash>,
    present: Vec<bool>,
}

impl StateImport {
    /// Starts from the list of leaves under the trusted `root`.
    ///
    /// Memory: theta, momentum and error feedback are reserved here, by the manifest's model, not by anything claimed.
    ///
    /// # Errors
    /// [`ImportError::LeafCount`] and [`ImportError::Root`] blame whoever sent `leaves`; [`ImportError::Replica`] the
    /// manifest.
    pub fn new(
        parameters: &[ParameterSpec],
        config: ReplicaConfig,
        root: Hash,
        leaves: Vec<Hash>,
    ) -> Result<Self, ImportError> {
        let replica = Replica::unhashed(parameters, config, vec![0.0; elements(parameters)])?;
        let (tiles, shards) = (
            replica.shape.layout.tiles().len(),
            replica.shape.shards.len(),
        );
        let got = leaves.len();
        if got != tiles && got != tiles + shards {
            return Err(ImportError::LeafCount { got, tiles, shards });
        }
        let tree = merkle::Tree::from_leaves(leaves);
        if tree.root() != root {
            return Err(ImportError::Root {
                got: tree.root(),
                expected: root,
            });
        }
        Ok(Self {
            replica,
            present: vec![false; got],
            leaves: tree.leaves().to_vec(),
        })
    }

    /// Leaves still to fetch, with the hash that their content must have.
    pub fn missing(&self) -> impl Iterator<Item = (usize, Hash)> + '_ {
        let tiles = self.leaves.iter().zip(&self.present).enumerate();
        tiles
            .filter(|(_, (_, present))| !**present)
            .map(|(index, (leaf, _))| (index, *leaf))
    }

    /// Takes in the content of leaf `index`; once is enough, twice does no harm.
    ///
    /// # Errors
    /// [`ImportError::Content`] blames the sender; nothing changes then.
    pub fn put(&mut self, index: usize, content: &[u8]) -> Result<(), ImportError> {
        let Some(leaf) = self.leaves.get(index) else {
            return Err(ImportError::NoLeaf {
                index,
                leaves: self.leaves.len(),
            });
        };
        if Hash::of_content(content) != *leaf {
            return Err(ImportError::Content { index });
        }
        match self.replica.shape.layout.tiles().get(index) {
            Some(tile) => self.put_tile(index, tile.elements(), content)?,
            None => {
                let shard = index - self.replica.shape.layout.tiles().len();
                if !self.replica.residuals.put(shard, content) {
                    return Err(ImportError::Residuals { index });
                }
            }
        }
        self.present[index] = true;
        Ok(())
    }

    fn put_tile(
        &mut self,
        index: usize,
        range: Range<usize>,
        content: &[u8],
    ) -> Result<(), ImportError> {
        let copies = match self.replica.shape.config.outer {
            Outer::Plain { .. } => 1,
            Outer::Nesterov { .. } => 2,
        };
        if content.len() != range.len() * 4 * copies {
            return Err(ImportError::Content { index });
        }
        let values = f32_values(content);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(ImportError::NotFinite { index });
        }
        let (theta, momentum) = values.split_at(range.len());
        self.replica.theta[range.clone()].copy_from_slice(theta);
        if let Some(own) = self.replica.momentum.get_mut(range) {
            own.copy_from_slice(momentum);
        }
        self.replica.tile_leaves[index] = self.leaves[index];
        Ok(())
    }

    /// The replica, its error feedback zero.
    ///
    /// # Errors
    /// [`ImportError::Incomplete`] while leaves are missing.
    pub fn finish(self) -> Result<Replica, ImportError> {
        match self.missing().count() {
            0 => Ok(self.replica),
            missing => Err(ImportError::Incomplete { missing }),
        }
    }
}
