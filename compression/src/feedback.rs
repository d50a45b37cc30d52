//! Error feedback: what frames left out is sent later.
//!
//! For each element, in f32, each operation rounded by itself:
//!
//! 1. [`ErrorFeedback::accumulate`], once per round: `e = (beta * e) + delta`;
//! 2. [`ErrorFeedback::take`], once per shard: the frame is the quantised e, then `e = e -
//!    dequantised`, for the entries of sparse tiles and all elements of dense ones, whose rounding
//!    error stays in e as well;
//! 3. [`ErrorFeedback::give_back`], for a frame that the round left out: `e = e + dequantised`.
//!
//! Steps 2 and 3 round, so that giving back at once restores e up to half an ulp of the residual
//! and half an ulp of the sum; on f32 frames of a dense codec e is zero after step 2. (SparseLoCo,
//! arXiv 2508.15706, with alpha in the outer step. The same with beta 0.9 is the residual of a
//! shard's owner in a reduce.)

use std::ops::Range;

use thiserror::Error;

use crate::codec::{Codec, EncodeStats, VALUE_ABS_MAX};
use crate::frame::{EncodeError, Frame};
use crate::layout::Tile;

/// Why the feedback was left as it was.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FeedbackError {
    #[error("beta is {beta}, not in 0..=1")]
    Beta { beta: f32 },
    #[error("residual {element} is {value}, which is not finite")]
    Residual { element: usize, value: f32 },
    #[error("update has {found} elements, the residual {expected}")]
    LengthMismatch { found: usize, expected: usize },
    #[error(
        "update brings element {element} to {value}, not a number up to {VALUE_ABS_MAX} in magnitude"
    )]
    Diverged { element: usize, value: f32 },
    #[error("{elements} elements from {start} do not lie in a residual of {residual}")]
    OutsideResidual {
        start: usize,
        elements: usize,
        residual: usize,
    },
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The residual e of one sender, 4 bytes per element, and its decay beta.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFeedback {
    residual: Vec<f32>,
    beta: f32,
}

impl ErrorFeedback {
    /// A residual of zeros.
    ///
    /// # Errors
    /// [`FeedbackError::Beta`] unless `beta` is in `0..=1`.
    pub fn new(elements: usize, beta: f32) -> Result<Self, FeedbackError> {
        Self::restore(vec![0.0; elements], beta)
    }

    /// Goes on from the [`ErrorFeedback::residual`] of a checkpoint.
    ///
    /// # Errors
    /// [`FeedbackError::Beta`] unless `beta` is in `0..=1`; [`FeedbackError::Residual`] for NaN or
    /// infinity.
    pub fn restore(residual: Vec<f32>, beta: f32) -> Result<Self, FeedbackError> {
        if !(0.0..=1.0).contains(&beta) {
            return Err(FeedbackError::Beta { beta });
        }
        if let Some(element) = residual.iter().position(|value| !value.is_finite()) {
            return Err(FeedbackError::Residual {
                element,
                value: residual[element],
            });
        }
        Ok(Self { residual, beta })
    }

    /// e, flat, in the order of the elements; what checkpoint and state root hold.
    #[must_use]
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// Step 1: `e = (beta * e) + delta`.
    ///
    /// # Errors
    /// [`FeedbackError::LengthMismatch`]; [`FeedbackError::Diverged`] when a sum is NaN or above
    /// [`VALUE_ABS_MAX`] in magnitude. In both cases e stays as it was, so that one bad round
    /// does not spoil it.
    pub fn accumulate(&mut self, delta: &[f32]) -> Result<(), FeedbackError> {
        if delta.len() != self.residual.len() {
            return Err(FeedbackError::LengthMismatch {
                found: delta.len(),
                expected: self.residual.len(),
            });
        }
        let beta = self.beta;
        let sum = |(&residual, &delta): (&f32, &f32)| (beta * residual) + delta;
        let in_range = |sum: f32| sum.abs() <= VALUE_ABS_MAX;
        // No early exit, so that it vectorises.
        if !self
            .residual
            .iter()
            .zip(delta)
            .map(sum)
            .fold(true, |all, sum| all & in_range(sum))
        {
            let mut sums = self.residual.iter().zip(delta).map(sum).enumerate();
            if let Some((element, value)) = sums.find(|&(_, sum)| !in_range(sum)) {
                return Err(FeedbackError::Diverged { element, value });
            }
        }
        for (residual, delta) in self.residual.iter_mut().zip(delta) {
            *residual = sum((residual, delta));
        }
        Ok(())
    }

    /// Step 2 for the shard `tiles`, whose first element is the element `start` of the residual
    /// (zero for an owner that keeps a residual for this shard alone): appends its frame to
    /// `out` and keeps what the frame left out.
    ///
    /// # Errors
    /// [`FeedbackError::OutsideResidual`] or [`FeedbackError::Encode`], with e and `out` unchanged.
    pub fn take(
        &mut self,
        start: usize,
        tiles: &[Tile],
        codec: Codec,
        out: &mut Vec<u8>,
    ) -> Result<EncodeStats, FeedbackError> {
        let range = self.range(start, tiles.iter().map(Tile::len).sum())?;
        let residual = &mut self.residual[range];
        let frame = Frame::quantise(residual, tiles, codec)?;
        // e + (-1 * d) has the bits of e - d.
        frame.add_to(residual, -1.0);
        Ok(frame.write(out))
    }

    /// Step 3 for a frame taken at `start`.
    ///
    /// The sum may exceed [`VALUE_ABS_MAX`] (it is at most twice that after one frame); the next
    /// [`ErrorFeedback::accumulate`] tells.
    ///
    /// # Errors
    /// [`FeedbackError::OutsideResidual`], with e unchanged.
    pub fn give_back(&mut self, start: usize, frame: &Frame) -> Result<(), FeedbackError> {
        let range = self.range(start, frame.elements())?;
        frame.add_to(&mut self.residual[range], 1.0);
        Ok(())
    }

    fn range(&self, start: usize, elements: usize) -> Result<Range<usize>, FeedbackError> {
        match start.checked_add(elements) {
            Some(end) if end <= self.residual.len() => Ok(start..end),
            _ => Err(FeedbackError::OutsideResidual {
                start,
                elements,
                residual: self.residual.len(),
            }),
        }
    }
}
