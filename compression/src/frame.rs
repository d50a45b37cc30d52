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
//! | 4 | 1 | version | 1 |
//! | 5 | 1 | codec | 1 sparse, 2 dense f32, 3 dense bf16 |
//! | 6 | 1 | value bits | 1 or 2 in a sparse frame, else 0 |
//! | 7 | 1 | index code | 0..=11 Rice r, 12 packed; by the rule "index code"; 0 in a dense frame |
//! | 8 | 2 | k | 1..=4096 in a sparse frame, else 0 |
//! | 10 | 4 | tiles | number of tiles |
//!
//! Rule "index code": 12 when 12 bits per index are no more, for all indices of the frame together
//! and before padding, than what the shortest Rice code takes; else the r of the shortest Rice
//! code, of equal ones the smallest.
//!
//! **Levels**. For each sparse tile, in order:
//! - with 2 value bits, the low level, f16: zero when all entries of the tile are high, else
//!   positive and below the high level;
//! - the high level, f16, at most 2^15: zero when the tile has no entries. Its sign bit is not a
//!   sign: it is set when the tile has at least one entry, but fewer than k' (rule "selection" of
//!   [`crate::codec`]);
//! - if that bit is set, the number of entries, 2 bytes, in `1..k'`. Else the tile has k' entries,
//!   or none when the high level is zero, and then the low level is zero as well.
//!
//! **Dense values**. For each dense tile, in order, its elements: bf16 in a sparse and in a dense
//! bf16 frame, f32 in a dense f32 frame. Finite, at most 2^15 in magnitude, zero without sign.
//!
//! **Entry values**, a bit stream. For each entry of each sparse tile, by tile and then by index:
//! its sign (1 is negative); then, with 2 value bits, 1 for high or 0 for low. A tile whose low
//! level is not zero has an entry of each.
//!
//! **Indices**, a bit stream. For each sparse tile, in order, the strictly ascending indices of its
//! entries inside the tile, each below the tile's length. Rice code: the gap g (the first index
//! itself, else the index less the one before less 1) as `g >> r` zero bits, a one bit and the low
//! r bits of g. Packed: 12 bits per index.
//!
//! A reader knows the tiles and the codec from the manifest. It refuses a frame that breaks any of
//! this, so that no two accepted frames stand for the same values, and the frame's hash names its
//! content.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use thiserror::Error;

use crate::bits::{BitReader, BitWriter};
use crate::codec::{Codec, DenseFormat, EncodeStats, TileCode, VALUE_ABS_MAX, ValueBits};
use crate::index::{IndexCode, IndexCost};
use crate::layout::{TILES_MAX, Tile};
use crate::levels::Levels;
use crate::select::{Selector, magnitude_bits};

pub(crate) const HEADER_BYTES: usize = 14;
pub(crate) const MAGIC: [u8; 4] = *b"GMFR";
pub(crate) const VERSION: u8 = 1;

/// Sign bit of the high level: the number of entries follows.
const SHORT_TILE: u16 = 0x8000;

/// Why values cannot be encoded: our own training has gone wrong, or our caller.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EncodeError {
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
    #[error("tile {tile} has the levels {low:#06x} and {high:#06x}")]
    Levels { tile: usize, low: u16, high: u16 },
    #[error("tile {tile} claims {found} entries, not 1..{entries_max}")]
    EntryCount {
        tile: usize,
        found: u16,
        entries_max: u16,
    },
    #[error("entries of tile {tile} do not use the levels that it has")]
    UnusedLevel { tile: usize },
    #[error(
        "dense element {element} is {value}, not a number up to {VALUE_ABS_MAX} in magnitude, or a negative zero"
    )]
    DenseValue { element: usize, value: f32 },
    #[error("index {index} of tile {tile} lies outside its {len} elements")]
    IndexOutOfTile { tile: usize, index: u32, len: usize },
    #[error("index {index} of tile {tile} is not above the one before")]
    IndexOrder { tile: usize, index: u32 },
    #[error("padding of the {section} is not zero")]
    Padding { section: Section },
}

