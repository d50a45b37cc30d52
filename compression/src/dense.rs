//! Elements of dense tiles as bytes.
//!
//! - **f32**: 4 bytes each, little endian.
//! - **bf16**: 2 bytes each, little endian, rounded to nearest even.
//! - **int8, int4**: blocks of [`BLOCK_ELEMENTS`] elements, the last block of a tile may be shorter. A block is its
//!   scale, bf16, 2 bytes little endian, then a signed integer q per element, which stands for q * scale. int8: a byte
//!   each. int4: with n elements and h = ceil(n / 2), byte i of h holds element i in its low four bits and element
//!   h + i in its high four, which are zero where there is no such element. (Halves rather than neighbours share a byte
//!   so that both are neighbours in a vector register.)
//!
//! Rule "block": with m the largest magnitude of the block and Q = 127 (int8) or 7 (int4), the scale s is m / Q in f32,
//! rounded to bf16, and q is v / s in f32, rounded to an integer, each time to nearest even. A scale below the smallest
//! normal number 2^-126 becomes zero, and with it the block.
//!
//! Why bf16 for the scale: it has the range of f32 in two bytes. f16 would lose its precision below 2^-14, where the
//! scales of most updates lie.
//!
//! Error bound (derivation): bf16 has 8 significant bits, so that rounding moves a normal number by at most 1/257 of it,
//! a tie, and the division in f32 by 2^-24. So m / s lies in Q * 257/258 .. Q * 257/256, up to 2^-16, and that is inside
//! Q - 1/2 .. Q + 1/2 (for Q = 127 it is 126.508 .. 127.496): no q exceeds Q, and q of the largest element is exactly Q.
//! The quotient v / s is below 2^7 and moves by at most 2^-18 when it is rounded to f32, so that q differs from it by at
//! most 1/2 + 2^-18. The product q * s is exact: 7 bits times 8 bits. So, with s <= m / Q * 258/257,
//! `|v - q s| <= (1/2 + 2^-18) s <= m / Q * (1/2 + 2^-9)`: below 0.396% (int8) and 7.18% (int4) of the largest magnitude
//! in the block, and at most 2^-119 in a block that became zero. [`DenseFormat::error_max`] is this bound.
//!
//! Why there is one encoding per content: the largest q of a block is Q, or all are zero, and a reader checks that. So
//! the largest decoded magnitude is exactly Q * s; divided by Q it gives s again, and q s / s gives q.

use crate::codec::{DenseFormat, VALUE_ABS_MAX};
use crate::layout::TILE_ELEMENTS;
use crate::select::magnitude_bits;

/// Elements of a block of int8 or int4: 64, so that the scale adds a quarter bit to each.
pub const BLOCK_ELEMENTS: usize = 64;

const SCALE_BYTES: usize = 2;

/// Adding it to a number below 2^22 in magnitude, and nothing more, leaves that number in the low bits of the sum,
/// rounded to nearest even and in two's complement: the sum lies where the last place of f32 is 1.
const TO_INTEGER: f32 = 12_582_912.0;

/// Bits of the smallest normal bf16.
const SCALE_BITS_MIN: u16 = 0x0080;

const NEGATIVE_ZERO: u32 = 0x8000_0000;

impl DenseFormat {
    /// Bytes of a tile of `elements` elements, at most [`TILE_ELEMENTS`].
    pub(crate) const fn tile_bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::Bf16 => 2 * elements,
            Self::Int8 | Self::Int4 => {
                let (blocks, rest) = (elements / BLOCK_ELEMENTS, elements % BLOCK_ELEMENTS);
                let last = if rest == 0 { 0 } else { self.block_bytes(rest) };
                blocks * self.block_bytes(BLOCK_ELEMENTS) + last
            }
        }
    }

    const fn block_bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 => SCALE_BYTES + elements,
            Self::Int4 => SCALE_BYTES + elements.div_ceil(2),
        }
    }

    /// No element of a block whose largest magnitude is `largest` is off by more than this after a round trip; for bf16
    /// a block is the element alone.
    #[must_use]
    pub fn error_max(self, largest: f32) -> f64 {
        let largest = f64::from(largest);
        match self {
            Self::F32 => 0.0,
            // Half of the last of 8 significant bits; below 2^-126 the places stay where they are.
            Self::Bf16 => (largest * 2_f64.powi(-8)).max(2_f64.powi(-134)),
            Self::Int8 => (largest / 127.0 * (0.5 + 2_f64.powi(-9))).max(2_f64.powi(-119)),
            Self::Int4 => (largest / 7.0 * (0.5 + 2_f64.powi(-9))).max(2_f64.powi(-119)),
        }
    }
}

