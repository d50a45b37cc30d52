//! From bytes to a frame, with every check of the specification.

use bytes::Bytes;
use half::f16;

use super::write::Header;
use super::{
    Content, DecodeError, Frame, FrameTile, HIGH, MAGIC, SHORT_TILE, Section, VALUE_SHIFT, VERSION,
};
use crate::bits::BitReader;
use crate::codec::{Codec, TileCode, VALUE_ABS_MAX, ValueBits};
use crate::dense::{self, DenseFault};
use crate::index::{IndexCode, IndexFault, IndexReader};
use crate::layout::Tile;

/// Bits of [`VALUE_ABS_MAX`] as f16.
const LEVEL_BITS_MAX: u16 = f16::from_f32_const(VALUE_ABS_MAX).to_bits();

impl Frame {
    /// See [`crate::codec::decode`]. `keep` makes the part of `bytes` that holds the dense elements last.
    pub(crate) fn read<'a>(
        bytes: &'a [u8],
        tiles: &[Tile],
        codec: Codec,
        keep: impl FnOnce(&'a [u8]) -> Bytes,
    ) -> Result<Self, DecodeError> {
        let mut rest = Rest(bytes);
        let index_code = read_header(&mut rest, tiles.len(), codec)?;
        let mut frame = Self {
            codec,
            elements: tiles.iter().map(Tile::len).sum(),
            tiles: Vec::with_capacity(tiles.len()),
            entries: Vec::new(),
            dense: Bytes::new(),
        };
        frame.read_levels(&mut rest, tiles)?;
        frame.dense = keep(frame.read_dense(&mut rest)?);
        let Some(index_code) = index_code else {
            return match rest.0.len() {
                0 => Ok(frame),
                bytes => Err(DecodeError::Trailing { bytes }),
            };
        };

        frame.read_entry_values(&mut rest)?;
        frame.read_indices(rest, index_code)?;
        Ok(frame)
    }

    fn read_levels(&mut self, bytes: &mut Rest<'_>, tiles: &[Tile]) -> Result<(), DecodeError> {
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

    /// The bytes of the dense elements, checked.
    fn read_dense<'a>(&self, bytes: &mut Rest<'a>) -> Result<&'a [u8], DecodeError> {
        let section = Section::DenseValues;
        let format = self.dense_format();
        let lens = || {
            let is_dense = |tile: &&FrameTile| matches!(tile.content, Content::Dense);
            let dense = self.tiles.iter().filter(is_dense);
            dense.map(|tile| usize::from(tile.len))
        };
        // The layout bounds the elements far below overflow of this sum.
        let encoded = bytes.take(lens().map(|len| format.tile_bytes(len)).sum(), section)?;
        let mut rest = Rest(encoded);
        let mut first = 0;
        for len in lens() {
            let tile = rest.take(format.tile_bytes(len), section)?;
            dense::check(tile, format, len).map_err(|fault| match fault {
                DenseFault::Value { element, value } => DecodeError::DenseValue {
                    element: first + element,
                    value,
                },
                DenseFault::Block { element, scale } => DecodeError::DenseBlock {
                    element: first + element,
                    scale,
                },
            })?;
            first += len;
        }
        Ok(encoded)
    }

    /// Fills `entries` with signs and groups; the indices stay zero.
    fn read_entry_values(&mut self, bytes: &mut Rest<'_>) -> Result<(), DecodeError> {
        let section = Section::EntryValues;
        let two_levels = self.has_two_levels();
        let counts = self.tiles.iter().map(|tile| match tile.content {
            Content::Sparse { count, .. } => usize::from(count),
            Content::Dense => 0,
        });
        let entries: usize = counts.sum();
        let bits = entries * if two_levels { 2 } else { 1 };
        let mut reader = BitReader::new(bytes.take(bits.div_ceil(8), section)?, 0);
        // The bytes were there: at most eight entries for each.
        self.entries.resize(entries, 0);
        for entries in self.entries.chunks_mut(if two_levels { 16 } else { 32 }) {
            // Up to 32 bits.
            let bits = entries.len() as u32 * if two_levels { 2 } else { 1 };
            let word = reader
                .read(bits)
                .ok_or(DecodeError::Truncated { section })?;
            if two_levels {
                for (entry, place) in entries.iter_mut().zip((0..32).step_by(2)) {
                    *entry = (word >> place & 3) as u16 * (1 << VALUE_SHIFT);
                }
            } else {
                for (entry, place) in entries.iter_mut().zip(0..32) {
                    *entry = HIGH | ((word >> place & 1) as u16 * (1 << VALUE_SHIFT));
                }
            }
        }
        reader.finish().ok_or(DecodeError::Padding { section })?;

        let mut rest = self.entries.as_slice();
        for (number, tile) in self.tiles.iter().enumerate() {
            let Content::Sparse { low, count, .. } = tile.content else {
                continue;
            };
            let (entries, after) = rest.split_at(usize::from(count));
            rest = after;
            let (any_high, all_high) = entries.iter().fold((0, HIGH), |(any, all), entry| {
                (any | entry & HIGH, all & entry)
            });
            let is_valid = if low == f16::ZERO {
                all_high != 0
            } else {
                any_high != 0 && all_high == 0
            };
            if !is_valid {
                return Err(DecodeError::UnusedLevel { tile: number });
            }
        }
        Ok(())
    }

    fn read_indices(&mut self, bytes: Rest<'_>, code: IndexCode) -> Result<(), DecodeError> {
        let section = Section::Indices;
        let mut reader = IndexReader::new(code, bytes.0);
        let mut rest = self.entries.as_mut_slice();
        for (tile, FrameTile { len, content }) in self.tiles.iter().enumerate() {
            let Content::Sparse { count, .. } = *content else {
                continue;
            };
            let (entries, after) = rest.split_at_mut(usize::from(count));
            rest = after;
            let len = usize::from(*len);
            reader.read(entries, len).map_err(|fault| match fault {
                IndexFault::Truncated => DecodeError::Truncated { section },
                IndexFault::OutOfTile { index } => DecodeError::IndexOutOfTile { tile, index, len },
                IndexFault::Order { index } => DecodeError::IndexOrder { tile, index },
            })?;
        }
        let is_canonical = reader.is_canonical();
        let rest = reader.finish().ok_or(DecodeError::Padding { section })?;
        if !rest.is_empty() {
            return Err(DecodeError::Trailing { bytes: rest.len() });
        }
        if is_canonical != Some(true) {
            let (canonical, _) = self.index_cost().cheapest();
            if code != canonical {
                return Err(DecodeError::IndexCodeNotCanonical {
                    found: code,
                    canonical,
                });
            }
        }
        Ok(())
    }
}

/// The index code, or none in a dense frame.
fn read_header(
    bytes: &mut Rest<'_>,
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
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
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
