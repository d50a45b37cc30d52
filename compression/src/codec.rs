//! What a run's manifest fixes about frames, and the way from values to bytes and back.
//!
//! Sparse tiles keep, of n elements, the k largest by magnitude: sign and level for each, and a value of its own for the
//! largest (rules "selection" to "left out" below); dense tiles keep every element, as it is or
//! rounded to bf16, or to integers by block (rule "block" of [`mod@crate::dense`], with its error bound).
//! [`crate::frame`] specifies the bytes.
//!
//! Rule "selection": k' = ceil(k * n / 4096) entries for a tile of n elements (k for a full tile,
//! at least one, never more than n). Zeros are never chosen: a tile with fewer nonzero elements
//! than k' has just these as entries. Of equal magnitudes the lower index is chosen.
//!
//! Rule "grid": levels and peaks are powers of 2^(1/32), numbered by steps: step u in 1..=4513 is 2^((u - 4033) / 32), that
//! is 2^-126 to 2^15, as the product of 2^(i / 32) rounded to f32 and a power of two; step 0 is zero. A magnitude below
//! 2^-126 goes to step 0. Any other is m * 2^e with m in 1..2, and goes to the step of 2^(e + i / 32), with i the number
//! of j in 0..=31 for which 2^((2 j + 1) / 64), rounded to f32, is not above m.
//!
//! Rule "peak": the largest magnitude of the entries, the first of equal ones, stands for itself on the grid; under a level
//! it alone would make a fifth of a frame's squared error. When the high level is at the same step, the first entry that is
//! high takes its place.
//!
//! Rule "one level": each of the other entries stands for its sign times one level, the mean magnitude of
//! these entries, on the grid; all of them are high. The mean is what minimises the squared error. It is the f64
//! sum in index order, divided by the count in f64, rounded to f32, each time to nearest even.
//!
//! Rule "two levels": the other entries are split by magnitude in a high and a low group, each with its
//! mean as level, so that the squared error is smallest. With the magnitudes in descending order,
//! H(m) the f64 prefix sum of the first m, S = H(count) and L(m) = S - H(m), that is the split
//! which maximises H(m)^2 / m + L(m)^2 / (count - m), in f64, among the splits between two
//! different magnitudes and the split "all high" (m = count, value S^2 / count). "All high" wins
//! ties, then the smallest m. The means H(m) / m and L(m) / (count - m) are rounded as above;
//! unless the low level is then below the high one, all entries take the high one.
//!
//! Rule "seven levels": each of the other entries stands for its sign times one of up to seven levels at equal ratios. Level
//! j in 0..=6 is at the step high - j * spacing, as far as that is 1 or more, with an even spacing in 2..=32. An entry at the
//! step u takes the first level for which high - u <= j * spacing + reach, else level 6. The reach is the largest t with 2 *
//! 2^(-t/32) >= 1 + 2^(-spacing/32): up to the middle between two levels an entry goes to the higher one. Of high levels and
//! spacings those are taken with the least squared error: the sum over the entries of (M(u) - M(level))^2, or M(u)^2 where an
//! entry is left out for being far below level 6. M(s) is 2^(24 + (s - m) / 32) as the grid has it, without its fraction,
//! with m the largest step of these entries; so the sums are of integers and have no order. A high level is at least 1, at
//! least m - 16, at most m + reach, at most the peak: then the largest of these entries takes it. Of equal errors the
//! smallest spacing wins, then the largest high level. The codes that are written are those of the smallest spacing that has
//! all levels which entries stand for.
//!
//! Rule "left out": an entry at step 0 is none, nor is a low one whose level is more than 512 steps, 16 octaves, below the
//! high one, nor, of seven levels, one more than 32 steps below level 6, which is then nearer to zero, or one whose level
//! is below the grid. They stay in the error feedback until they have grown. So the entries of a frame are its nonzero
//! values.
//!
//! Error: half a step is 1.1% of a value. Over many values that is a relative squared error of
//! (ln 2 / 32)^2 / 12 = 0.004%, small next to the spread of the magnitudes around their level: in all 0.49% with one level
//! and 0.14% with two, on updates of the demo's model with k = 64 and error feedback.
//!
//! Sums of what several members send spread over octaves. On sums of 8 and 32 members' frames with k = 64 and one level, of
//! heavy-tailed values, the relative squared error with k = 256 is 8.5% and 11.2% with two levels, 0.7% and 1.2% with seven;
//! with k = 512 it is 9.8% and 14.0%, 0.9% and 1.4% (tests/frames.rs). No one spacing suits all tiles: the best is 6 to 8
//! steps for 64 entries, 12 to 18 for 256 and 18 to 24 for 512, on such sums with error feedback; with half octaves always,
//! that is 16 steps, the errors are twice as large for 512 and five times for 64.
//!
//! Bound with seven levels (derivation): let the magnitudes besides the peak lie within s <= 192 steps of each other on the
//! grid. The ladder with the high level at the largest and the spacing d = 2 * ceil(s / 12) has them all between its first
//! level and its last, each within (1 - r) / (1 + r) of its magnitude on the grid, with r = 2^(-d/32): as far as the middle
//! between two levels is from both. The ladder that is taken has no larger a squared error, and the grid moves every
//! magnitude by a factor of at most 1 + g = 2^(1/64). So, with norms over the entries of a tile, |decoded - values| <= (g +
//! (1 + g) (1 - r) / (1 + r)) |values|. For an octave, d = 6, that is 7.7%, or 0.6% of the square; the mean over magnitudes
//! whose logarithms are spread evenly would be about (d ln 2 / 32)^2 / 12 = 0.14% of the square.
//!
//! From these rules follows that encoding what a frame decodes to gives the same frame, so there is
//! one frame per content. Numbers of the grid go to their own step. The largest decoded magnitude is that of the peak, alone
//! or with the high entries, of which the peak is the first. The other magnitudes are levels within 16 octaves: their sums,
//! of fewer than 2^12 numbers of 24 bits, are exact in the 53 bits of f64, so that means of them are the levels
//! themselves; and the only split between different magnitudes beats "all high" by m (count - m) / count *
//! (high - low)^2. With levels a step apart or more that is at least 2^-24 of its value, which f64 cannot miss. Of seven
//! levels the highest is that of the largest entry besides the peak. A ladder without error has its high level there and all
//! the others that occur; of these ladders the one with the smallest spacing comes first, and it is the one that was written.

