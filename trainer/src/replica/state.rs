//! The shared state as Merkle leaves: how replicas compare themselves, and how a joiner fetches one.
//!
//! The content of leaf `i` is the little-endian bytes of the f32 values of tile `i` of theta, followed, when the outer
//! optimizer has momentum, by those of its momentum. The leaf is the plain BLAKE3 hash of the content, so it is also the
//! address under which any peer serves it.

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
    #[error("{got} leaves, the model has {expected} tiles: ask another peer")]
    LeafCount { got: usize, expected: usize },
    #[error("leaves have the root {got:?}, not {expected:?}: ask another peer")]
    Root { got: Hash, expected: Hash },
    #[error("tile {index} does not exist, there are {tiles}")]
    NoTile { index: usize, tiles: usize },
    #[error("content of tile {index} is not what its leaf names: ask another peer")]
    Content { index: usize },
    #[error("tile {index} holds a value that is not finite: the state itself is bad")]
    NotFinite { index: usize },
    #[error("{missing} tiles are still missing")]
    Incomplete { missing: usize },
}

impl Replica {
    /// Root over theta and the outer optimizer's state.
    pub fn state_root(&self) -> Hash {
        merkle::Tree::from_leaves(self.leaves()).root()
    }

    /// One leaf per tile. Cost: one BLAKE3 pass over theta and momentum.
    pub fn leaves(&self) -> Vec<Hash> {
        let tiles = 0..self.layout.tiles().len();
        tiles
            .filter_map(|index| self.export_tile(index))
            .map(|content| Hash::of_content(&content))
            .collect()
    }

    /// The content of leaf `index`; `None` for a tile that does not exist.
    pub fn export_tile(&self, index: usize) -> Option<Vec<u8>> {
        let range = self.layout.tiles().get(index)?.elements();
        let mut content = le_bytes(&self.theta[range.clone()]);
        if let Some(momentum) = self.momentum.get(range) {
            content.extend_from_slice(&le_bytes(momentum));
        }
        Some(content)
    }
}

/// A replica being fetched tile by tile, in any order, from any peers; each tile is verified as it comes.
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
        let replica = Replica::new(parameters, config, vec![0.0; elements(parameters)])?;
        let expected = replica.layout.tiles().len();
        if leaves.len() != expected {
            return Err(ImportError::LeafCount {
                got: leaves.len(),
                expected,
            });
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
            present: vec![false; expected],
            leaves: tree.leaves().to_vec(),
        })
    }

    /// Tiles still to fetch, with the hash that their content must have.
    pub fn missing(&self) -> impl Iterator<Item = (usize, Hash)> + '_ {
        let tiles = self.leaves.iter().zip(&self.present).enumerate();
        tiles
            .filter(|(_, (_, present))| !**present)
            .map(|(index, (leaf, _))| (index, *leaf))
    }

    /// Takes in the content of tile `index`; once is enough, twice does no harm.
    ///
    /// # Errors
    /// [`ImportError::Content`] blames the sender; nothing changes then.
    pub fn put(&mut self, index: usize, content: &[u8]) -> Result<(), ImportError> {
        let tile = self.replica.layout.tiles().get(index);
        let (Some(tile), Some(leaf)) = (tile, self.leaves.get(index)) else {
            return Err(ImportError::NoTile {
                index,
                tiles: self.leaves.len(),
            });
        };
        let range = tile.elements();
        let copies = match self.replica.config.outer {
            Outer::Plain { .. } => 1,
            Outer::Nesterov { .. } => 2,
        };
        if content.len() != range.len() * 4 * copies || Hash::of_content(content) != *leaf {
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
        self.present[index] = true;
        Ok(())
    }

    /// The replica, its error feedback zero.
    ///
    /// # Errors
    /// [`ImportError::Incomplete`] while tiles are missing.
    pub fn finish(self) -> Result<Replica, ImportError> {
        match self.missing().count() {
            0 => Ok(self.replica),
            missing => Err(ImportError::Incomplete { missing }),
        }
    }
}
