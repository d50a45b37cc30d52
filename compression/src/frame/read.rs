//! From bytes to a frame, with every check of the specification.

use bytes::Bytes;

use super::tile_levels::LevelReader;
use super::write::Header;
use super::{
    CODE_SHIFT, Content, DecodeError, Frame, FrameTile, HIGH, MAGIC, PEAK, Section, SparseTile,
    VALUE_SHIFT, VERSION,
};
use crate::bits::BitReader;
use crate::codec::{Codec, TileCode, ValueBits};
use crate::dense::{self, DenseFault};
use crate::index::{IndexCode, IndexFault, IndexReader};
use crate::ladder::PEAK_CODE;
use crate::layout::Tile;

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
        let places = frame.read_levels(&mut rest, tiles)?;
        frame.dense = keep(frame.read_dense(&mut rest)?);
        let Some(index_code) = index_code else {
            return match rest.0.len() {
                0 => Ok(frame),
                bytes => Err(DecodeError::Trailing { bytes }),
            };
        };

        frame.read_entry_values(&mut rest, &places)?;
        frame.read_indices(rest, index_code)?;
        Ok(frame)
    }

    /// Pushes the tiles; the places of the peaks in the sparse ones.
    fn read_levels(
        &mut self,
        bytes: &mut Rest<'_>,
        tiles: &[Tile],
    ) -> Result<Vec<u16>, DecodeError> {
        let mut places = Vec::new();
        let mut reader = match self.codec {
            Codec::Sparse { value_bits, .. } => Some(LevelReader::new(bytes.0, value_bits)),
            Codec::Dense(_) => None,
        };
        for (number, tile) in tiles.iter().enumerate() {
            let content = match (self.codec.for_tile(tile), &mut reader) {
                (TileCode::Sparse { entries_max, .. }, Some(reader)) => {
                    let (tile, place) = reader.read(number, entries_max)?;
                    places.push(place);
                    Content::Sparse(tile)
                }
                (TileCode::Sparse { .. } | TileCode::Dense(_), _) => Content::Dense,
            };
            // A tile has at most 4096 elements.
            self.tiles.push(FrameTile {
                len: tile.len() as u16,
                content,
            });
        }
        if let Some(reader) = reader {
            bytes.0 = reader.finish()?;
        }
        Ok(places)
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

    /// Fills `entries` with signs, and groups and peaks, which are at these `places` in the sparse tiles, or codes; the
    /// indices stay zero.
    fn read_entry_values(
        &mut self,
        bytes: &mut Rest<'_>,
        places: &[u16],
    ) -> Result<(), DecodeError> {
        let section = Section::EntryValues;
        let value_bits = self.value_bits();
        let counts = self.tiles.iter().map(|tile| match tile.content {
            Content::Sparse(tile) => usize::from(tile.count),
            Content::Dense => 0,
        });
        let entries: usize = counts.sum();
        let bits = entries * value_bits.bits() as usize;
        let mut reader = BitReader::new(bytes.take(bits.div_ceil(8), section)?, 0);
        // The bytes were there: at most eight entries for each.
        self.entries.resize(entries, 0);
        for entries in self.entries.chunks_mut(32 / value_bits.bits() as usize) {
            // Up to 32 bits.
            let bits = entries.len() as u32 * value_bits.bits();
            let word = reader
                .read(bits)
                .ok_or(DecodeError::Truncated { section })?;
            match value_bits {
                ValueBits::One => {
                    for (entry, place) in entries.iter_mut().zip(0..32) {
                        *entry = HIGH | ((word >> place & 1) as u16 * (1 << VALUE_SHIFT));
                    }
                }
                ValueBits::Two => {
                    for (entry, place) in entries.iter_mut().zip((0..32).step_by(2)) {
                        *entry = (word >> place & 3) as u16 * (1 << VALUE_SHIFT);
                    }
                }
                ValueBits::Four => {
                    for (entry, place) in entries.iter_mut().zip((0..32).step_by(4)) {
                        *entry = (word >> place & 15) as u16 * (1 << VALUE_SHIFT);
                    }
                }
            }
        }
        reader.finish().ok_or(DecodeError::Padding { section })?;

        let sparse = |(number, tile): (usize, &FrameTile)| match tile.content {
            Content::Sparse(content) => Some((number, content)),
            Content::Dense => None,
        };
        let tiles = self.tiles.iter().enumerate().filter_map(sparse);
        let mut rest = self.entries.as_mut_slice();
        for ((number, tile), &place) in tiles.zip(places) {
            let (entries, after) = rest.split_at_mut(usize::from(tile.count));
            rest = after;
            match value_bits {
                ValueBits::One | ValueBits::Two => {
                    mark_peak(entries, usize::from(place), number, &tile)?;
                }
                ValueBits::Four => check_codes(entries, number, &tile)?,
            }
        }
        Ok(())
    }

    fn read_indices(&mut self, bytes: Rest<'_>, code: IndexCode) -> Result<(), DecodeError> {
        let section = Section::Indices;
        let mut reader = IndexReader::new(code, bytes.0);
        let mut rest = self.entries.as_mut_slice();
        for (tile, FrameTile { len, content }) in self.tiles.iter().enumerate() {
            let Content::Sparse(content) = content else {
                continue;
            };
            let (entries, after) = rest.split_at_mut(usize::from(content.count));
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

/// Marks the entry at `place` as the peak, if that and the levels suit the groups of the `entries` of a tile.
fn mark_peak(
    entries: &mut [u16],
    place: usize,
    number: usize,
    tile: &SparseTile,
) -> Result<(), DecodeError> {
    let high_count = entries.iter().filter(|&entry| entry & HIGH != 0).count();
    let Some(peak) = entries.get_mut(place) else {
        // A tile without entries.
        return Ok(());
    };
    let is_high = *peak & HIGH != 0;
    *peak |= PEAK;
    let is_first = || entries[..place].iter().all(|entry| entry & HIGH == 0);
    if !is_high || (tile.peak == tile.high && !is_first()) {
        return Err(DecodeError::Peak {
            tile: number,
            place: place as u32,
            entries: tile.count,
        });
    }
    let is_valid = if tile.low == 0 {
        high_count == entries.len()
    } else {
        (2..entries.len()).contains(&high_count)
    };
    if is_valid {
        Ok(())
    } else {
        Err(DecodeError::UnusedLevel { tile: number })
    }
}

/// Whether the codes of the `entries` of a tile suit its peak and its levels.
fn check_codes(entries: &[u16], number: usize, tile: &SparseTile) -> Result<(), DecodeError> {
    if entries.is_empty() {
        return Ok(());
    }
    let code = |entry: &u16| entry >> CODE_SHIFT;
    let mut used = 0_u8;
    let mut peaks = 0;
    for entry in entries {
        used |= 1 << code(entry);
        peaks += usize::from(code(entry) == PEAK_CODE);
    }
    if peaks != 1 {
        return Err(DecodeError::PeakCount {
            tile: number,
            found: peaks,
        });
    }
    let used = used & !(1 << PEAK_CODE);
    if entries.len() == 1 {
        return Ok(());
    }
    if used & 1 == 0 {
        return Err(DecodeError::UnusedLevel { tile: number });
    }
    let first = |wanted| entries.iter().position(|entry| code(entry) == wanted);
    if let (0, Some(place)) = (tile.peak - tile.high, first(PEAK_CODE))
        && first(0) < Some(place)
    {
        return Err(DecodeError::Peak {
            tile: number,
            place: place as u32,
            entries: tile.count,
        });
    }
    let ladder = tile.ladder();
    // Some code is used.
    let last = u8::BITS - 1 - used.leading_zeros();
    if ladder.level(last as u16) == 0 {
        return Err(DecodeError::Level {
            tile: number,
            found: i32::from(tile.high) - last as i32 * i32::from(tile.spacing),
            min: 1,
            max: tile.high.into(),
        });
    }
    let canonical = ladder.spacing_of(used);
    if ladder.spacing != canonical {
        return Err(DecodeError::Spacing {
            tile: number,
            found: ladder.spacing,
            canonical,
        });
    }
    Ok(())
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
