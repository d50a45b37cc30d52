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
//! arXiv 2508.15706, with alpha in the outer step. The same, over one shard and with its own beta,
//! is the residual of a shard's owner.)
//!
//! A residual of zeros takes no memory: that of a dense f32 run has none until a round leaves
//! something out.

use std::ops::Range;

use thiserror::Error;

use crate::codec::{Codec, DenseFormat, EncodeStats, VALUE_ABS_MAX, encode};
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

/// The residual e of one sender, 4 bytes per element unless it is zero, and its decay beta.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFeedback {
    elements: usize,
    /// Empty while all elements are zero, and `elements` long otherwise.
    residual: Vec<f32>,
    beta: f32,
}

impl ErrorFeedback {
    /// A residual of zeros.
    ///
    /// # Errors
    /// [`FeedbackError::Beta`] unless `beta` is in `0..=1`.
    pub fn new(elements: usize, beta: f32) -> Result<Self, FeedbackError> {
        if !(0.0..=1.0).contains(&beta) {
            return Err(FeedbackError::Beta { beta });
        }
        Ok(Self {
            elements,
            residual: Vec::new(),
            beta,
        })
    }

    /// Goes on from the residual of a checkpoint, zeros included.
    ///
    /// # Errors
    /// [`FeedbackError::Beta`] unless `beta` is in `0..=1`; [`FeedbackError::Residual`] for NaN or
    /// infinity.
    pub fn restore(residual: Vec<f32>, beta: f32) -> Result<Self, FeedbackError> {
        let zero = Self::new(residual.len(), beta)?;
        if let Some(element) = residual.iter().position(|value| !value.is_finite()) {
            return Err(FeedbackError::Residual {
                element,
                value: residual[element],
            });
        }
        Ok(Self { residual, ..zero })
    }

    /// Elements that the residual covers.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.elements
    }

    /// e, flat, in the order of the elements; what checkpoint and state root hold. `None` while
    /// nothing was ever left out: all of it is zero.
    #[must_use]
    pub fn residual(&self) -> Option<&[f32]> {
        (!self.residual.is_empty()).then_some(&self.residual)
    }

    /// Whether step 1 with `start - local` for all elements would go well; changes nothing.
    ///
    /// # Errors
    /// [`FeedbackError::LengthMismatch`], [`FeedbackError::Diverged`].
    pub fn check(&self, start: &[f32], local: &[f32]) -> Result<(), FeedbackError> {
        check_length(start, self.elements)?;
        self.check_part(0, start, local)
    }

    /// The same for the elements from `first` on, as many as `start` and `local` have.
    ///
    /// # Errors
    /// Those of [`ErrorFeedback::check`], an element counted from the first of all; [`FeedbackError::OutsideResidual`].
    pub fn check_part(
        &self,
        first: usize,
        start: &[f32],
        local: &[f32],
    ) -> Result<(), FeedbackError> {
        let range = self.range(first, start.len())?;
        check_length(local, start.len())?;
        let deltas = || start.iter().zip(local).map(|(start, local)| start - local);
        match self.residual.get(range) {
            Some(residual) => {
                let sums = || {
                    residual
                        .iter()
                        .zip(deltas())
                        .map(|(e, d)| (self.beta * e) + d)
                };
                check_range(first, sums)
            }
            None => check_range(first, deltas),
        }
    }

    /// Step 1 for the elements from `start` on, as many as `delta` has; once per round for each.
    ///
    /// # Errors
    /// [`FeedbackError::OutsideResidual`]; [`FeedbackError::Diverged`], its element counted from
    /// `start`, when a sum is NaN or above [`VALUE_ABS_MAX`] in magnitude. In both cases e stays as
    /// it was, so that one bad round does not spoil it.
    pub fn accumulate(&mut self, start: usize, delta: &[f32]) -> Result<(), FeedbackError> {
        let range = self.check_shard(start, delta)?;
        let beta = self.beta;
        accumulate(&mut self.allocated()[range], beta, delta);
        Ok(())
    }

    /// Whether [`ErrorFeedback::accumulate`] would go well, and for which elements; changes nothing.
    ///
    /// # Errors
    /// Those of [`ErrorFeedback::accumulate`].
    pub fn check_shard(&self, start: usize, delta: &[f32]) -> Result<Range<usize>, FeedbackError> {
        let range = self.range(start, delta.len())?;
        let sum = |(residual, delta): (&f32, &f32)| (self.beta * residual) + delta;
        match self.residual.get(range.clone()) {
            Some(residual) => check_range(0, || residual.iter().zip(delta).map(sum))?,
            None => check_range(0, || delta.iter().copied())?,
        }
        Ok(range)
    }

    /// Whether frames of `codec` take all of an update: e is zero before and after. Then [`ErrorFeedback::send`] refuses
    /// what [`ErrorFeedback::check`] would, and nothing has changed.
    #[must_use]
    pub fn is_passed_by(&self, codec: Codec) -> bool {
        self.residual.is_empty() && codec == Codec::Dense(DenseFormat::F32)
    }

    /// Steps 1 and 2 for the shard `tiles` from the element `start` on, whose update is `delta`:
    /// appends its frame to `out`.
    ///
    /// # Errors
    /// Those of [`ErrorFeedback::accumulate`] and [`ErrorFeedback::take`], with `out` unchanged.
    /// Only an error of the former leaves e as it was.
    pub fn send(
        &mut self,
        start: usize,
        tiles: &[Tile],
        codec: Codec,
        delta: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<EncodeStats, FeedbackError> {
        if self.is_passed_by(codec) {
            self.range(start, delta.len())?;
            return Ok(encode(delta, tiles, codec, out)?);
        }
        self.accumulate(start, delta)?;
        self.take(start, tiles, codec, out)
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
        take(&mut self.allocated()[range], tiles, codec, out)
    }

    /// What shards with `elements` each have of e, one after the other from the element `start` on: each can be sent by
    /// itself, in frames of `codec`.
    ///
    /// # Errors
    /// [`FeedbackError::OutsideResidual`].
    pub fn parts(
        &mut self,
        start: usize,
        elements: &[usize],
        codec: Codec,
    ) -> Result<Vec<FeedbackPart<'_>>, FeedbackError> {
        let range = self.range(start, elements.iter().sum())?;
        let beta = self.beta;
        let mut rest = match self.is_passed_by(codec) {
            true => None,
            false => Some(&mut self.allocated()[range]),
        };
        let parts = elements.iter().map(|&elements| FeedbackPart {
            residual: rest.as_mut().and_then(|e| e.split_off_mut(..elements)),
            elements,
            beta,
            codec,
        });
        Ok(parts.collect())
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
        frame.add_to(&mut self.allocated()[range], 1.0);
        Ok(())
    }

    /// Keeps an update that no frame is taken of, without decay: `e = e + (start - local)`.
    ///
    /// # Errors
    /// Those of [`ErrorFeedback::check`], with e unchanged.
    pub fn fold(&mut self, start: &[f32], local: &[f32]) -> Result<(), FeedbackError> {
        let beta = std::mem::replace(&mut self.beta, 1.0);
        let checked = self.check(start, local);
        self.beta = beta;
        checked?;
        let deltas = start.iter().zip(local).map(|(start, local)| start - local);
        for (residual, delta) in self.allocated().iter_mut().zip(deltas) {
            *residual += delta;
        }
        Ok(())
    }

    fn range(&self, start: usize, elements: usize) -> Result<Range<usize>, FeedbackError> {
        match start.checked_add(elements) {
            Some(end) if end <= self.elements => Ok(start..end),
            _ => Err(FeedbackError::OutsideResidual {
                start,
                elements,
                residual: self.elements,
            }),
        }
    }

    fn allocated(&mut self) -> &mut [f32] {
        if self.residual.is_empty() {
            self.residual = vec![0.0; self.elements];
        }
        &mut self.residual
    }
}

