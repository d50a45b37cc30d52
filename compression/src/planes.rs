//! bf16 and f32 elements made shorter for a link.
//!
//! Frames have one encoding per content and zstd does not: so a frame is named and checked as it is, and may travel packed.
//! The high byte of an element (sign and most of the exponent) repeats, the others (last bit of the exponent, and the
//! mantissa) are noise: packed are the other bytes as they are, then the high ones through zstd.
//!
//! What that gives: `gradmesh-bench codec`, one thread of a shared and busy 2 GHz server core, the demo's model (956 thousand
//! parameters) after five rounds and its last update, ratio and MB/s in and out:
//!
//! | bytes | zstd level 1 | level 3 |
//! |---|---|---|
//! | bf16 checkpoint, high bytes | 0.68 at 392, 1302 | - |
//! | bf16 checkpoint, as they lie | 0.78 at 167, 805 | 0.78 at 115, 728 |
//! | dense bf16 frame, high bytes | 0.68 at 233, 963 | - |
//! | dense bf16 frame, as they lie | 0.78 at 687, 802 | 0.78 at 122, 799 |
//! | dense f32 frame, high bytes | 0.84 at 226, 267 | - |
//! | dense f32 frame, as they lie | 0.91 at 373, 660 | 0.91 at 258, 648 |
//! | dense int8, int4 frame | 0.96, 0.89 | 0.96, 0.89 |
//! | sparse frames, k = 32 to 128 | 0.98 to 1.00 | 0.98 to 1.00 |
//!
//! So it pays for bf16 and f32 on links below some hundred Mbit/s, and for integers and sparse frames nowhere: their indices
//! and signs have no slack left. A higher level costs more and gains nothing; all bytes of f32 through zstd, plane by plane,
//! give 0.82 for four times the work.

use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};

/// The level of zstd that the measurement above favours.
pub const LEVEL: i32 = 1;

/// What elements lie in the bytes, each little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    Bf16,
    F32,
}

impl Width {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Why packed bytes are none. Whoever made them is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnpackError {
    #[error("{found} packed bytes cannot be of {len}")]
    Truncated { found: usize, len: usize },
    #[error("high bytes do not unpack to {expected}: {reason}")]
    Planes { expected: usize, reason: String },
}

/// How `len` bytes divide, of which `skip` come before the first whole element: those that stay as they are, and high ones.
fn division(len: usize, width: Width, skip: usize) -> (usize, usize) {
    let elements = len.saturating_sub(skip) / width.bytes();
    (len - elements, elements)
}

/// Packs bytes; holds what zstd needs for that, some hundred KiB.
pub struct Packer {
    zstd: Compressor<'static>,
    high: Vec<u8>,
}

impl Packer {
    #[expect(clippy::new_without_default, reason = "it allocates a lot")]
    pub fn new() -> Self {
        let zstd = Compressor::new(LEVEL).expect("zstd knows level 1");
        let high = Vec::new();
        Self { zstd, high }
    }

    /// Puts `bytes` packed into `out`, in place of what is there. `skip`: how many come before the first whole element. What
    /// follows the last whole one stays as it is.
    pub fn pack(&mut self, bytes: &[u8], width: Width, skip: usize, out: &mut Vec<u8>) {
        let (before, from) = bytes.split_at(skip.min(bytes.len()));
        let (low, high) = division(bytes.len(), width, skip);
        out.clear();
        out.reserve(low + zstd::zstd_safe::compress_bound(high));
        self.high.clear();
        out.extend_from_slice(before);
        let rest = match width {
            Width::Bf16 => {
                let (elements, rest) = from.as_chunks::<2>();
                out.extend(elements.iter().map(|element| element[0]));
                self.high.extend(elements.iter().map(|element| element[1]));
                rest
            }
            Width::F32 => {
                let (elements, rest) = from.as_chunks::<4>();
                let low = out.len();
                out.resize(low + 3 * elements.len(), 0);
                let (places, _) = out[low..].as_chunks_mut::<3>();
                for (place, [a, b, c, _]) in places.iter_mut().zip(elements) {
                    *place = [*a, *b, *c];
                }
                self.high.extend(elements.iter().map(|element| element[3]));
                rest
            }
        };
        out.extend_from_slice(rest);
        let packed = self.zstd.compress(&self.high);
        out.extend(packed.expect("zstd has room for what it makes"));
    }
}

/// Gets packed bytes back; holds what zstd needs for that.
pub struct Unpacker {
    zstd: Decompressor<'static>,
}

impl Unpacker {
    #[expect(clippy::new_without_default, reason = "it allocates a lot")]
    pub fn new() -> Self {
        let zstd = Decompressor::new().expect("zstd has no other dictionary than none");
        Self { zstd }
    }