/// A decoded frame: the values of a shard, zeros left out. 2 bytes per entry, 4 per dense element,
/// 8 per tile.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    codec: Codec,
    elements: usize,
    tiles: Vec<FrameTile>,
    /// Of all sparse tiles, by tile and then by index.
    entries: Vec<Entry>,
    /// Of all dense tiles, in order.
    dense: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct FrameTile {
    len: u16,
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Content {
    Sparse {
        low: f16,
        high: f16,
        count: u16,
        short: bool,
    },
    Dense,
}

/// Index in the low 12 bits, then the sign, then the group.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry(u16);

impl Entry {
    const NEGATIVE: u16 = 1 << 12;
    const HIGH: u16 = 1 << 13;

    const fn new(index: u16, negative: bool, high: bool) -> Self {
        Self(index | (negative as u16) << 12 | (high as u16) << 13)
    }

    const fn index(self) -> usize {
        (self.0 & (Self::NEGATIVE - 1)) as usize
    }

    const fn is_negative(self) -> bool {
        self.0 & Self::NEGATIVE != 0
    }

    const fn is_high(self) -> bool {
        self.0 & Self::HIGH != 0
    }

    /// Its place in a table of the four values of a tile.
    const fn value_index(self) -> usize {
        (self.0 >> 12 & 3) as usize
    }
}

/// The content of one tile.
enum Part<'a> {
    Sparse {
        /// By [`Entry::value_index`].
        values: [f32; 4],
        entries: &'a [Entry],
    },
    Dense(&'a [f32]),
}

impl Frame {
    /// What the frame of `values`, the elements of `tiles` one after the other, decodes to.
    ///
    /// # Errors
    /// [`EncodeError`]: the values are not as many as the tiles hold, or out of range.
    pub fn quantise(values: &[f32], tiles: &[Tile], codec: Codec) -> Result<Self, EncodeError> {
        let expected = tiles.iter().map(Tile::len).sum();
        if values.len() != expected {
            return Err(EncodeError::LengthMismatch {
                values: values.len(),
                expected,
            });
        }
        if tiles.len() > TILES_MAX {
            return Err(EncodeError::TooManyTiles { tiles: tiles.len() });
        }
        if let Some(element) = first_out_of_range(values) {
            return Err(EncodeError::ValueOutOfRange {
                element,
                value: values[element],
            });
        }

        let mut frame = Self {
            codec,
            elements: values.len(),
            tiles: Vec::new(),
            entries: Vec::new(),
            dense: Vec::new(),
        };
        frame.tiles.reserve_exact(tiles.len());
        let mut quantiser = Quantiser {
            selector: Selector::new(),
            chosen: Vec::new(),
            magnitudes: Vec::new(),
        };
        let mut rest = values;
        for tile in tiles {
            let (values, after) = rest.split_at(tile.len());
            rest = after;
            let content = match codec.for_tile(tile) {
                TileCode::Sparse {
                    entries_max,
                    value_bits,
                } => quantiser.quantise(values, entries_max, value_bits, &mut frame.entries),
                TileCode::Dense(format) => {
                    frame
                        .dense
                        .extend(values.iter().map(|&value| round(value, format)));
                    Content::Dense
                }
            };
            // A tile has at most 4096 elements.
            frame.tiles.push(FrameTile {
                len: tile.len() as u16,
                content,
            });
        }
        Ok(frame)
    }

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
        out.fill(0.0);
        self.add_to(out, 1.0);
    }

    /// `out[i] += factor * self[i]`, the product rounded before the sum, for the elements of dense
    /// tiles and the entries of sparse ones; nothing is added elsewhere.
    ///
    /// # Panics
    /// Unless `out` has [`Frame::elements`] elements.
    pub(crate) fn add_to(&self, out: &mut [f32], factor: f32) {
        assert_eq!(out.len(), self.elements, "elements of the frame");
        for (range, part) in self.parts() {
            let out = &mut out[range];
            match part {
                Part::Sparse { values, entries } => {
                    let products = values.map(|value| factor * value);
                    for entry in entries {
                        out[entry.index()] += products[entry.value_index()];
                    }
                }
                Part::Dense(values) => {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out += factor * value;
                    }
                }
            }
        }
    }

    /// Sums of squares of the tiles, in order. A sparse tile: (entries at the low level) * low^2 +
    /// (entries at the high level) * high^2, which f64 holds exactly but for the sum of the
    /// two; a dense tile: in eight lanes (rule "norm" of [`crate::aggregate`]).
    pub(crate) fn squares(&self) -> impl Iterator<Item = f64> + '_ {
        self.parts().map(|(_, part)| match part {
            Part::Sparse {
                values: [low, _, high, _],
                entries,
            } => {
                let high_count = entries.iter().filter(|entry| entry.is_high()).count();
                let low_count = entries.len() - high_count;
                let (low, high) = (f64::from(low), f64::from(high));
                low_count as f64 * (low * low) + high_count as f64 * (high * high)
            }
            Part::Dense(values) => dense_squares(values),
        })
    }

    /// Element range and content of each tile, in order.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, Part<'_>)> {
        let mut start = 0;
        let mut entries = self.entries.as_slice();
        let mut dense = self.dense.as_slice();
        self.tiles.iter().map(move |tile| {
            let len = usize::from(tile.len);
            let range = start..start + len;
            start = range.end;
            let part = match tile.content {
                Content::Sparse {
                    low, high, count, ..
                } => {
                    let (own, rest) = entries.split_at(usize::from(count));
                    entries = rest;
                    let (low, high) = (low.to_f32_const(), high.to_f32_const());
                    Part::Sparse {
                        values: [low, -low, high, -high],
                        entries: own,
                    }
                }
                Content::Dense => {
                    let (own, rest) = dense.split_at(len);
                    dense = rest;
                    Part::Dense(own)
                }
            };
            (range, part)
        })
    }
}

