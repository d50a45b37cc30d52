//! The aggregate of a shard: `sum_i w_i * clip_i * v_i / sum_i w_i` over the accepted members i in
//! canonical order, with v_i their decoded frames of this shard, w_i tokens and clip_i the clip to
//! the median norm. A member that did not send an element counts with zero, so that a lone sender
//! moves an element by no more than its share of the tokens.
//!
//! Norms, clips and weights are those of the shard: its aggregate is a function of the frames of
//! this shard alone, so that a shard's owner computes what everybody else would.
//!
//! Why the bits are equal on all machines: the members come in an order that the round has decided,
//! every operation below is a single IEEE 754 operation on numbers that are equal everywhere, and
//! for each element the order of the additions is the order of the members. Shards are independent
//! of each other; they may be summed anywhere in any order.
//!
//! - Rule "norm": the squared norm of a frame is the f64 sum, in flat order of the tiles, of the
//!   sums of squares of its tiles; the norm is its square root in f64. A dense tile's sum of
//!   squares is the f64 sum in index order; a sparse tile's is ((entries at the low level) * low^2 +
//!   (entries at the high level) * high^2) + peak^2 in f64, the peak not counted among the entries; with
//!   4 value bits it is the f64 sum, started from zero, of (entries at the level) * level^2 from the
//!   highest of the seven levels down, and of peak^2 last.
//! - Rule "median": of the norms that are not zero, in ascending order, the one at position (n - 1)
//!   / 2 rounded down: the lower of the two middle ones when n is even. Zero updates are left out
//!   because they say nothing on how large an update is; otherwise idle members would clip the
//!   others to nothing.
//! - Rule "clip": clip_i = median / norm_i in f64 where norm_i exceeds the median, else 1.
//! - Rule "weight": weight_i = f32(f64(w_i) * clip_i / f64(sum of all w)), the product first.
//! - Rule "sum": an element starts as zero; for each member in order, f32(weight_i * v_i) is added
//!   in f32.
//!
//! Overflow cannot happen: a weight is at most 1 and a value at most 2^15, so that an element of N
//! members stays below N * 2^15 whatever the weights; infinity would need N > 2^112.
//!
//! Error bound (derivation): with u = 2^-24, weight_i has a relative error of at most u + 3 * 2^-53
//! against exact arithmetic on the same clip, the product one of u, and each of the N additions one
//! of u of the partial sum, which the sum of magnitudes M = sum_i |weight_i * v_i| bounds up to the
//! same errors. In total at most (N + 3) * u * M, and 2^-149 per member for subnormal weights and
//! products.

use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

use crate::codec::Codec;
use crate::frame::{DecodeError, Frame};
use crate::layout::{TILE_ELEMENTS, Tile};

/// Why members cannot be weighed: our caller is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AggregateError {
    #[error("{tokens} token counts for {norms} norms")]
    LengthMismatch { tokens: usize, norms: usize },
    #[error("the members have no tokens")]
    NoTokens,
    #[error("the members' tokens exceed a 64-bit count")]
    TooManyTokens,
}

/// Norm of a member's frame of one shard (rule "norm").
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct FrameNorm {
    squared: f64,
}

impl FrameNorm {
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        Self::of_squares(frame.squares())
    }

    /// `squares`: the sums of squares of the tiles, in order.
    fn of_squares(squares: impl Iterator<Item = f64>) -> Self {
        Self {
            squared: squares.fold(0.0, |sum, squares| sum + squares),
        }
    }

    /// In units of the parameters. Finite: at most 2^15 * 2^18 for the largest model.
    #[must_use]
    pub fn get(self) -> f64 {
        self.squared.sqrt()
    }
}

/// A member's frame of one shard between the two passes of a sum: checked, its norm known, ready to
/// be added once the weights of all members are.
///
/// Memory: of a sparse frame what it decodes to, 2 bytes per entry; a dense one is read where it
/// lies, so that those of many members can be kept at once.
#[derive(Debug)]
pub struct Contribution<'a> {
    norm: FrameNorm,
    /// Of a dense frame, without its elements.
    frame: Frame,
    /// The elements of a dense frame, where they lie.
    dense: &'a [u8],
}

impl<'a> Contribution<'a> {
    /// Checks the frame that fills `bytes`, sent as the frame of `tiles`.
    ///
    /// # Errors
    /// [`DecodeError`]: whoever made these bytes is at fault.
    pub fn read(bytes: &'a [u8], tiles: &[Tile], codec: Codec) -> Result<Self, DecodeError> {
        let mut dense: &[u8] = &[];
        let frame = Frame::read(bytes, tiles, codec, |part| {
            dense = part;
            Bytes::new()
        })?;
        let squares = frame.squares_with(dense);
        Ok(Self {
            norm: FrameNorm::of_squares(squares),
            frame,
            dense,
        })
    }

    #[must_use]
    pub const fn norm(&self) -> FrameNorm {
        self.norm
    }
}