    /// The `len` bytes that `packed` is of, with `width` and `skip` as they were packed. Allocates in proportion to `len`,
    /// which the caller knows from whoever it trusts; nothing in `packed` makes it more.
    ///
    /// # Errors
    /// [`UnpackError`].
    pub fn unpack(
        &mut self,
        packed: &[u8],
        len: usize,
        width: Width,
        skip: usize,
    ) -> Result<Vec<u8>, UnpackError> {
        let (low, expected) = division(len, width, skip);
        let (low, high) = packed.split_at_checked(low).ok_or(UnpackError::Truncated {
            found: packed.len(),
            len,
        })?;
        let fault = |reason: String| UnpackError::Planes { expected, reason };
        let high = self.zstd.decompress(high, expected);
        let high = high.map_err(|error| fault(error.to_string()))?;
        if high.len() != expected {
            return Err(fault(format!("there are {}", high.len())));
        }
        let mut bytes = vec![0; len];
        let (before, low) = low.split_at(skip.min(len));
        let (first, from) = bytes.split_at_mut(before.len());
        first.copy_from_slice(before);
        let (low, after) = low.split_at(expected * (width.bytes() - 1));
        let rest = match width {
            Width::Bf16 => {
                let (elements, rest) = from.as_chunks_mut::<2>();
                for ((element, &low), high) in elements.iter_mut().zip(low).zip(high) {
                    *element = [low, high];
                }
                rest
            }
            Width::F32 => {
                let (elements, rest) = from.as_chunks_mut::<4>();
                let (low, _) = low.as_chunks::<3>();
                for ((element, &[a, b, c]), high) in elements.iter_mut().zip(low).zip(high) {
                    *element = [a, b, c, high];
                }
                rest
            }
        };
        rest.copy_from_slice(after);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements whose high byte is the same and whose others are not.
    fn elements(len: usize, width: Width, skip: usize) -> Vec<u8> {
        let places = 0..len;
        let is_high =
            |place: usize| place >= skip && (place - skip) % width.bytes() == width.bytes() - 1;
        let byte = |place| match is_high(place) {
            true => 0x3c,
            false => (place * 37 % 251) as u8,
        };
        places.map(byte).collect()
    }

    #[test]
    fn bytes_come_back_and_elements_of_like_size_become_shorter() {
        let (mut packer, mut unpacker, mut packed) = (Packer::new(), Unpacker::new(), Vec::new());
        for width in [Width::Bf16, Width::F32] {
            for skip in 0..width.bytes() {
                for len in [0, 1, 2, 3, 4, 5, 6, 7, 4000, 4001, 4002, 4003] {
                    let bytes = elements(len, width, skip);
                    packer.pack(&bytes, width, skip, &mut packed);
                    let unpacked = unpacker.unpack(&packed, len, width, skip);
                    assert_eq!(unpacked.as_ref(), Ok(&bytes), "{width:?} {skip} {len}");
                    let high = len / width.bytes();
                    assert!(len < 100 || packed.len() < len - high + 64);
                }
            }
        }
    }

    #[test]
    fn bytes_of_another_length_are_refused() {
        let (mut packer, mut unpacker, mut packed) = (Packer::new(), Unpacker::new(), Vec::new());
        let mut unpack = |packed: &[u8], len| unpacker.unpack(packed, len, Width::Bf16, 0);
        packer.pack(&[1, 2, 3, 4, 5, 6, 7, 8], Width::Bf16, 0, &mut packed);
        assert!(matches!(
            unpack(&packed, 6),
            Err(UnpackError::Planes { expected: 3, .. })
        ));
        assert!(unpack(&packed, 10).is_err());
        assert!(unpack(&packed[..6], 8).is_err());
        assert_eq!(
            unpack(&packed, 1000),
            Err(UnpackError::Truncated {
                found: packed.len(),
                len: 1000
            })
        );
        // A bomb: zstd of sixteen megabytes of zeros where four bytes belong.
        let bomb = [
            vec![0; 4],
            zstd::bulk::compress(&vec![0; 1 << 24], 1).unwrap(),
        ]
        .concat();
        assert!(matches!(unpack(&bomb, 8), Err(UnpackError::Planes { .. })));
    }
}