/// Sum of squares of a dense tile (rule "norm" of [`crate::aggregate`]).
fn dense_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let (rows, rest) = values.as_chunks::<8>();
    let square = |value: f32| f64::from(value) * f64::from(value);
    for row in rows {
        for (lane, &value) in lanes.iter_mut().zip(row) {
            *lane += square(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += square(value);
    }
    lanes.iter().fold(0.0, |sum, lane| sum + lane)
}

/// First value that is NaN or exceeds [`VALUE_ABS_MAX`].
pub(crate) fn first_out_of_range(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1024;
    let out_of_range = |value: &f32| magnitude_bits(*value) > VALUE_ABS_MAX.to_bits();
    // No early exit inside a chunk, so that it vectorises.
    let chunk = values.chunks(CHUNK).position(|chunk| {
        chunk
            .iter()
            .fold(false, |any, value| any | out_of_range(value))
    })?;
    values[chunk * CHUNK..]
        .iter()
        .position(out_of_range)
        .map(|offset| chunk * CHUNK + offset)
}

/// Rounds a finite value to nearest even in `format`; negative zero becomes zero.
fn round(value: f32, format: DenseFormat) -> f32 {
    let rounded = match format {
        DenseFormat::F32 => value,
        DenseFormat::Bf16 => {
            // Half a unit of the upper half, less one bit unless that half is odd: ties go to even.
            let bits = value.to_bits();
            f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
        }
    };
    rounded + 0.0
}

/// Selection and levels of sparse tiles, with buffers reused from tile to tile.
struct Quantiser {
    selector: Selector,
    chosen: Vec<u16>,
    magnitudes: Vec<f32>,
}

impl Quantiser {
    /// Appends the entries of the tile `values` to `out`.
    fn quantise(
        &mut self,
        values: &[f32],
        entries_max: u16,
        value_bits: ValueBits,
        out: &mut Vec<Entry>,
    ) -> Content {
        self.chosen.clear();
        self.selector
            .top_k(values, usize::from(entries_max), &mut self.chosen);
        self.magnitudes.clear();
        self.magnitudes.extend(
            self.chosen
                .iter()
                .map(|&index| values[usize::from(index)].abs()),
        );
        let Levels {
            low,
            high,
            high_from,
        } = match value_bits {
            _ if self.chosen.is_empty() => Levels::NONE,
            ValueBits::One => Levels::one(&self.magnitudes),
            ValueBits::Two => Levels::two(&mut self.magnitudes),
        };

        let before = out.len();
        for &index in &self.chosen {
            let value = values[usize::from(index)];
            let is_high = value.abs() >= high_from;
            let level = if is_high { high } else { low };
            if level != f16::ZERO {
                out.push(Entry::new(index, value.is_sign_negative(), is_high));
            }
        }
        // At most `entries_max`.
        let count = (out.len() - before) as u16;
        Content::Sparse {
            low,
            high,
            count,
            short: count != 0 && count < entries_max,
        }
    }
}

// Writing.

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn write(&self, out: &mut Vec<u8>) -> EncodeStats {
        let start = out.len();
        let (index_code, index_bits) = self.index_cost().cheapest();
        let header = Header::of(self.codec);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, header.codec, header.value_bits]);
        out.push(if header.value_bits == 0 {
            0
        } else {
            index_code.to_byte()
        });
        out.extend_from_slice(&header.k.to_le_bytes());
        // At most TILES_MAX.
        out.extend_from_slice(&(self.tiles.len() as u32).to_le_bytes());

        self.write_levels(out);
        self.write_dense(out);
        self.write_entry_values(out);
        self.write_indices(index_code, out);
        EncodeStats {
            frame_bytes: out.len() - start,
            entries: self.entries.len(),
            index_bits,
            index_code,
        }
    }

    fn index_cost(&self) -> IndexCost {
        let mut cost = IndexCost::default();
        self.for_each_index(|index, previous| cost.count(index, previous));
        cost
    }

    fn write_levels(&self, out: &mut Vec<u8>) {
        for tile in &self.tiles {
            let Content::Sparse {
                low,
                high,
                count,
                short,
            } = tile.content
            else {
                continue;
            };
            if self.has_two_levels() {
                out.extend_from_slice(&low.to_le_bytes());
            }
            let flag = if short { SHORT_TILE } else { 0 };
            out.extend_from_slice(&(high.to_bits() | flag).to_le_bytes());
            if short {
                out.extend_from_slice(&count.to_le_bytes());
            }
        }
    }

    fn write_dense(&self, out: &mut Vec<u8>) {
        let format = self.dense_format();
        let start = out.len();
        out.resize(start + self.dense.len() * format.element_bytes(), 0);
        match format {
            DenseFormat::F32 => {
                let (elements, _) = out[start..].as_chunks_mut();
                for (element, value) in elements.iter_mut().zip(&self.dense) {
                    *element = value.to_le_bytes();
                }
            }
            DenseFormat::Bf16 => {
                let (elements, _) = out[start..].as_chunks_mut();
                for (element, value) in elements.iter_mut().zip(&self.dense) {
                    // Exact: the value is one of bf16, the upper half of an f32.
                    let [_, _, low, high] = value.to_le_bytes();
                    *element = [low, high];
                }
            }
        }
    }

    fn write_entry_values(&self, out: &mut Vec<u8>) {
        let mut writer = BitWriter::new(out);
        for entry in &self.entries {
            writer.write(u32::from(entry.is_negative()), 1);
            if self.has_two_levels() {
                writer.write(u32::from(entry.is_high()), 1);
            }
        }
        writer.finish();
    }

    fn write_indices(&self, code: IndexCode, out: &mut Vec<u8>) {
        let mut writer = BitWriter::new(out);
        self.for_each_index(|index, previous| code.write(index, previous, &mut writer));
        writer.finish();
    }

    /// Calls `visit` with each entry's index and the one before it in the same tile.
    fn for_each_index(&self, mut visit: impl FnMut(u32, Option<u32>)) {
        for (_, part) in self.parts() {
            let Part::Sparse { entries, .. } = part else {
                continue;
            };
            let mut previous = None;
            for entry in entries {
                // Below 4096.
                let index = entry.index() as u32;
                visit(index, previous);
                previous = Some(index);
            }
        }
    }

    const fn has_two_levels(&self) -> bool {
        matches!(
            self.codec,
            Codec::Sparse {
                value_bits: ValueBits::Two,
                ..
            }
        )
    }

    const fn dense_format(&self) -> DenseFormat {
        match self.codec {
            Codec::Sparse { .. } => DenseFormat::Bf16,
            Codec::Dense(format) => format,
        }
    }
}