/// Why bytes are no elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum DenseFault {
    /// NaN, above [`VALUE_ABS_MAX`], or a negative zero.
    Value { element: usize, value: f32 },
    /// Scale out of range, or integers that do not use it.
    Block { element: usize, scale: u16 },
}

/// Appends the elements of one tile, finite and at most [`VALUE_ABS_MAX`] in magnitude.
pub(crate) fn encode(values: &[f32], format: DenseFormat, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + format.tile_bytes(values.len()), 0);
    let out = &mut out[start..];
    match format {
        DenseFormat::F32 => {
            for (out, &value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                // Negative zero becomes zero.
                *out = (value + 0.0).to_le_bytes();
            }
        }
        DenseFormat::Bf16 => {
            for (out, &value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                // What rounds to negative zero becomes zero.
                let rounded = bf16_value(bf16_bits(value)) + 0.0;
                *out = ((rounded.to_bits() >> 16) as u16).to_le_bytes();
            }
        }
        DenseFormat::Int8 => {
            let bytes = format.block_bytes(BLOCK_ELEMENTS);
            for (block, values) in blocks_mut(out, values, bytes) {
                let (scale, out) = begin_block(values, block, 127.0);
                if let Some(scale) = scale {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = integer(value / scale);
                    }
                }
            }
        }
        DenseFormat::Int4 => {
            let bytes = format.block_bytes(BLOCK_ELEMENTS);
            for (block, values) in blocks_mut(out, values, bytes) {
                let (scale, out) = begin_block(values, block, 7.0);
                if let Some(scale) = scale {
                    let (first, second) = values.split_at(out.len());
                    for (out, value) in out.iter_mut().zip(first) {
                        *out = integer(value / scale) & 0xf;
                    }
                    for (out, value) in out.iter_mut().zip(second) {
                        *out |= integer(value / scale) << 4;
                    }
                }
            }
        }
    }
}

fn blocks_mut<'a>(
    out: &'a mut [u8],
    values: &'a [f32],
    block_bytes: usize,
) -> impl Iterator<Item = (&'a mut [u8], &'a [f32])> {
    out.chunks_mut(block_bytes)
        .zip(values.chunks(BLOCK_ELEMENTS))
}

/// Writes the scale of a block by the rule "block"; the scale, unless it is zero, and the bytes of the integers.
#[inline]
fn begin_block<'a>(
    values: &[f32],
    block: &'a mut [u8],
    integer_max: f32,
) -> (Option<f32>, &'a mut [u8]) {
    // As signed integers: that comparison is one instruction on every processor.
    let largest = values.iter().fold(0, |largest, &value| {
        largest.max(magnitude_bits(value) as i32)
    });
    let bits = bf16_bits(f32::from_bits(largest as u32) / integer_max);
    let (scale, integers) = block.split_at_mut(SCALE_BYTES);
    if bits < SCALE_BITS_MIN {
        (None, integers)
    } else {
        scale.copy_from_slice(&bits.to_le_bytes());
        (Some(bf16_value(bits)), integers)
    }
}

/// Nearest integer to a number below 128 in magnitude, ties to even, in two's complement.
#[inline]
fn integer(quotient: f32) -> u8 {
    (quotient + TO_INTEGER).to_bits() as u8
}

