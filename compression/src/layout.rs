//! How the flat parameters of a model are cut into tiles and shards.
//!
//! Rule "tile cut": the tensors lie one after the other in one flat space. Each tensor is cut into
//! tiles of [`TILE_ELEMENTS`] consecutive elements; its last tile may be shorter; no tile holds
//! elements of two tensors. Tiles are numbered in flat order. A shard is a run of consecutive
//! tiles, all of the same number but the last.

use std::num::NonZeroUsize;
use std::ops::Range;

use thiserror::Error;

/// Elements of a full tile. 4096 is 2^12: an index inside a tile takes 12 bits.
pub const TILE_ELEMENTS: usize = 4096;

/// Most elements that a layout may have: 2^36, a model of 69 billion parameters.
///
/// A guess, well above what volunteers can train; it bounds the tiles (16 bytes each) that a
/// manifest can make a peer allocate.
pub const ELEMENTS_MAX: u64 = 1 << 36;

/// Most tiles that a layout may have, and that a frame may count: 2^24, as many as [`ELEMENTS_MAX`]
/// fills.
pub const TILES_MAX: usize = 1 << 24;

/// What a sparse run does with the tiles of a tensor. In a dense run the mode has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorMode {
    /// Top-k by tile.
    Sparse,
    /// Every element, rounded to bf16.
    Dense,
}

impl TensorMode {
    /// Dense for a tensor of fewer than `threshold` elements (norms, biases), sparse otherwise.
    ///
    /// A small tensor costs next to nothing on the wire, and its elements matter more than most.
    #[must_use]
    pub const fn for_elements(elements: usize, threshold: usize) -> Self {
        if elements < threshold {
            Self::Dense
        } else {
            Self::Sparse
        }
    }
}

/// One tensor of the model, flattened. A tensor without elements has no tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    pub elements: usize,
    pub mode: TensorMode,
}

/// One tile: where it lies in the flat space, how long it is, how a sparse run codes it.
///
/// Made by [`Layout::new`] only, so that its length is always in `1..=TILE_ELEMENTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    start: usize,
    len: u16,
    mode: TensorMode,
}

impl Tile {
    /// First element, as an offset into the flat space.
    #[must_use]
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Elements, in `1..=TILE_ELEMENTS`.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a tile is never empty")]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    #[must_use]
    pub const fn mode(&self) -> TensorMode {
        self.mode
    }

    /// Offsets of its elements in the flat space.
    #[must_use]
    pub const fn elements(&self) -> Range<usize> {
        self.start..self.start + self.len()
    }
}

/// Why tensors cannot be laid out. The manifest is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    #[error("tensor {tensor} brings the model over {ELEMENTS_MAX} elements")]
    TooManyElements { tensor: usize },
    #[error("tensor {tensor} brings the model over {TILES_MAX} tiles")]
    TooManyTiles { tensor: usize },
}

/// The tiles of a model, in flat order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tiles: Vec<Tile>,
    elements: usize,
}

impl Layout {
    /// Cuts `tensors`, in their order, by the rule "tile cut".
    ///
    /// Memory: 16 bytes per tile.
    ///
    /// # Errors
    /// [`LayoutError`] when the model exceeds [`ELEMENTS_MAX`] or [`TILES_MAX`], before anything is
    /// allocated.
    pub fn new(tensors: &[TensorSpec]) -> Result<Self, LayoutError> {
        let mut elements = 0_usize;
        let mut tile_count = 0_usize;
        for (tensor, spec) in tensors.iter().enumerate() {
            elements = elements
                .checked_add(spec.elements)
                .filter(|&sum| sum as u64 <= ELEMENTS_MAX)
                .ok_or(LayoutError::TooManyElements { tensor })?;
            tile_count = tile_count
                .checked_add(spec.elements.div_ceil(TILE_ELEMENTS))
                .filter(|&sum| sum <= TILES_MAX)
                .ok_or(LayoutError::TooManyTiles { tensor })?;
        }

        let mut tiles = Vec::with_capacity(tile_count);
        let mut start = 0;
        for spec in tensors {
            let end = start + spec.elements;
            while start < end {
                let len = (end - start).min(TILE_ELEMENTS);
                tiles.push(Tile {
                    start,
                    len: len as u16,
                    mode: spec.mode,
                });
                start += len;
            }
        }
        Ok(Self { tiles, elements })
    }

