//! From values, or from what was chosen of them, to a frame.

use bytes::Bytes;

use super::{CODE_SHIFT, Content, EncodeError, Frame, FrameTile, HIGH, NEGATIVE, PEAK, SparseTile};
use crate::codec::{Codec, DenseFormat, TileCode, VALUE_ABS_MAX, ValueBits};
use crate::dense;
use crate::grid::{self, Step};
use crate::ladder::{Ladder, PEAK_CODE};
use crate::layout::{TILES_MAX, Tile};
use crate::levels::Levels;
use crate::select::{Selector, magnitude_bits};

/// What was chosen of one tile, for [`Frame::from_selections`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection<'a> {
    /// Of a sparse tile: indices inside the tile, ascending, of the k' largest magnitudes (rule "selection" of
    /// [`crate::codec`]), and the values there.
    Sparse {
        indices: &'a [u16],
        values: &'a [f32],
    },
    /// Of a dense tile: all elements.
    Dense(&'a [f32]),
}

impl Frame {
    /// What the frame of `values`, the elements of `tiles` one after the other, decodes to.
    ///
    /// # Errors
    /// [`EncodeError`]: the values are not as many as the tiles hold, or out of range.
    pub fn quantise(values: &[f32], tiles: &[Tile], codec: Codec) -> Result<Self, EncodeError> {
        check_tiles(values.len(), tiles)?;
        let mut builder = Builder::new(tiles, codec);
        let mut selector = Selector::new();
        let mut indices = Vec::new();
        let mut chosen = Vec::new();
        for (tile, values) in tiles.iter().zip(by_tile(values, tiles)) {
            check_range(values, builder.frame.elements)?;
            match codec.for_tile(tile) {
                TileCode::Sparse {
                    entries_max,
                    value_bits,
                } => {
                    indices.clear();
                    selector.top_k(values, usize::from(entries_max), &mut indices);
                    chosen.clear();
                    chosen.extend(indices.iter().map(|&index| values[usize::from(index)]));
                    builder.sparse(tile, &indices, &chosen, entries_max, value_bits);
                }
                TileCode::Dense(format) => builder.dense(tile, values, format),
            }
        }
        Ok(builder.finish())
    }

    /// The frame of what somebody else selected, one [`Selection`] for each of `tiles`, in order: for values that are
    /// not on this processor. With the selections that the rule makes it equals the frame of [`Frame::quantise`]; that
    /// the largest were chosen is the caller's to see to.
    ///
    /// # Errors
    /// [`EncodeError`]: a selection does not suit its tile, or a value is out of range; its element counts all elements
    /// of `tiles`.
    pub fn from_selections<'a>(
        selections: impl ExactSizeIterator<Item = Selection<'a>>,
        tiles: &[Tile],
        codec: Codec,
    ) -> Result<Self, EncodeError> {
        check_tiles(tiles.iter().map(Tile::len).sum(), tiles)?;
        if selections.len() != tiles.len() {
            return Err(EncodeError::SelectionCount {
                found: selections.len(),
                expected: tiles.len(),
            });
        }
        let mut builder = Builder::new(tiles, codec);
        for (number, (tile, selection)) in tiles.iter().zip(selections).enumerate() {
            let start = builder.frame.elements;
            match (codec.for_tile(tile), selection) {
                (
                    TileCode::Sparse {
                        entries_max,
                        value_bits,
                    },
                    Selection::Sparse { indices, values },
                ) if suits(indices, values, tile.len(), entries_max) => {
                    if let Some(chosen) = first_out_of_range(values) {
                        return Err(EncodeError::ValueOutOfRange {
                            element: start + usize::from(indices[chosen]),
                            value: values[chosen],
                        });
                    }
                    builder.sparse(tile, indices, values, entries_max, value_bits);
                }
                (TileCode::Dense(format), Selection::Dense(values))
                    if values.len() == tile.len() =>
                {
                    check_range(values, start)?;
                    builder.dense(tile, values, format);
                }
                _ => return Err(EncodeError::Selection { tile: number }),
            }
        }
        Ok(builder.finish())
    }
}

