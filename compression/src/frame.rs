//! The frame: the encoded bytes of a shard of one update. This page is its specification.
//!
//! Numbers are little endian. Bit streams are filled from the least significant bit of each byte
//! and padded with zero bits to a byte border. Five parts follow each other without gaps, and
//! nothing follows them:
//!
//! **Header**, 14 bytes.
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 4 | magic | `GMFR` |
//! | 4 | 1 | version | 2 |
//! | 5 | 1 | codec | 1 sparse, 2 dense f32, 3 dense bf16, 4 dense int8, 5 dense int4 |
//! | 6 | 1 | value bits | 1, 2 or 4 in a sparse frame, else 0 |
//! | 7 | 1 | index code | 0..=11 Rice r, 12 packed; by the rule "index code"; 0 in a dense frame |
//! | 8 | 2 | k | 1..=4096 in a sparse frame, else 0 |
//! | 10 | 4 | tiles | number of tiles |
//!
//! Rule "index code": 12 when 12 bits per index are no more, for all indices of the frame together
//! and before padding, than what the shortest Rice code takes; else the r of the shortest Rice
//! code, of equal ones the smallest.
//!
//! **Levels**, a bit stream, in a sparse frame only. Levels and peaks are numbers of the grid (rule "grid" of
//! [`crate::codec`]), in 1..=4513. A number n is written short, if it is at most 63, as `n >> 4` zero bits, a one bit and
//! the low 4 bits of n; else long, as four zero bits and then 13 bits that are n unless something else is said. For each
//! sparse tile, in order:
//! - its level: the high level, or the peak in a tile of one entry. The number is what it adds to the level of the last
//!   tile before that has entries, or to 0 in the first one: 2 d for d that is not negative, else -2 d - 1. The 13 bits
//!   of a long one are the level itself, or one of two others. If they are 0, the tile has no entries, and nothing
//!   follows of it. If they are 8191, the tile has at least one entry, but fewer than k' (rule "selection"): the number
//!   of entries, 12 bits, in `1..k'`, follows, and then its level. Else the tile has k' entries;
//! - with two or more entries and 1 or 2 value bits, the place of the peak among them, counted from 0, in as many bits as
//!   their number less 1 has;
//! - with two or more entries, what the peak adds to the high level;
//! - with two or more entries and 2 value bits, what the high level adds to the low one, at most 512, or 0 when all
//!   entries besides the peak are high;
//! - with two or more entries and 4 value bits, half of the spacing, less 1, in 4 bits: level j of seven, counted from 0, is
//!   the number of the high level less j times the spacing. The spacing is the smallest that has the levels which entries
//!   stand for.
//!
//! **Dense values**. For each dense tile, in order, its elements: bf16 in a sparse frame, else in the
//! format of the codec, as [`mod@crate::dense`] lays them out. f32 and bf16: finite, at most 2^15 in
//! magnitude, zero without sign. int8 and int4: a block's scale is zero, and then all its integers
//! are, or normal, positive and at most 2^15 / Q rounded to bf16, and then the largest magnitude of
//! its integers is exactly Q.
//!
//! **Entry values**, a bit stream. For each entry of each sparse tile, by tile and then by index:
//! its sign (1 is negative); then, with 2 value bits, 1 for high or 0 for low. The peak counts as high. A tile
//! with a low level has an entry of each besides the peak. Where the peak adds nothing to the high level, it is the
//! first of the entries that are high. With 4 value bits, the sign is followed by a code of 3 bits: the j of its level, whose
//! number is at least 1; or 7 for the peak, which is one entry in each tile that has any. Of the others one or more have
//! code 0. Where the peak adds nothing to the high level, no entry before it has code 0.
//!
//! **Indices**, a bit stream. For each sparse tile, in order, the strictly ascending indices of its
//! entries inside the tile, each below the tile's length. Rice code: the gap g (the first index
//! itself, else the index less the one before less 1) as `g >> r` zero bits, a one bit and the low
//! r bits of g. Packed: 12 bits per index.
//!
//! A reader knows the tiles and the codec from the manifest. It refuses a frame that breaks any of
//! this, so that no two accepted frames stand for the same values, and the frame's hash names its
//! content.

mod quantise;
mod read;
mod tile_levels;
mod write;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

pub use self::quantise::Selection;
pub(crate) use self::tile_levels::bits_max as level_bits_max;
pub(crate) use self::write::encode_dense;
use crate::codec::{Codec, DenseFormat, VALUE_ABS_MAX, ValueBits};
use crate::dense;
use crate::grid::{self, Step};
use crate::index::IndexCode;
use crate::ladder::{Ladder, PEAK_CODE};
use crate::layout::{TILE_ELEMENTS, TILES_MAX};