/// The nearest bf16, ties to even, of a finite number.
#[inline]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    // Half a unit of the upper half, less one bit unless that half is odd. Finite numbers leave room for it.
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[inline]
const fn bf16_value(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

#[inline]
const fn low_half(byte: u8) -> i8 {
    ((byte & 0xf) ^ 8).wrapping_sub(8) as i8
}

#[inline]
const fn high_half(byte: u8) -> i8 {
    ((byte >> 4) ^ 8).wrapping_sub(8) as i8
}

/// Calls `apply` with each place of `out` and the element of the tile `bytes` that belongs there, in order but for int4,
/// where the second half of each block follows the first.
#[inline]
pub(crate) fn for_each(
    bytes: &[u8],
    format: DenseFormat,
    out: &mut [f32],
    apply: impl Fn(&mut f32, f32),
) {
    match format {
        DenseFormat::F32 => {
            for (out, &value) in out.iter_mut().zip(bytes.as_chunks().0) {
                apply(out, f32::from_le_bytes(value));
            }
        }
        DenseFormat::Bf16 => {
            for (out, &value) in out.iter_mut().zip(bytes.as_chunks().0) {
                apply(out, bf16_value(u16::from_le_bytes(value)));
            }
        }
        DenseFormat::Int8 => {
            for (scale, integers, out) in blocks(bytes, format, out) {
                for (out, &integer) in out.iter_mut().zip(integers) {
                    apply(out, f32::from(integer as i8) * scale);
                }
            }
        }
        DenseFormat::Int4 => {
            for (scale, integers, out) in blocks(bytes, format, out) {
                let (first, second) = out.split_at_mut(integers.len());
                for (out, &pair) in first.iter_mut().zip(integers) {
                    apply(out, f32::from(low_half(pair)) * scale);
                }
                for (out, &pair) in second.iter_mut().zip(integers) {
                    apply(out, f32::from(high_half(pair)) * scale);
                }
            }
        }
    }
}

/// Scale, integers and places of each block.
#[inline]
fn blocks<'a>(
    bytes: &'a [u8],
    format: DenseFormat,
    out: &'a mut [f32],
) -> impl Iterator<Item = (f32, &'a [u8], &'a mut [f32])> {
    bytes
        .chunks(format.block_bytes(BLOCK_ELEMENTS))
        .zip(out.chunks_mut(BLOCK_ELEMENTS))
        .map(|(block, out)| {
            let (scale, integers) = block.split_at(SCALE_BYTES);
            (bf16_value(scale_bits(scale)), integers, out)
        })
}

/// Sums of squares, in f64 and in index order, of several tiles of one length. The sums are independent: side by side
/// they wait for each other's additions no longer.
pub(crate) fn squares<const TILES: usize>(
    tiles: [&[u8]; TILES],
    format: DenseFormat,
    elements: usize,
    scratch: &mut Vec<f32>,
) -> [f64; TILES] {
    scratch.resize(TILES * elements, 0.0);
    let mut rest = scratch.as_mut_slice();
    let values: [&[f32]; TILES] = tiles.map(|bytes| {
        let (out, after) = std::mem::take(&mut rest).split_at_mut(elements);
        rest = after;
        for_each(bytes, format, out, |out, value| *out = value);
        &*out
    });
    let mut sums = [0.0; TILES];
    for element in 0..elements {
        for (sum, values) in sums.iter_mut().zip(values) {
            let value = f64::from(values[element]);
            *sum += value * value;
        }
    }
    sums
}

