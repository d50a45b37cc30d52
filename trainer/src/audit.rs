//! What an auditor computes: a segment done again, how far the claimed one is from it, whether an update was compressed as it
//! had to be, and what it does to the loss.
//!
//! Errors are of **updates**, relative to the update that was done again, never of weights: those of a peer that did nothing
//! differ from the right ones by a thousandth.
//!
//! What is measured comes out as integers, for verdicts: parts per billion (ppb), rounded to the nearest.

#[cfg(test)]
mod tests;

use std::ops::Range;

use gradmesh_compression::{
    Codec, ErrorFeedback, FeedbackError, Frame, Layout, LayoutError, TensorSpec,
};
use gradmesh_protocol::header::Stage;

use crate::replica::{Shape, UpdateError};
use crate::training::{Batch, BatchSource, StateError, TrainError, TrainTask, Trainer};
use crate::work::{WorkState, mean_micro};

/// A segment done again.
#[derive(Debug, Clone, PartialEq)]
pub struct Redone {
    /// The state after it.
    pub state: WorkState,
    pub tokens: u64,
    /// Mean over its steps, in millionths of a nat per token.
    pub loss_micronats: u64,
    /// Mean over its steps, before clipping, in millionths.
    pub gradient_norm_micro: u64,
}

/// Why a segment was not done again.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    /// The state that the audited peer serves.
    #[error("state before the segment: {0}")]
    State(#[from] StateError),
    /// The trainer, or the data.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Does the steps `steps` of a round again, from `start`. What the trainer held before is lost.
///
/// `global_step`: inner steps of the run before `steps.start`.
///
/// # Errors
/// [`RedoError`].
pub fn redo(
    trainer: &mut dyn Trainer,
    start: &WorkState,
    steps: Range<u32>,
    global_step: u64,
    batches: &mut dyn BatchSource,
) -> Result<Redone, RedoError> {
    trainer.set_inner_state(&start.inner)?;
    let task = TrainTask {
        first_step: steps.start,
        steps: steps.end.saturating_sub(steps.start),
        global_step,
    };
    let (mut loss, mut norm) = (0f64, 0f64);
    let report = trainer.train(&start.theta, &task, batches, &mut |step| {
        loss += f64::from(step.loss);
        norm += f64::from(step.gradient_norm);
        true
    })?;
    Ok(Redone {
        state: WorkState {
            theta: trainer.take_local(),
            inner: trainer.inner_state()?,
        },
        tokens: report.tokens,
        loss_micronats: mean_micro(loss, report.steps),
        gradient_norm_micro: mean_micro(norm, report.steps),
    })
}

/// `|claimed - redone| / |redone - start|` in the Euclidean norm, in parts per billion; `u64::MAX` where that is no number:
/// for values that are not finite, for another length, and for a claim that differs where nothing was learnt.
///
/// Sums in f64, in the order of the elements.
pub fn relative_error_ppb(start: &[f32], claimed: &[f32], redone: &[f32]) -> u64 {
    if claimed.len() != redone.len() || start.len() != redone.len() {
        return u64::MAX;
    }
    let (mut error, mut update) = (0f64, 0f64);
    for ((start, claimed), redone) in start.iter().zip(claimed).zip(redone) {
        error += (f64::from(*claimed) - f64::from(*redone)).powi(2);
        update += (f64::from(*redone) - f64::from(*start)).powi(2);
    }
    ratio_ppb(error, update)
}

/// sqrt(error / update) in parts per billion.
fn ratio_ppb(error: f64, update: f64) -> u64 {
    if error == 0.0 {
        return 0;
    }
    let ratio = libm::sqrt(error / update) * 1e9;
    // The cast saturates: infinity, of an update of zero, becomes the largest number.
    if ratio.is_nan() {
        u64::MAX
    } else {
        ratio.round() as u64
    }
}

/// What the compression of one tile is checked by. Slices as long as the tile.
#[derive(Debug, Clone, Copy)]
pub struct TileInputs<'a> {
    /// The tile.
    pub tile: usize,
    /// Error feedback before the update.
    pub feedback_before: &'a [f32],
    /// What training began from.
    pub start: &'a [f32],
    /// The local parameters after it.
    pub local: &'a [f32],
    /// Error feedback after the update.
    pub feedback_after: &'a [f32],
}