/// The values of each tile.
pub(super) fn by_tile<'a>(values: &'a [f32], tiles: &'a [Tile]) -> impl Iterator<Item = &'a [f32]> {
    let mut rest = values;
    tiles.iter().map(move |tile| {
        let (own, after) = rest.split_at(tile.len());
        rest = after;
        own
    })
}

pub(super) fn check_tiles(values: usize, tiles: &[Tile]) -> Result<(), EncodeError> {
    let expected = tiles.iter().map(Tile::len).sum();
    if values != expected {
        return Err(EncodeError::LengthMismatch { values, expected });
    }
    if tiles.len() > TILES_MAX {
        return Err(EncodeError::TooManyTiles { tiles: tiles.len() });
    }
    Ok(())
}

/// `start`: the number of the first value, for the error.
pub(super) fn check_range(values: &[f32], start: usize) -> Result<(), EncodeError> {
    match first_out_of_range(values) {
        Some(offset) => Err(EncodeError::ValueOutOfRange {
            element: start + offset,
            value: values[offset],
        }),
        None => Ok(()),
    }
}

/// First value that is NaN or exceeds [`VALUE_ABS_MAX`].
fn first_out_of_range(values: &[f32]) -> Option<usize> {
    // As signed integers: that comparison is one instruction on every processor.
    let out_of_range = |value: &f32| magnitude_bits(*value) as i32 > VALUE_ABS_MAX.to_bits() as i32;
    // No early exit, so that it vectorises.
    if values
        .iter()
        .fold(false, |any, value| any | out_of_range(value))
    {
        values.iter().position(out_of_range)
    } else {
        None
    }
}

/// Whether a selection is one of a sparse tile of `len` elements.
fn suits(indices: &[u16], values: &[f32], len: usize, entries_max: u16) -> bool {
    let ascend = indices
        .iter()
        .zip(indices.iter().skip(1))
        .all(|(index, next)| index < next);
    indices.len() == values.len()
        && indices.len() <= usize::from(entries_max)
        && ascend
        && indices.last().is_none_or(|&last| usize::from(last) < len)
        && values.iter().all(|&value| value != 0.0)
}

/// The sign in an entry.
fn sign(value: f32) -> u16 {
    if value.is_sign_negative() {
        NEGATIVE
    } else {
        0
    }
}

/// Place of the first of the largest numbers, which are positive.
fn first_largest(numbers: &[f32]) -> Option<usize> {
    // As signed integers: that comparison is one instruction on every processor.
    let bits = |number: &f32| number.to_bits() as i32;
    let largest = numbers
        .iter()
        .fold(0, |largest, number| largest.max(bits(number)));
    numbers.iter().position(|number| bits(number) == largest)
}

/// A frame that grows tile by tile.
struct Builder {
    frame: Frame,
    dense: Vec<u8>,
    /// Of the entries of a tile besides its peak.
    others: Vec<f32>,
    other_steps: Vec<Step>,
    /// Of all entries of a tile.
    codes: Vec<Option<u16>>,
}

impl Builder {
    fn new(tiles: &[Tile], codec: Codec) -> Self {
        let (mut entries, mut dense) = (0, 0);
        for tile in tiles {
            match codec.for_tile(tile) {
                TileCode::Sparse { entries_max, .. } => entries += usize::from(entries_max),
                TileCode::Dense(format) => dense += format.tile_bytes(tile.len()),
            }
        }
        Self {
            frame: Frame {
                codec,
                elements: 0,
                tiles: Vec::with_capacity(tiles.len()),
                entries: Vec::with_capacity(entries),
                dense: Bytes::new(),
            },
            dense: Vec::with_capacity(dense),
            others: Vec::new(),
            other_steps: Vec::new(),
            codes: Vec::new(),
        }
    }

    fn push(&mut self, tile: &Tile, content: Content) {
        self.frame.elements += tile.len();
        self.frame.tiles.push(FrameTile {
            // A tile has at most 4096 elements.
            len: tile.len() as u16,
            content,
        });
    }