/// Checks one tile of `elements` elements, as many as `bytes` holds; faults count from the tile's first element.
pub(crate) fn check(bytes: &[u8], format: DenseFormat, elements: usize) -> Result<(), DenseFault> {
    match format {
        DenseFormat::F32 => check_values(bytes.as_chunks().0, f32::from_le_bytes),
        DenseFormat::Bf16 => check_values(bytes.as_chunks().0, |value| {
            bf16_value(u16::from_le_bytes(value))
        }),
        DenseFormat::Int8 => check_blocks(bytes, format, elements, 127, |integers, _| {
            integers.iter().fold(0, |largest, &integer| {
                largest.max((integer as i8).unsigned_abs())
            })
        }),
        DenseFormat::Int4 => check_blocks(bytes, format, elements, 7, |pairs, elements| {
            let largest = pairs.iter().fold(0, |largest, &pair| {
                largest
                    .max(low_half(pair).unsigned_abs())
                    .max(high_half(pair).unsigned_abs())
            });
            // The half that no element fills: a number that no block has.
            let padding = elements % 2 == 1 && pairs.last().is_some_and(|pair| pair >> 4 != 0);
            if padding { u8::MAX } else { largest }
        }),
    }
}

fn check_values<const N: usize>(
    bytes: &[[u8; N]],
    value: impl Fn([u8; N]) -> f32,
) -> Result<(), DenseFault> {
    let is_bad = |value: f32| {
        (magnitude_bits(value) as i32 > VALUE_ABS_MAX.to_bits() as i32)
            | (value.to_bits() == NEGATIVE_ZERO)
    };
    // No early exit, so that it vectorises.
    if !bytes
        .iter()
        .fold(false, |any, &bytes| any | is_bad(value(bytes)))
    {
        return Ok(());
    }
    let mut values = bytes.iter().map(|&bytes| value(bytes)).enumerate();
    match values.find(|&(_, value)| is_bad(value)) {
        Some((element, value)) => Err(DenseFault::Value { element, value }),
        None => Ok(()),
    }
}

/// `largest`: of the magnitudes of the integers of a block of so many elements.
fn check_blocks(
    bytes: &[u8],
    format: DenseFormat,
    elements: usize,
    integer_max: u8,
    largest: impl Fn(&[u8], usize) -> u8,
) -> Result<(), DenseFault> {
    let scale_bits_max = bf16_bits(VALUE_ABS_MAX / f32::from(integer_max));
    let blocks = bytes.chunks(format.block_bytes(BLOCK_ELEMENTS));
    for (number, block) in blocks.enumerate() {
        let first = number * BLOCK_ELEMENTS;
        let (scale, integers) = block.split_at(SCALE_BYTES);
        let scale = scale_bits(scale);
        let largest = largest(integers, BLOCK_ELEMENTS.min(elements - first));
        let is_valid = if scale == 0 {
            largest == 0
        } else {
            (SCALE_BITS_MIN..=scale_bits_max).contains(&scale) && largest == integer_max
        };
        if !is_valid {
            return Err(DenseFault::Block {
                element: first,
                scale,
            });
        }
    }
    Ok(())
}

#[inline]
fn scale_bits(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

const _: () = assert!(TILE_ELEMENTS.is_multiple_of(BLOCK_ELEMENTS));

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn scales_round_like_bf16() {
        for bits in (0..VALUE_ABS_MAX.to_bits()).step_by(997).chain([
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
            0x7f_ffff,
        ]) {
            let value = f32::from_bits(bits);
            assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "{value}");
            assert_eq!(bf16_bits(-value), bf16::from_f32(-value).to_bits());
        }
    }

    #[test]
    fn quotients_round_to_even_integers() {
        for (quotient, expected) in [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (126.5, 126),
            (127.49, 127),
            (-127.49, -127),
        ] {
            assert_eq!(integer(quotient) as i8, expected, "{quotient}");
        }
    }

    #[test]
    fn tiles_take_their_blocks() {
        assert_eq!(DenseFormat::Int8.tile_bytes(TILE_ELEMENTS), 64 * 66);
        assert_eq!(DenseFormat::Int4.tile_bytes(TILE_ELEMENTS), 64 * 34);
        assert_eq!(DenseFormat::Int8.tile_bytes(65), 66 + 3);
        assert_eq!(DenseFormat::Int4.tile_bytes(67), 34 + 2 + 2);
        assert_eq!(DenseFormat::Int4.tile_bytes(1), 3);
    }
}