/// Header fields that the codec fixes.
#[derive(PartialEq)]
struct Header {
    codec: u8,
    value_bits: u8,
    k: u16,
}

impl Header {
    const fn of(codec: Codec) -> Self {
        match codec {
            Codec::Sparse { k, value_bits } => Self {
                codec: 1,
                value_bits: value_bits.bits() as u8,
                k: k.get(),
            },
            Codec::Dense(DenseFormat::F32) => Self {
                codec: 2,
                value_bits: 0,
                k: 0,
            },
            Codec::Dense(DenseFormat::Bf16) => Self {
                codec: 3,
                value_bits: 0,
                k: 0,
            },
        }
    }
}

// Reading.

impl Frame {
    /// See [`crate::codec::decode`].
    pub(crate) fn read(bytes: &[u8], tiles: &[Tile], codec: Codec) -> Result<Self, DecodeError> {
        let mut bytes = Bytes(bytes);
        let index_code = read_header(&mut bytes, tiles.len(), codec)?;
        let mut frame = Self {
            codec,
            elements: tiles.iter().map(Tile::len).sum(),
            tiles: Vec::with_capacity(tiles.len()),
            entries: Vec::new(),
            dense: Vec::new(),
        };
        frame.read_levels(&mut bytes, tiles)?;
        frame.read_dense(&mut bytes)?;
        let Some(index_code) = index_code else {
            return match bytes.0.len() {
                0 => Ok(frame),
                bytes => Err(DecodeError::Trailing { bytes }),
            };
        };

        frame.read_entry_values(&mut bytes)?;
        frame.read_indices(bytes, index_code)?;
        Ok(frame)
    }