pub(crate) const HEADER_BYTES: usize = 14;
pub(crate) const MAGIC: [u8; 4] = *b"GMFR";
pub(crate) const VERSION: u8 = 2;

/// Why values cannot be encoded: our own training has gone wrong, or our caller.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EncodeError {
    #[error("selections for {found} tiles, not {expected}")]
    SelectionCount { found: usize, expected: usize },
    #[error(
        "selection of tile {tile} is not what its mode asks for: ascending indices inside it, as many values other than \
         zero, no more than it may have entries; or all its elements"
    )]
    Selection { tile: usize },
    #[error("{values} values for tiles of {expected} elements")]
    LengthMismatch { values: usize, expected: usize },
    #[error("{tiles} tiles exceed the {TILES_MAX} of a frame")]
    TooManyTiles { tiles: usize },
    #[error("element {element} is {value}, not a number up to {VALUE_ABS_MAX} in magnitude")]
    ValueOutOfRange { element: usize, value: f32 },
}

/// A part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Header,
    Levels,
    DenseValues,
    EntryValues,
    Indices,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Levels => "levels",
            Self::DenseValues => "dense values",
            Self::EntryValues => "entry values",
            Self::Indices => "indices",
        })
    }
}

/// Why bytes are not the frame of the expected tiles and codec. Whoever made them is at fault;
/// asking another holder of the same hash would bring the same bytes.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DecodeError {
    #[error("frame ends inside the {section}")]
    Truncated { section: Section },
    #[error("{bytes} bytes follow the frame")]
    Trailing { bytes: usize },
    #[error("frame starts with {found:02x?}, not with GMFR")]
    Magic { found: [u8; 4] },
    #[error("frame has version {found}, not {VERSION}")]
    Version { found: u8 },
    #[error(
        "frame has codec {codec}, {value_bits} value bits and k {k}, unlike the run's {expected:?}"
    )]
    CodecMismatch {
        codec: u8,
        value_bits: u8,
        k: u16,
        expected: Codec,
    },
    #[error("frame has {found} tiles, not {expected}")]
    TileCountMismatch { found: u32, expected: usize },
    #[error("{found} names no index code of this codec")]
    IndexCode { found: u8 },
    #[error("indices take the code {found:?} where {canonical:?} is prescribed")]
    IndexCodeNotCanonical {
        found: IndexCode,
        canonical: IndexCode,
    },
    #[error("tile {tile} has a level or peak at step {found} of the grid, not in {min}..={max}")]
    Level {
        tile: usize,
        found: i32,
        min: i32,
        max: i32,
    },
    #[error("tile {tile} has the number {number} in its long form, which is for larger ones")]
    LongForm { tile: usize, number: u32 },
    #[error("tile {tile} claims {found} entries, not 1..{entries_max}")]
    EntryCount {
        tile: usize,
        found: u16,
        entries_max: u16,
    },
    #[error("entries of tile {tile} do not use the levels that it has")]
    UnusedLevel { tile: usize },
    #[error("levels of tile {tile} are {found} steps apart where {canonical} is prescribed")]
    Spacing {
        tile: usize,
        found: u16,
        canonical: u16,
    },
    #[error("{found} entries of tile {tile} are marked as its peak, not one")]
    PeakCount { tile: usize, found: usize },
    #[error("entry {place} of the {entries} of tile {tile} cannot be its peak")]
    Peak {
        tile: usize,
        place: u32,
        entries: u16,
    },
    #[error(
        "dense element {element} is {value}, not a number up to {VALUE_ABS_MAX} in magnitude, or a negative zero"
    )]
    DenseValue { element: usize, value: f32 },
    #[error(
        "block from dense element {element} on has the scale {scale:#06x}, which is none or does not suit its integers"
    )]
    DenseBlock { element: usize, scale: u16 },
    #[error("index {index} of tile {tile} lies outside its {len} elements")]
    IndexOutOfTile { tile: usize, index: u32, len: usize },
    #[error("index {index} of tile {tile} is not above the one before")]
    IndexOrder { tile: usize, index: u32 },
    #[error("padding of the {section} is not zero")]
    Padding { section: Section },
}

