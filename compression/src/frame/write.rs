//! From values to the bytes of a frame.

use super::quantise::{by_tile, check_range, check_tiles};
use super::tile_levels::LevelWriter;
use super::{
    Content, EncodeError, Frame, HEADER_BYTES, INDEX, MAGIC, PEAK, SparseTile, VALUE_SHIFT, VERSION,
};
use crate::bits::BitWriter;
use crate::codec::{Codec, DenseFormat, EncodeStats};
use crate::dense;
use crate::index::{IndexCode, IndexCost};
use crate::layout::Tile;

/// Header fields that the codec fixes.
#[derive(PartialEq)]
pub(super) struct Header {
    pub(super) codec: u8,
    pub(super) value_bits: u8,
    pub(super) k: u16,
}

impl Header {
    pub(super) fn of(codec: Codec) -> Self {
        let dense = |codec| Self {
            codec,
            value_bits: 0,
            k: 0,
        };
        match codec {
            Codec::Sparse { k, value_bits } => Self {
                codec: 1,
                value_bits: value_bits.bits() as u8,
                k: k.get(),
            },
            Codec::Dense(DenseFormat::F32) => dense(2),
            Codec::Dense(DenseFormat::Bf16) => dense(3),
            Codec::Dense(DenseFormat::Int8) => dense(4),
            Codec::Dense(DenseFormat::Int4) => dense(5),
        }
    }

    /// Appends the header of a frame of `tiles` tiles, at most `TILES_MAX`.
    fn write(&self, index_code: u8, tiles: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.codec, self.value_bits, index_code]);
        out.extend_from_slice(&self.k.to_le_bytes());
        out.extend_from_slice(&(tiles as u32).to_le_bytes());
    }
}

/// See [`crate::codec::encode`]: the frame of a dense codec, straight from the values to `out`.
pub(crate) fn encode_dense(
    values: &[f32],
    tiles: &[Tile],
    format: DenseFormat,
    out: &mut Vec<u8>,
) -> Result<EncodeStats, EncodeError> {
    check_tiles(values.len(), tiles)?;
    let start = out.len();
    let bytes = tiles.iter().map(|tile| format.tile_bytes(tile.len()));
    out.reserve(HEADER_BYTES + bytes.sum::<usize>());
    Header::of(Codec::Dense(format)).write(0, tiles.len(), out);
    let mut element = 0;
    for values in by_tile(values, tiles) {
        // Tile by tile, so that the check brings the values where the next pass finds them.
        if let Err(error) = check_range(values, element) {
            out.truncate(start);
            return Err(error);
        }
        dense::encode(values, format, out);
        element += values.len();
    }
    Ok(EncodeStats {
        frame_bytes: out.len() - start,
        entries: 0,
        index_bits: 0,
        index_code: IndexCode::Packed,
    })
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn write(&self, out: &mut Vec<u8>) -> EncodeStats {
        let start = out.len();
        let (index_code, index_bits) = self.index_cost().cheapest();
        let code_byte = match self.codec {
            Codec::Sparse { .. } => index_code.to_byte(),
            Codec::Dense(_) => 0,
        };
        Header::of(self.codec).write(code_byte, self.tiles.len(), out);
        self.write_levels(out);
        out.extend_from_slice(&self.dense);
        self.write_entry_values(out);
        self.write_indices(index_code, out);
        EncodeStats {
            frame_bytes: out.len() - start,
            entries: self.entries.len(),
            index_bits,
            index_code,
        }
    }

    /// What each code takes for the indices.
    pub(super) fn index_cost(&self) -> IndexCost {
        let mut cost = IndexCost::default();
        let mut gaps = Vec::new();
        for (_, entries) in self.sparse_tiles() {
            let mut next_free = 0;
            gaps.clear();
            gaps.extend(entries.iter().map(|entry| {
                let gap = (entry & INDEX) - next_free;
                next_free = (entry & INDEX) + 1;
                gap
            }));
            cost.count(&gaps);
        }
        cost
    }

    fn write_levels(&self, out: &mut Vec<u8>) {
        let Codec::Sparse { value_bits, .. } = self.codec else {
            return;
        };
        let mut writer = LevelWriter::new(out, value_bits);
        for (tile, entries) in self.sparse_tiles() {
            let place = entries.iter().position(|entry| entry & PEAK != 0);
            // With 4 value bits the codes tell.
            writer.write(tile, place.unwrap_or(0));
        }
        writer.finish();
    }

    fn write_entry_values(&self, out: &mut Vec<u8>) {
        let bits = self.value_bits().bits();
        let mask = (1 << bits) - 1;
        let mut writer = BitWriter::new(out);
        for entry in &self.entries {
            writer.write(u32::from(entry >> VALUE_SHIFT) & mask, bits);
        }
        writer.finish();
    }

    fn write_indices(&self, code: IndexCode, out: &mut Vec<u8>) {
        let mut writer = BitWriter::new(out);
        for (_, entries) in self.sparse_tiles() {
            code.write(entries.iter().map(|entry| entry & INDEX), &mut writer);
        }
        writer.finish();
    }

    /// Each sparse tile and its entries.
    fn sparse_tiles(&self) -> impl Iterator<Item = (&SparseTile, &[u16])> {
        let mut rest = self.entries.as_slice();
        self.tiles
            .iter()
            .filter_map(move |tile| match &tile.content {
                Content::Sparse(tile) => {
                    let (own, after) = rest.split_at(usize::from(tile.count));
                    rest = after;
                    Some((tile, own))
                }
                Content::Dense => None,
            })
    }
}