    /// Elements of the flat space.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.elements
    }

    /// All tiles in flat order.
    #[must_use]
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// Tile ranges of the shards: `tiles_per_shard` consecutive tiles each, the last may have
    /// fewer.
    pub fn shards(
        &self,
        tiles_per_shard: NonZeroUsize,
    ) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        let count = self.tiles.len().div_ceil(tiles_per_shard.get());
        (0..count).map(move |shard| {
            let first = shard * tiles_per_shard.get();
            // `first` is below the number of tiles; the sum saturates because `tiles_per_shard` is
            // the caller's.
            first
                ..first
                    .saturating_add(tiles_per_shard.get())
                    .min(self.tiles.len())
        })
    }

    /// Elements, as offsets into the flat space, that the tiles of `shard` cover; `None` when the
    /// layout does not have all of these tiles. An empty range of tiles has an empty range of
    /// elements.
    #[must_use]
    pub fn shard_elements(&self, shard: Range<usize>) -> Option<Range<usize>> {
        let first = shard.start;
        let tiles = self.tiles.get(shard)?;
        let start = self.tiles.get(first).map_or(self.elements, Tile::start);
        let end = tiles.last().map_or(start, |tile| tile.elements().end);
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn sparse(elements: usize) -> TensorSpec {
        TensorSpec {
            elements,
            mode: TensorMode::Sparse,
        }
    }

    const fn dense(elements: usize) -> TensorSpec {
        TensorSpec {
            elements,
            mode: TensorMode::Dense,
        }
    }

    #[test]
    fn tiles_do_not_cross_tensors() {
        let layout = Layout::new(&[sparse(5000), dense(0), dense(7), sparse(8192)]).unwrap();
        let cut: Vec<_> = layout
            .tiles()
            .iter()
            .map(|t| (t.elements(), t.mode()))
            .collect();
        assert_eq!(
            cut,
            [
                (0..4096, TensorMode::Sparse),
                (4096..5000, TensorMode::Sparse),
                (5000..5007, TensorMode::Dense),
                (5007..9103, TensorMode::Sparse),
                (9103..13199, TensorMode::Sparse),
            ]
        );
        assert_eq!(layout.elements(), 13199);
    }

    #[test]
    fn shards_cover_all_tiles_once_and_in_order() {
        let layout = Layout::new(&[sparse(5000), dense(7), sparse(8192)]).unwrap();
        let two = NonZeroUsize::new(2).unwrap();
        let shards: Vec<_> = layout.shards(two).collect();
        assert_eq!(shards, [0..2, 2..4, 4..5]);
        let elements: Vec<_> = shards
            .into_iter()
            .map(|s| layout.shard_elements(s).unwrap())
            .collect();
        assert_eq!(elements, [0..5000, 5000..9103, 9103..13199]);
        assert_eq!(
            layout.shards(NonZeroUsize::MAX).collect::<Vec<_>>(),
            vec![0..5]
        );
    }

    #[test]
    fn foreign_tile_range_has_no_elements() {
        let layout = Layout::new(&[sparse(5000)]).unwrap();
        assert_eq!(layout.shard_elements(0..3), None);
        assert_eq!(layout.shard_elements(Range { start: 2, end: 1 }), None);
        assert_eq!(layout.shard_elements(2..2), Some(5000..5000));
    }

    #[test]
    fn model_over_the_limit_is_refused_without_allocating() {
        assert_eq!(
            Layout::new(&[sparse(1), sparse(ELEMENTS_MAX as usize)]),
            Err(LayoutError::TooManyElements { tensor: 1 })
        );
        assert_eq!(
            Layout::new(&[sparse(usize::MAX), sparse(usize::MAX)]),
            Err(LayoutError::TooManyElements { tensor: 0 })
        );
        assert_eq!(
            Layout::new(&[sparse(1), sparse(ELEMENTS_MAX as usize - 1)]),
            Err(LayoutError::TooManyTiles { tensor: 1 })
        );
    }

    #[test]
    fn only_tensors_below_the_threshold_are_dense() {
        assert_eq!(TensorMode::for_elements(1023, 1024), TensorMode::Dense);
        assert_eq!(TensorMode::for_elements(1024, 1024), TensorMode::Sparse);
    }
}
