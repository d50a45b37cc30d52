//! What the manifest fixes of a replica.

use std::ops::Range;

use gradmesh_compression::{
    DecodeError, Frame, Layout, LayoutError, TensorMode, TensorSpec, Tile, check, decode,
    frame_bytes_max,
};
use gradmesh_protocol::header::Stage;

use super::ReplicaConfig;
use crate::model::ParameterSpec;

/// How theta is cut in tiles and shards, and in which codecs its frames are. Never changes, so that other threads than the
/// replica's check and reduce frames by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub(super) config: ReplicaConfig,
    pub(super) layout: Layout,
    pub(super) shards: Vec<Shard>,
}

/// Where a shard lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shard {
    pub(super) tiles: Range<usize>,
    pub(super) elements: Range<usize>,
}

impl Shape {
    /// The shape of a model with `parameters`.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn new(parameters: &[ParameterSpec], config: ReplicaConfig) -> Result<Self, LayoutError> {
        let tensors: Vec<TensorSpec> = parameters
            .iter()
            .map(|spec| TensorSpec {
                elements: spec.elements(),
                mode: TensorMode::for_elements(spec.elements(), config.sparse_elements_min),
            })
            .collect();
        let layout = Layout::new(&tensors)?;
        let shards = layout
            .shards(config.tiles_per_shard)
            .map(|tiles| Shard {
                elements: layout
                    .shard_elements(tiles.clone())
                    .expect("shards are cut from this layout"),
                tiles,
            })
            .collect();
        Ok(Self {
            config,
            layout,
            shards,
        })
    }

    pub fn config(&self) -> &ReplicaConfig {
        &self.config
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The elements of `shard`; `None` for one that does not exist.
    pub fn shard_elements(&self, shard: usize) -> Option<Range<usize>> {
        self.shards.get(shard).map(|shard| shard.elements.clone())
    }

    /// Number of shards: frames of an update.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// No frame of `shard` at `stage` is longer; `None` for a shard that does not exist.
    pub fn frame_bytes_max(&self, stage: Stage, shard: usize) -> Option<usize> {
        let shard = self.shards.get(shard)?;
        Some(frame_bytes_max(self.tiles(shard), self.config.codec(stage)))
    }

    /// Whether `bytes` are a frame of `shard` at `stage`: what a peer checks on arrival. A shard that does not exist has
    /// no tiles, and so no frame with content.
    ///
    /// # Errors
    /// [`DecodeError`]: whoever made the bytes is at fault.
    pub fn check_frame(&self, stage: Stage, shard: usize, bytes: &[u8]) -> Result<(), DecodeError> {
        let tiles = self.shards.get(shard).map(|shard| self.tiles(shard));
        check(bytes, tiles.unwrap_or_default(), self.config.codec(stage))
    }

    /// The shard that a tile lies in; `None` for one that does not exist.
    pub fn shard_of_tile(&self, tile: usize) -> Option<usize> {
        self.shards
            .iter()
            .position(|shard| shard.tiles.contains(&tile))
    }

    pub(crate) fn decode(
        &self,
        stage: Stage,
        shard: usize,
        bytes: &[u8],
    ) -> Result<Frame, DecodeError> {
        let tiles = self.shards.get(shard).map(|shard| self.tiles(shard));
        decode(bytes, tiles.unwrap_or_default(), self.config.codec(stage))
    }

    pub(super) fn tiles(&self, shard: &Shard) -> &[Tile] {
        &self.layout.tiles()[shard.tiles.clone()]
    }
}