    /// `values`: of all elements, in range.
    fn dense(&mut self, tile: &Tile, values: &[f32], format: DenseFormat) {
        dense::encode(values, format, &mut self.dense);
        self.push(tile, Content::Dense);
    }

    /// `values`: at the chosen `indices`, in range, none of them zero.
    fn sparse(
        &mut self,
        tile: &Tile,
        indices: &[u16],
        values: &[f32],
        entries_max: u16,
        value_bits: ValueBits,
    ) {
        self.others.clear();
        self.others.extend(values.iter().map(|value| value.abs()));
        let (first, peak) = match first_largest(&self.others) {
            Some(first) => (first, grid::nearest(self.others.remove(first))),
            None => (0, 0),
        };
        let Levels {
            low,
            high,
            high_from,
        } = match value_bits {
            ValueBits::Four => {
                let content = self.on_ladder(indices, values, first, peak, entries_max);
                return self.push(tile, Content::Sparse(content));
            }
            ValueBits::One | ValueBits::Two if self.others.is_empty() => Levels::NONE,
            ValueBits::One => Levels::one(&self.others),
            ValueBits::Two => Levels::two(&mut self.others),
        };
        let is_high = |value: &f32| value.abs() >= high_from;
        let place = if peak == high {
            values.iter().position(is_high).unwrap_or(first)
        } else {
            first
        };
        let entries = &mut self.frame.entries;
        let start = entries.len();
        for (number, (&index, value)) in indices.iter().zip(values).enumerate() {
            let (step, group) = if number == place {
                (peak, HIGH | PEAK)
            } else if is_high(value) {
                (high, HIGH)
            } else {
                (low, 0)
            };
            if step != 0 {
                entries.push(index | sign(*value) | group);
            }
        }
        // At most `entries_max`.
        let count = (entries.len() - start) as u16;
        self.push(
            tile,
            Content::Sparse(SparseTile {
                low,
                high,
                peak,
                count,
                spacing: 0,
                short: count != 0 && count < entries_max,
            }),
        );
    }

    /// Pushes the entries of a tile with 4 value bits. `first`: the place of the first of the largest magnitudes, at the
    /// step `peak`; `others` has those of the other elements.
    fn on_ladder(
        &mut self,
        indices: &[u16],
        values: &[f32],
        first: usize,
        peak: Step,
        entries_max: u16,
    ) -> SparseTile {
        if peak == 0 {
            return SparseTile::EMPTY;
        }
        let steps = &mut self.other_steps;
        steps.clear();
        steps.extend(
            self.others
                .iter()
                .map(|&magnitude| grid::nearest(magnitude)),
        );
        let ladder = Ladder::of(steps, peak);
        self.codes.clear();
        self.codes
            .extend(steps.iter().map(|&step| ladder.code(step)));
        let used = self
            .codes
            .iter()
            .flatten()
            .fold(0, |used, code| used | 1 << code);
        let spacing = if used == 0 {
            0
        } else {
            ladder.spacing_of(used)
        };

        self.codes.insert(first, Some(0));
        // Where the high level is at the step of the peak, the first entry there is the peak.
        let is_high = |code: &Option<u16>| *code == Some(0);
        let place = if ladder.high == peak {
            self.codes.iter().position(is_high).unwrap_or(first)
        } else {
            first
        };
        let entries = &mut self.frame.entries;
        let start = entries.len();
        for (number, ((&index, value), code)) in
            indices.iter().zip(values).zip(&self.codes).enumerate()
        {
            let code = if number == place {
                Some(PEAK_CODE)
            } else {
                code.map(|code| code * ladder.spacing / spacing)
            };
            if let Some(code) = code {
                entries.push(index | sign(*value) | code << CODE_SHIFT);
            }
        }
        // At most `entries_max`.
        let count = (entries.len() - start) as u16;
        SparseTile {
            low: 0,
            high: ladder.high,
            peak,
            count,
            // At most 32.
            spacing: spacing as u8,
            short: count < entries_max,
        }
    }

    fn finish(self) -> Frame {
        Frame {
            dense: Bytes::from(self.dense),
            ..self.frame
        }
    }
}