    fn read_levels(&mut self, bytes: &mut Bytes<'_>, tiles: &[Tile]) -> Result<(), DecodeError> {
        let section = Section::Levels;
        for (number, tile) in tiles.iter().enumerate() {
            let content = match self.codec.for_tile(tile) {
                TileCode::Sparse {
                    entries_max,
                    value_bits,
                } => {
                    let low = match value_bits {
                        ValueBits::One => 0,
                        ValueBits::Two => bytes.u16(section)?,
                    };
                    let flagged = bytes.u16(section)?;
                    let high = flagged & !SHORT_TILE;
                    let short = flagged != high;
                    let is_valid = if high == 0 {
                        low == 0 && !short
                    } else {
                        low < high && high <= LEVEL_BITS_MAX
                    };
                    if !is_valid {
                        return Err(DecodeError::Levels {
                            tile: number,
                            low,
                            high: flagged,
                        });
                    }
                    let count = match (high, short) {
                        (0, _) => 0,
                        (_, false) => entries_max,
                        (_, true) => {
                            let found = bytes.u16(section)?;
                            if found == 0 || found >= entries_max {
                                return Err(DecodeError::EntryCount {
                                    tile: number,
                                    found,
                                    entries_max,
                                });
                            }
                            found
                        }
                    };
                    Content::Sparse {
                        low: f16::from_bits(low),
                        high: f16::from_bits(high),
                        count,
                        short,
                    }
                }
                TileCode::Dense(_) => Content::Dense,
            };
            // A tile has at most 4096 elements.
            self.tiles.push(FrameTile {
                len: tile.len() as u16,
                content,
            });
        }
        Ok(())
    }

    fn read_dense(&mut self, bytes: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let is_dense = |tile: &&FrameTile| matches!(tile.content, Content::Dense);
        let elements: usize = self
            .tiles
            .iter()
            .filter(is_dense)
            .map(|tile| usize::from(tile.len))
            .sum();
        let format = self.dense_format();
        // The layout bounds the elements far below overflow of this product.
        let encoded = bytes.take(elements * format.element_bytes(), Section::DenseValues)?;
        match format {
            DenseFormat::F32 => {
                let (values, _) = encoded.as_chunks();
                self.dense
                    .extend(values.iter().map(|&value| f32::from_le_bytes(value)));
            }
            DenseFormat::Bf16 => {
                let (values, _) = encoded.as_chunks();
                self.dense.extend(
                    values
                        .iter()
                        .map(|&value| bf16::from_le_bytes(value).to_f32_const()),
                );
            }
        }
        let negative_zero = || {
            self.dense
                .iter()
                .position(|value| value.to_bits() == (-0.0_f32).to_bits())
        };
        if let Some(element) = first_out_of_range(&self.dense).or_else(negative_zero) {
            return Err(DecodeError::DenseValue {
                element,
                value: self.dense[element],
            });
        }
        Ok(())
    }