use bytes::Bytes;
use thiserror::Error;

use crate::frame::{DecodeError, EncodeError, Frame, HEADER_BYTES, encode_dense, level_bits_max};
use crate::index::{IndexCode, IndexCost};
use crate::layout::{TILE_ELEMENTS, TensorMode, Tile};

/// Largest magnitude that a frame carries, and that [`encode`] accepts: 2^15, the largest power of
/// two that the grid, bf16 and f32 all have, so that rounding never exceeds it.
///
/// An update this large means that the run has diverged; its sum over the members of any round
/// stays far below `f32::MAX`.
pub const VALUE_ABS_MAX: f32 = 32768.0;

/// The k of top-k for a full tile, in `1..=4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopK(u16);

/// A k that no tile can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("k is {k}, not in 1..={TILE_ELEMENTS}")]
pub struct TopKOutOfRange {
    pub k: u16,
}

impl TopK {
    /// # Errors
    /// [`TopKOutOfRange`] unless `k` is in `1..=4096`.
    pub const fn new(k: u16) -> Result<Self, TopKOutOfRange> {
        if k >= 1 && k as usize <= TILE_ELEMENTS {
            Ok(Self(k))
        } else {
            Err(TopKOutOfRange { k })
        }
    }

    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// k' of the rule "selection": most entries of a tile of `len` elements.
    #[must_use]
    pub fn for_tile(self, tile: &Tile) -> u16 {
        let entries = (usize::from(self.0) * tile.len()).div_ceil(TILE_ELEMENTS);
        // At most `tile.len()`, because k <= 4096.
        entries as u16
    }
}

/// Bits per entry for its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueBits {
    /// Sign; one level and the peak per tile.
    One,
    /// Sign and one of two levels; the peak per tile.
    Two,
    /// Sign and one of seven levels, or the mark of the peak; for sums of several members' values, which spread over some
    /// octaves.
    Four,
}

impl ValueBits {
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// Element format of a dense run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenseFormat {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// Integers up to 127 in magnitude, 8.25 bits per element with the scale of their block.
    Int8,
    /// Integers up to 7 in magnitude, 4.25 bits per element with the scale of their block.
    Int4,
}

/// The codec of a run, from its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Top-k for the tiles of sparse tensors, bf16 for those of dense ones.
    Sparse { k: TopK, value_bits: ValueBits },
    /// Every element of every tile.
    Dense(DenseFormat),
}

/// How this codec treats one tile.
pub(crate) enum TileCode {
    Sparse {
        entries_max: u16,
        value_bits: ValueBits,
    },
    Dense(DenseFormat),
}