/// What is wrong with the compression of a tile. The peer is to blame.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TileFault {
    #[error("there is no such tile")]
    NoTile,
    #[error("{what} has {got} elements, the tile {expected}")]
    Length {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    #[error("the update has no frame of its shard that decodes: {0}")]
    Frame(String),
    #[error("what was learnt cannot be sent: {0}")]
    Feedback(#[from] FeedbackError),
    #[error("element {element} was sent as {sent}, the codec gives {expected}")]
    Sent {
        element: usize,
        sent: f32,
        expected: f32,
    },
    #[error("element {element} has {found} left of it, the codec leaves {expected}")]
    Left {
        element: usize,
        found: f32,
        expected: f32,
    },
    #[error("the tile cannot be laid out: {0}")]
    Layout(#[from] LayoutError),
}

/// Whether one tile was compressed by the rules, bit for bit: with e = beta before + (start - local), the codec selects and
/// quantises e to what the frame has, and after is e less that.
///
/// `frames`: of the whole update, by shard, at `stage`. A tile's part of a frame does not depend on the tiles beside it (only the
/// way in which indices are written does), so that the codec is asked about the tile alone.
///
/// # Errors
/// [`TileFault`].
pub fn check_tile(
    shape: &Shape,
    stage: Stage,
    inputs: &TileInputs<'_>,
    frames: &[impl AsRef<[u8]>],
) -> Result<(), TileFault> {
    let tile = shape.layout().tiles().get(inputs.tile);
    let tile = *tile.ok_or(TileFault::NoTile)?;
    for (what, values) in [
        ("feedback before", inputs.feedback_before),
        ("start", inputs.start),
        ("local parameters", inputs.local),
        ("feedback after", inputs.feedback_after),
    ] {
        if values.len() != tile.len() {
            return Err(TileFault::Length {
                what,
                got: values.len(),
                expected: tile.len(),
            });
        }
    }
    let sent = sent_of(shape, stage, inputs.tile, frames)?;
    let (expected_sent, expected_left) = compress(shape, stage, inputs, tile)?;
    let differ = |a: &f32, b: &f32| a.to_bits() != b.to_bits();
    let pairs = || sent.iter().zip(&expected_sent).enumerate();
    // A value that is not sent is zero on both sides, whatever its sign.
    if let Some((element, (sent, expected))) = pairs().find(|(_, (a, b))| a != b) {
        return Err(TileFault::Sent {
            element,
            sent: *sent,
            expected: *expected,
        });
    }
    let mut left = inputs.feedback_after.iter().zip(&expected_left).enumerate();
    match left.find(|(_, (a, b))| differ(a, b)) {
        None => Ok(()),
        Some((element, (found, expected))) => Err(TileFault::Left {
            element,
            found: *found,
            expected: *expected,
        }),
    }
}

/// What the update has of a tile, dequantised.
fn sent_of(
    shape: &Shape,
    stage: Stage,
    tile: usize,
    frames: &[impl AsRef<[u8]>],
) -> Result<Vec<f32>, TileFault> {
    let shard = shape.shard_of_tile(tile).ok_or(TileFault::NoTile)?;
    let bytes = frames
        .get(shard)
        .ok_or_else(|| TileFault::Frame("it is missing".to_owned()))?;
    let frame = shape
        .decode(stage, shard, bytes.as_ref())
        .map_err(|error| TileFault::Frame(error.to_string()))?;
    let mut values = vec![0.0; frame.elements()];
    frame.dequantise_into(&mut values);
    let first = shape.shard_elements(shard).ok_or(TileFault::NoTile)?.start;
    let elements = shape.layout().tiles()[tile].elements();
    let values = values.get(elements.start - first..elements.end - first);
    Ok(values.ok_or(TileFault::NoTile)?.to_vec())
}

/// What the codec makes of a tile alone: what it sends, and what it leaves.
fn compress(
    shape: &Shape,
    stage: Stage,
    inputs: &TileInputs<'_>,
    tile: gradmesh_compression::Tile,
) -> Result<(Vec<f32>, Vec<f32>), TileFault> {
    let codec: Codec = shape.config().codec(stage);
    let alone = Layout::new(&[TensorSpec {
        elements: tile.len(),
        mode: tile.mode(),
    }])?;
    let before = inputs.feedback_before;
    let beta = shape.config().feedback_beta;
    // Feedback of zeros is kept as none, as the peer's own is where nothing was ever left out.
    let mut feedback = match before.iter().all(|value| value.to_bits() == 0) {
        true => ErrorFeedback::new(before.len(), beta)?,
        false => ErrorFeedback::restore(before.to_vec(), beta)?,
    };
    let delta = inputs.start.iter().zip(inputs.local).map(|(s, l)| s - l);
    let delta: Vec<f32> = delta.collect();
    let mut bytes = Vec::new();
    feedback.send(0, alone.tiles(), codec, &delta, &mut bytes)?;
    let frame: Frame = gradmesh_compression::decode(&bytes, alone.tiles(), codec)
        .map_err(|error| TileFault::Frame(error.to_string()))?;
    let mut sent = vec![0.0; tile.len()];
    frame.dequantise_into(&mut sent);
    let left = match feedback.residual() {
        Some(residual) => residual.to_vec(),
        None => vec![0.0; tile.len()],
    };
    Ok((sent, left))
}

/// An update as its frames say it, flat.
///
/// # Errors
/// [`UpdateError::Shards`], [`UpdateError::Frame`] unless `frames` are one for each shard, encoded at `stage`.
pub fn decode_update(
    shape: &Shape,
    stage: Stage,
    frames: &[impl AsRef<[u8]>],
) -> Result<Vec<f32>, UpdateError> {
    if frames.len() != shape.shard_count() {
        return Err(UpdateError::Shards {
            frames: frames.len(),
            shards: shape.shard_count(),
        });
    }
    let mut update = Vec::with_capacity(shape.layout().elements());
    for (shard, bytes) in frames.iter().enumerate() {
        let frame = shape
            .decode(stage, shard, bytes.as_ref())
            .map_err(|source| UpdateError::Frame { shard, source })?;
        let first = update.len();
        update.resize(first + frame.elements(), 0.0);
        frame.dequantise_into(&mut update[first..]);
    }
    Ok(update)
}

/// Mean loss over `batches` at `theta`, and at `theta - update`: the same batches for both.
///
/// # Errors
/// [`TrainError`]; for a loss that is not finite, too.
pub fn paired_loss(
    trainer: &mut dyn Trainer,
    theta: &[f32],
    update: &[f32],
    batches: &[Batch],
) -> Result<(f32, f32), TrainError> {
    let moved: Vec<f32> = theta.iter().zip(update).map(|(t, u)| t - u).collect();
    let mut mean = |theta: &[f32]| {
        let (mut sum, mut predictions) = (0f64, 0u64);
        for batch in batches {
            sum += f64::from(trainer.loss(theta, batch)?) * batch.predictions() as f64;
            predictions += batch.predictions();
        }
        Ok::<f32, TrainError>((sum / predictions.max(1) as f64) as f32)
    };
    Ok((mean(theta)?, mean(&moved)?))
}