/// A decoded frame: the values of a shard, zeros left out. 2 bytes per entry, 12 per tile, and the dense elements as
/// bytes: those of the frame itself where it came in [`Bytes`].
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    codec: Codec,
    elements: usize,
    tiles: Vec<FrameTile>,
    /// Of all sparse tiles, by tile and then by index.
    entries: Vec<u16>,
    /// Of all dense tiles, in order.
    dense: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct FrameTile {
    len: u16,
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Content {
    Sparse(SparseTile),
    Dense,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct SparseTile {
    /// Of the entries that are not high; zero when there are none.
    low: Step,
    /// Of the high entries besides the peak; zero when there are none.
    high: Step,
    /// Zero in a tile without entries.
    peak: Step,
    count: u16,
    /// Steps from one of seven levels, of which `high` is the first, to the next; zero when there are none.
    spacing: u8,
    /// Whether it has entries, but fewer than k'.
    short: bool,
}

impl SparseTile {
    const EMPTY: Self = Self {
        low: 0,
        high: 0,
        peak: 0,
        count: 0,
        spacing: 0,
        short: false,
    };

    /// See [`TileValues`].
    fn values(&self, value_bits: ValueBits) -> TileValues {
        let mut values = [0.0; 16];
        let mut set = |place: u16, step| {
            let value = grid::value(step);
            values[usize::from(place)..][..2].copy_from_slice(&[value, -value]);
        };
        match value_bits {
            ValueBits::One | ValueBits::Two => {
                set(0, self.low);
                set(HIGH >> VALUE_SHIFT, self.high);
                set((HIGH | PEAK) >> VALUE_SHIFT, self.peak);
            }
            ValueBits::Four => {
                let ladder = self.ladder();
                for code in 0..PEAK_CODE {
                    set(code << 1, ladder.level(code));
                }
                set(PEAK_CODE << 1, self.peak);
            }
        }
        values
    }

    fn ladder(&self) -> Ladder {
        Ladder {
            high: self.high,
            spacing: self.spacing.into(),
        }
    }
}

// An entry: its index in the low 12 bits, then its sign. With 1 or 2 value bits then its group, and whether it is the peak,
// which is high; sign and group in this order are what two value bits are on the wire. With 4 value bits then its code; sign
// and code in this order are what is on the wire. The bits above the index are its place in a table of the values of a tile.

const INDEX: u16 = TILE_ELEMENTS as u16 - 1;
const VALUE_SHIFT: u32 = TILE_ELEMENTS.trailing_zeros();
const NEGATIVE: u16 = 1 << VALUE_SHIFT;
const HIGH: u16 = 2 << VALUE_SHIFT;
const PEAK: u16 = 4 << VALUE_SHIFT;
const CODE_SHIFT: u32 = VALUE_SHIFT + 1;

/// What entries stand for, by all of their bits above the index.
type TileValues = [f32; 16];

/// The content of one tile.
pub(crate) enum Part<'a> {
    Sparse {
        values: TileValues,
        entries: &'a [u16],
    },
    Dense(&'a [u8]),
}

impl Frame {
    /// Elements of the shard, zeros counted.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.elements
    }

    /// Entries of all sparse tiles, none of them zero.
    #[must_use]
    pub const fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Writes every element, zeros included, to `out`.
    ///
    /// # Panics
    /// Unless `out` has [`Frame::elements`] elements.
    pub fn dequantise_into(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.elements, "elements of the frame");
        let format = self.dense_format();
        for (range, part) in self.parts() {
            let out = &mut out[range];
            match part {
                Part::Sparse { values, entries } => {
                    out.fill(0.0);
                    add_entries(out, entries, values);
                }
                Part::Dense(bytes) => {
                    dense::for_each(bytes, format, out, |out, value| *out = value)
                }
            }
        }
    }

    /// `out[i] += factor * self[i]`, the product rounded before the sum, for the elements of dense
    /// tiles and the entries of sparse ones; nothing is added elsewhere.
    ///
    /// # Panics
    /// Unless `out` has [`Frame::elements`] elements.
    pub(crate) fn add_to(&self, out: &mut [f32], factor: f32) {
        assert_eq!(out.len(), self.elements, "elements of the frame");
        for (range, part) in self.parts() {
            self.add_part(&part, &mut out[range], factor);
        }
    }

    /// [`Frame::add_to`] for one of [`Frame::parts`].
    pub(crate) fn add_part(&self, part: &Part<'_>, out: &mut [f32], factor: f32) {
        match part {
            Part::Sparse { values, entries } => {
                add_entries(out, entries, values.map(|value| factor * value));
            }
            Part::Dense(bytes) => {
                dense::for_each(bytes, self.dense_format(), out, |out, value| {
                    *out += factor * value;
                });
            }
        }
    }

    /// Sums of squares of the tiles, in order, in f64. A sparse tile: ((entries at the low level) * low^2 + (entries at
    /// the high level) * high^2) + peak^2, the peak not counted among the entries, or with 4 value bits the sum of
    /// (entries at the level) * level^2 from the highest level down, starting from zero, and peak^2 last; a dense tile: sum
    /// in index order.
    pub(crate) fn squares(&self) -> impl Iterator<Item = f64> + '_ {
        self.squares_with(&self.dense)
    }

    /// [`Frame::squares`] of a frame whose dense elements lie elsewhere.
    pub(crate) fn squares_with(&self, dense: &[u8]) -> impl Iterator<Item = f64> + use<> {
        /// Additions that a processor has under way at a time.
        const TOGETHER: usize = 4;
        let format = self.dense_format();
        let mut squares = vec![0.0; self.tiles.len()];
        let mut scratch = Vec::new();
        let mut waiting: Vec<(usize, &[u8])> = Vec::with_capacity(TOGETHER);
        for (number, (range, part)) in self.parts_with(dense).enumerate() {
            match part {
                Part::Sparse { values, entries } => {
                    squares[number] = self.sparse_squares(&values, entries);
                }
                Part::Dense(bytes) if range.len() == TILE_ELEMENTS => waiting.push((number, bytes)),
                Part::Dense(bytes) => {
                    [squares[number]] = dense::squares([bytes], format, range.len(), &mut scratch);
                }
            }
            if let Some(&together) = waiting.first_chunk::<TOGETHER>() {
                let tiles = together.map(|(_, bytes)| bytes);
                let sums = dense::squares(tiles, format, TILE_ELEMENTS, &mut scratch);
                for ((number, _), sum) in together.into_iter().zip(sums) {
                    squares[number] = sum;
                }
                waiting.clear();
            }
        }
        for (number, bytes) in waiting {
            [squares[number]] = dense::squares([bytes], format, TILE_ELEMENTS, &mut scratch);
        }
        squares.into_iter()
    }

    /// [`Frame::squares`] of one sparse tile.
    fn sparse_squares(&self, values: &TileValues, entries: &[u16]) -> f64 {
        let square = |bits: u16| {
            let value = f64::from(values[usize::from(bits >> VALUE_SHIFT)]);
            value * value
        };
        match self.value_bits() {
            ValueBits::One | ValueBits::Two => {
                let of_group = |group| {
                    let is_member = |entry: &&u16| *entry & (HIGH | PEAK) == group;
                    entries.iter().filter(is_member).count() as f64
                };
                of_group(0) * square(0) + of_group(HIGH) * square(HIGH) + square(HIGH | PEAK)
            }
            ValueBits::Four => {
                let mut counts = [0_u32; 8];
                for entry in entries {
                    counts[usize::from(entry >> CODE_SHIFT)] += 1;
                }
                let of_code =
                    |(count, code): (u32, u16)| f64::from(count) * square(code << CODE_SHIFT);
                counts
                    .into_iter()
                    .zip(0..)
                    .map(of_code)
                    .fold(0.0, |sum, next| sum + next)
            }
        }
    }

    /// Element range and content of each tile, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Range<usize>, Part<'_>)> {
        self.parts_with(&self.dense)
    }

    /// [`Frame::parts`] of a frame whose dense elements lie elsewhere.
    pub(crate) fn parts_with<'a>(
        &'a self,
        mut dense: &'a [u8],
    ) -> impl Iterator<Item = (Range<usize>, Part<'a>)> {
        let mut start = 0;
        let mut entries = self.entries.as_slice();
        let format = self.dense_format();
        let value_bits = self.value_bits();
        self.tiles.iter().map(move |tile| {
            let len = usize::from(tile.len);
            let range = start..start + len;
            start = range.end;
            let part = match tile.content {
                Content::Sparse(tile) => {
                    let (own, rest) = entries.split_at(usize::from(tile.count));
                    entries = rest;
                    Part::Sparse {
                        values: tile.values(value_bits),
                        entries: own,
                    }
                }
                Content::Dense => {
                    let (own, rest) = dense.split_at(format.tile_bytes(len));
                    dense = rest;
                    Part::Dense(own)
                }
            };
            (range, part)
        })
    }

    /// Of no meaning in a dense frame, which has no entries.
    const fn value_bits(&self) -> ValueBits {
        match self.codec {
            Codec::Sparse { value_bits, .. } => value_bits,
            Codec::Dense(_) => ValueBits::One,
        }
    }

    const fn dense_format(&self) -> DenseFormat {
        match self.codec {
            Codec::Sparse { .. } => DenseFormat::Bf16,
            Codec::Dense(format) => format,
        }
    }
}

/// Adds to each entry's place in the tile `out` the one of `values` that it stands for.
#[inline]
fn add_entries(out: &mut [f32], entries: &[u16], values: TileValues) {
    let value = |entry: u16| values[usize::from(entry >> VALUE_SHIFT)];
    let index = |entry: u16| usize::from(entry & INDEX);
    // A length known to the compiler spares the check of every index.
    if let Some(out) = out.first_chunk_mut::<TILE_ELEMENTS>() {
        for &entry in entries {
            out[index(entry)] += value(entry);
        }
    } else {
        for &entry in entries {
            out[index(entry)] += value(entry);
        }
    }
}