impl Codec {
    pub(crate) fn for_tile(self, tile: &Tile) -> TileCode {
        match (self, tile.mode()) {
            (Self::Sparse { k, value_bits }, TensorMode::Sparse) => TileCode::Sparse {
                entries_max: k.for_tile(tile),
                value_bits,
            },
            (Self::Sparse { .. }, TensorMode::Dense) => TileCode::Dense(DenseFormat::Bf16),
            (Self::Dense(format), TensorMode::Sparse | TensorMode::Dense) => {
                TileCode::Dense(format)
            }
        }
    }
}

/// What [`encode`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeStats {
    /// All bytes of the frame.
    pub frame_bytes: usize,
    /// Entries of all sparse tiles.
    pub entries: usize,
    /// Bits that their indices take, without padding.
    pub index_bits: u64,
    /// How the indices are coded; of no meaning without entries.
    pub index_code: IndexCode,
}

/// Appends to `out` the frame of `values`, the elements of `tiles` one after the other.
///
/// Cost: O(elements). Of a dense codec one pass over memory, and no allocation where `out` has room; else O(entries + dense
/// elements) are allocated.
///
/// # Errors
/// [`EncodeError`], with `out` unchanged: the values are not as many as the tiles hold, or one of
/// them is NaN or above [`VALUE_ABS_MAX`] in magnitude.
pub fn encode(
    values: &[f32],
    tiles: &[Tile],
    codec: Codec,
    out: &mut Vec<u8>,
) -> Result<EncodeStats, EncodeError> {
    match codec {
        Codec::Sparse { .. } => Ok(Frame::quantise(values, tiles, codec)?.write(out)),
        Codec::Dense(format) => encode_dense(values, tiles, format, out),
    }
}

/// Reads the frame that fills `bytes`, sent as the frame of `tiles`.
///
/// Accepts exactly the frames that [`encode`] can produce for these tiles and this codec. Allocates
/// in proportion to the tiles and to `bytes`, never by a length that the frame claims.
///
/// # Errors
/// [`DecodeError`]: whoever made these bytes is at fault.
pub fn decode(bytes: &[u8], tiles: &[Tile], codec: Codec) -> Result<Frame, DecodeError> {
    Frame::read(bytes, tiles, codec, Bytes::copy_from_slice)
}

/// [`decode`] without a copy: the frame holds on to `bytes` for its dense elements.
///
/// # Errors
/// [`DecodeError`]: whoever made these bytes is at fault.
pub fn decode_shared(bytes: &Bytes, tiles: &[Tile], codec: Codec) -> Result<Frame, DecodeError> {
    Frame::read(bytes, tiles, codec, |part| bytes.slice_ref(part))
}

/// Makes every check of [`decode`] and keeps nothing: dense elements are read where they lie.
///
/// # Errors
/// [`DecodeError`]: whoever made these bytes is at fault.
pub fn check(bytes: &[u8], tiles: &[Tile], codec: Codec) -> Result<(), DecodeError> {
    Frame::read(bytes, tiles, codec, |_dense| Bytes::new()).map(drop)
}

/// No frame of `tiles` is longer than this, in bytes: what a download may take.
///
/// With full tiles and k = 64 that is 10.1 bits per entry (one level), 15 % above a usual
/// frame: levels that have nothing in common with those of the tile before take longer.
#[must_use]
pub fn frame_bytes_max(tiles: &[Tile], codec: Codec) -> usize {
    let mut bytes = HEADER_BYTES;
    let mut level_bits_sum = 0;
    let mut value_bits_sum = 0;
    let mut index_cost = IndexCost::default();
    for tile in tiles {
        match codec.for_tile(tile) {
            TileCode::Sparse {
                entries_max,
                value_bits,
            } => {
                level_bits_sum += u64::from(level_bits_max(entries_max, value_bits));
                value_bits_sum += u64::from(entries_max) * u64::from(value_bits.bits());
                index_cost.count_worst(tile.len(), entries_max);
            }
            TileCode::Dense(format) => bytes += format.tile_bytes(tile.len()),
        }
    }
    let (_, index_bits_max) = index_cost.cheapest();
    let streams = [level_bits_sum, value_bits_sum, index_bits_max];
    // At most 55 bits for each element of a layout, which `ELEMENTS_MAX` bounds: below 2^39 bytes.
    bytes
        + streams
            .map(|bits| bits.div_ceil(8) as usize)
            .iter()
            .sum::<usize>()
}