    /// Fills `entries` with signs and groups; the indices stay zero.
    fn read_entry_values(&mut self, bytes: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let section = Section::EntryValues;
        let has_two_levels = self.has_two_levels();
        let counts = self.tiles.iter().map(|tile| match tile.content {
            Content::Sparse { count, .. } => usize::from(count),
            Content::Dense => 0,
        });
        let entries: usize = counts.sum();
        let bits = entries * if has_two_levels { 2 } else { 1 };
        let mut reader = BitReader::new(bytes.take(bits.div_ceil(8), section)?);
        // The bytes were there: at most eight entries for each.
        self.entries.reserve_exact(entries);
        for (number, tile) in self.tiles.iter().enumerate() {
            let Content::Sparse { low, count, .. } = tile.content else {
                continue;
            };
            let mut high_count = 0;
            for _ in 0..count {
                let negative = reader.read(1).ok_or(DecodeError::Truncated { section })? == 1;
                let high = !has_two_levels
                    || reader.read(1).ok_or(DecodeError::Truncated { section })? == 1;
                high_count += u16::from(high);
                self.entries.push(Entry::new(0, negative, high));
            }
            let is_valid = if low == f16::ZERO {
                high_count == count
            } else {
                0 < high_count && high_count < count
            };
            if !is_valid {
                return Err(DecodeError::UnusedLevel { tile: number });
            }
        }
        reader.finish().ok_or(DecodeError::Padding { section })?;
        Ok(())
    }

    fn read_indices(&mut self, bytes: Bytes<'_>, code: IndexCode) -> Result<(), DecodeError> {
        let section = Section::Indices;
        let mut reader = BitReader::new(bytes.0);
        let mut cost = IndexCost::default();
        let mut entries = self.entries.iter_mut();
        for (number, tile) in self.tiles.iter().enumerate() {
            let Content::Sparse { count, .. } = tile.content else {
                continue;
            };
            let len = usize::from(tile.len);
            let mut previous = None;
            for entry in entries.by_ref().take(usize::from(count)) {
                let index = code
                    .read(previous, &mut reader)
                    .ok_or(DecodeError::Truncated { section })?;
                if index as usize >= len {
                    return Err(DecodeError::IndexOutOfTile {
                        tile: number,
                        index,
                        len,
                    });
                }
                if previous.is_some_and(|previous| index <= previous) {
                    return Err(DecodeError::IndexOrder {
                        tile: number,
                        index,
                    });
                }
                cost.count(index, previous);
                previous = Some(index);
                // Below 4096, as every tile is.
                entry.0 |= index as u16;
            }
        }
        let rest = reader.finish().ok_or(DecodeError::Padding { section })?;
        if !rest.is_empty() {
            return Err(DecodeError::Trailing { bytes: rest.len() });
        }
        let (canonical, _) = cost.cheapest();
        if code != canonical {
            return Err(DecodeError::IndexCodeNotCanonical {
                found: code,
                canonical,
            });
        }
        Ok(())
    }
}

/// Bits of [`VALUE_ABS_MAX`] as f16.
const LEVEL_BITS_MAX: u16 = f16::from_f32_const(VALUE_ABS_MAX).to_bits();

/// The index code, or none in a dense frame.
fn read_header(
    bytes: &mut Bytes<'_>,
    tiles: usize,
    expected: Codec,
) -> Result<Option<IndexCode>, DecodeError> {
    let section = Section::Header;
    let found = bytes.array(section)?;
    if found != MAGIC {
        return Err(DecodeError::Magic { found });
    }
    let [version] = bytes.array(section)?;
    if version != VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let [codec, value_bits, index_code] = bytes.array(section)?;
    let k = bytes.u16(section)?;
    if (Header {
        codec,
        value_bits,
        k,
    }) != Header::of(expected)
    {
        return Err(DecodeError::CodecMismatch {
            codec,
            value_bits,
            k,
            expected,
        });
    }
    let found = u32::from_le_bytes(bytes.array(section)?);
    if usize::try_from(found) != Ok(tiles) {
        return Err(DecodeError::TileCountMismatch {
            found,
            expected: tiles,
        });
    }
    match expected {
        Codec::Sparse { .. } => match IndexCode::from_byte(index_code) {
            Some(code) => Ok(Some(code)),
            None => Err(DecodeError::IndexCode { found: index_code }),
        },
        Codec::Dense(_) if index_code == 0 => Ok(None),
        Codec::Dense(_) => Err(DecodeError::IndexCode { found: index_code }),
    }
}

/// Bytes not yet read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize, section: Section) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated { section })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, section: Section) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(DecodeError::Truncated { section })?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self, section: Section) -> Result<u16, DecodeError> {
        self.array(section).map(u16::from_le_bytes)
    }
}