/// What one shard has of an [`ErrorFeedback`]. Those of different shards can be sent side by side.
#[derive(Debug)]
pub struct FeedbackPart<'a> {
    /// `None`: zero, for the frames take all of an update.
    residual: Option<&'a mut [f32]>,
    elements: usize,
    beta: f32,
    codec: Codec,
}

impl FeedbackPart<'_> {
    /// e of these elements; `None`: zero, as it was.
    #[must_use]
    pub fn residual(&self) -> Option<&[f32]> {
        self.residual.as_deref()
    }

    /// Steps 1 and 2 for the shard `tiles`, whose update is `delta`: appends its frame to `out`.
    ///
    /// # Errors
    /// [`FeedbackError::LengthMismatch`], [`FeedbackError::Diverged`], with e unchanged, and [`FeedbackError::Encode`]; all
    /// with `out` unchanged.
    pub fn send(
        &mut self,
        tiles: &[Tile],
        delta: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<EncodeStats, FeedbackError> {
        check_length(delta, self.elements)?;
        let Some(residual) = &mut self.residual else {
            return Ok(encode(delta, tiles, self.codec, out)?);
        };
        let sum = |(residual, delta): (&f32, &f32)| (self.beta * residual) + delta;
        check_range(0, || residual.iter().zip(delta).map(sum))?;
        accumulate(residual, self.beta, delta);
        take(residual, tiles, self.codec, out)
    }
}

/// Step 1, checked before.
fn accumulate(residual: &mut [f32], beta: f32, delta: &[f32]) {
    for (residual, delta) in residual.iter_mut().zip(delta) {
        *residual = (beta * *residual) + delta;
    }
}

/// Step 2.
fn take(
    residual: &mut [f32],
    tiles: &[Tile],
    codec: Codec,
    out: &mut Vec<u8>,
) -> Result<EncodeStats, FeedbackError> {
    let frame = Frame::quantise(residual, tiles, codec)?;
    // e + (-1 * d) has the bits of e - d.
    frame.add_to(residual, -1.0);
    Ok(frame.write(out))
}

fn check_length(update: &[f32], expected: usize) -> Result<(), FeedbackError> {
    let found = update.len();
    if found == expected {
        Ok(())
    } else {
        Err(FeedbackError::LengthMismatch { found, expected })
    }
}

/// Finds the first of `sums` that step 1 refuses; its element is counted from `first`.
fn check_range<I: Iterator<Item = f32>>(
    first: usize,
    sums: impl Fn() -> I,
) -> Result<(), FeedbackError> {
    let in_range = |sum: f32| sum.abs() <= VALUE_ABS_MAX;
    // No early exit, so that it vectorises.
    if sums().fold(true, |all, sum| all & in_range(sum)) {
        return Ok(());
    }
    match sums().enumerate().find(|&(_, sum)| !in_range(sum)) {
        Some((element, value)) => Err(FeedbackError::Diverged {
            element: first + element,
            value,
        }),
        None => Ok(()),
    }
}