/// The aggregate of `members`, frames of the same tiles in canonical order with their weights (rule
/// "sum"), tile by tile: `take` gets each tile's place among the shard's elements and its aggregate,
/// while that is in the cache. Without members it gets nothing.
pub fn sum_by_tile(
    members: &[(Contribution<'_>, Weight)],
    mut take: impl FnMut(Range<usize>, &[f32]),
) {
    let mut frames: Vec<_> = members
        .iter()
        .map(|(member, weight)| {
            (
                &member.frame,
                member.frame.parts_with(member.dense),
                weight.0,
            )
        })
        .collect();
    let mut sum = vec![0.0; TILE_ELEMENTS];
    loop {
        let mut tile = None;
        for (frame, parts, weight) in &mut frames {
            let Some((range, part)) = parts.next() else {
                return;
            };
            let of_tile = &mut sum[..range.len()];
            if tile.is_none() {
                of_tile.fill(0.0);
            }
            frame.add_part(&part, of_tile, *weight);
            tile = Some(range);
        }
        let Some(range) = tile else {
            return;
        };
        take(range.clone(), &sum[..range.len()]);
    }
}

/// Share of a member in the aggregate, clip included, in `0..=1`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Weight(f32);

impl Weight {
    #[must_use]
    pub const fn get(self) -> f32 {
        self.0
    }
}

/// Weights of the members (rules "median", "clip" and "weight"), in their order. `tokens[i]` and
/// `norms[i]` are those of member i. With default norms nothing is clipped.
///
/// # Errors
/// [`AggregateError::LengthMismatch`]; [`AggregateError::NoTokens`] when the tokens are all zero,
/// or no member is left; [`AggregateError::TooManyTokens`] when their sum exceeds `u64`.
pub fn weights(tokens: &[u64], norms: &[FrameNorm]) -> Result<Vec<Weight>, AggregateError> {
    if tokens.len() != norms.len() {
        return Err(AggregateError::LengthMismatch {
            tokens: tokens.len(),
            norms: norms.len(),
        });
    }
    let total = tokens
        .iter()
        .try_fold(0_u64, |sum, &tokens| sum.checked_add(tokens));
    let total = total.ok_or(AggregateError::TooManyTokens)?;
    if total == 0 {
        return Err(AggregateError::NoTokens);
    }
    let norms: Vec<f64> = norms.iter().map(|norm| norm.get()).collect();
    let median = median(&norms);
    let weight = |(&tokens, &norm): (&u64, &f64)| {
        let clip = if norm > median { median / norm } else { 1.0 };
        Weight((tokens as f64 * clip / total as f64) as f32)
    };
    Ok(tokens.iter().zip(&norms).map(weight).collect())
}

/// Rule "median"; zero when all norms are.
fn median(norms: &[f64]) -> f64 {
    let mut norms: Vec<f64> = norms.iter().copied().filter(|&norm| norm > 0.0).collect();
    if norms.is_empty() {
        return 0.0;
    }
    let middle = (norms.len() - 1) / 2;
    *norms.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(norm: f64) -> FrameNorm {
        FrameNorm {
            squared: norm * norm,
        }
    }

    fn weights_of(tokens: &[u64], norms: &[f64]) -> Vec<f32> {
        let norms: Vec<_> = norms.iter().copied().map(norm).collect();
        weights(tokens, &norms)
            .unwrap()
            .into_iter()
            .map(Weight::get)
            .collect()
    }

    #[test]
    fn larger_norms_are_clipped_to_the_lower_median() {
        assert_eq!(
            weights_of(&[1, 1, 1, 1], &[8.0, 1.0, 4.0, 2.0]),
            [0.0625, 0.25, 0.125, 0.25]
        );
        assert_eq!(weights_of(&[1, 1], &[4.0, 1.0]), [0.125, 0.5]);
        assert_eq!(weights_of(&[2, 1, 1], &[4.0, 1.0, 2.0]), [0.25, 0.25, 0.25]);
    }

    #[test]
    fn zero_updates_take_no_part_in_the_median_but_in_the_mean() {
        assert_eq!(weights_of(&[1, 1, 1, 1], &[0.0, 0.0, 0.0, 3.0]), [0.25; 4]);
        assert_eq!(weights_of(&[1, 3], &[0.0, 0.0]), [0.25, 0.75]);
    }

    #[test]
    fn members_without_tokens_weigh_nothing() {
        assert_eq!(weights_of(&[0, 5], &[1.0, 1.0]), [0.0, 1.0]);
        assert_eq!(weights(&[], &[]), Err(AggregateError::NoTokens));
        assert_eq!(
            weights(&[0, 0], &[norm(1.0); 2]),
            Err(AggregateError::NoTokens)
        );
    }

    #[test]
    fn token_counts_that_overflow_are_refused() {
        assert_eq!(
            weights(&[u64::MAX, 1], &[norm(1.0); 2]),
            Err(AggregateError::TooManyTokens)
        );
        assert_eq!(weights_of(&[u64::MAX, 0], &[1.0, 1.0]), [1.0, 0.0]);
        assert_eq!(
            weights(&[1], &[]),
            Err(AggregateError::LengthMismatch {
                tokens: 1,
                norms: 0
            })
        );
    }
}
