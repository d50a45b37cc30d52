//! This peer's own update: from what training changed to frames, and back where a round left them out.

use std::ops::Range;

use gradmesh_compression::{
    Codec, DecodeError, ErrorFeedback, FeedbackError, FeedbackPart, Frame, Tile,
};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;

use super::Replica;
use super::leaves::hash_values;
use crate::workers::each;

/// Why an own update cannot be taken in; the replica is as before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpdateError {
    #[error("{frames} frames or flags for {shards} shards")]
    Shards { frames: usize, shards: usize },
    #[error("shards {}..{} of a model with {model}", .shards.start, .shards.end)]
    NoShards { shards: Range<usize>, model: usize },
    #[error("own frame of shard {shard}: {source}")]
    Frame { shard: usize, source: DecodeError },
    #[error("local training has diverged: {0}")]
    Feedback(#[from] FeedbackError),
}

/// An own update, ready to be committed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// One per shard that it is of, in order.
    pub frames: Vec<Vec<u8>>,
    /// Root over the error feedback, and the drift if there is any, before the update went in.
    pub feedback_before: Hash,
    /// Root over them after all frames were taken.
    pub feedback_after: Hash,
}

/// This peer's own update in a decided round.
#[derive(Debug, Clone)]
pub struct OwnUpdate<'a> {
    /// The stage that it was encoded at.
    pub stage: Stage,
    /// The shards that it is of.
    pub shards: Range<usize>,
    /// [`Update::frames`] as committed; those of accepted shards are not looked at.
    pub frames: &'a [Vec<u8>],
    /// One per shard: whether the decision names it. All false for an update that missed the round.
    pub accepted: &'a [bool],
}

impl Replica {
    /// Takes in what local training did from `start` to `local` and gives the frames of `stage` to commit to (rule
    /// "update").
    ///
    /// Cost: two passes over the elements and a hash of the error feedback, shards side by side in a pool
    /// ([`crate::workers`]). Memory: the frames, and one shard of f32 for each thread.
    ///
    /// # Errors
    /// [`UpdateError::Feedback`], also for slices that are not as long as theta, and for NaN in `local`.
    pub fn update(
        &mut self,
        start: &[f32],
        local: &[f32],
        stage: Stage,
    ) -> Result<Update, UpdateError> {
        self.update_of(self.all_shards(), Some(start), local, stage)
    }

    /// [`Self::update`] of `shards` alone: what training did in others becomes drift, and the drift of these goes with it
    /// (rule "drift"). Without `start` it is [`Self::start`] as it is, which nobody has to copy.
    ///
    /// Cost beside that of an update of these shards: with drift, a pass over all elements and a hash of them. Memory: once
    /// more as long as theta.
    ///
    /// # Errors
    /// Those of [`Self::update`]; [`UpdateError::NoShards`].
    pub fn update_of(
        &mut self,
        shards: Range<usize>,
        start: Option<&[f32]>,
        local: &[f32],
        stage: Stage,
    ) -> Result<Update, UpdateError> {
        self.check_range(&shards)?;
        let codec = self.shape.config.codec(stage);
        let drifts = !self.drift.values().is_empty() || shards != self.all_shards();
        let whole_start = start.unwrap_or(&self.theta);
        let lengths_differ =
            whole_start.len() != self.theta.len() || local.len() != self.theta.len();
        if lengths_differ {
            self.feedback.check(whole_start, local)?;
        } else if !drifts && !self.feedback.is_passed_by(codec) {
            let checked = each(self.shape.shards.iter(), |at| {
                let (start, local) = (
                    &whole_start[at.elements.clone()],
                    &local[at.elements.clone()],
                );
                self.feedback.check_part(at.elements.start, start, local)
            });
            checked.into_iter().collect::<Result<(), _>>()?;
        }
        let feedback_before = self.feedback_root();
        if drifts {
            let drift = self.drifted(start, local)?;
            for at in &self.shape.shards[shards.clone()] {
                let first = at.elements.start;
                self.feedback
                    .check_shard(first, &drift[at.elements.clone()])?;
            }
            self.set_drift(drift);
        }
        // Fails only where nothing changes: what goes through the feedback was checked before.
        let frames = self.frames_of(shards, start, local, codec)?;
        if drifts {
            self.rehash_drift();
        }
        Ok(Update {
            frames,
            feedback_before,
            feedback_after: self.feedback_root(),
        })
    }

    /// Sends through the error feedback what is drift in `shards`, which then is none, or without any drift what is between
    /// `start` and `local`.
    fn frames_of(
        &mut self,
        shards: Range<usize>,
        start: Option<&[f32]>,
        local: &[f32],
        codec: Codec,
    ) -> Result<Vec<Vec<u8>>, FeedbackError> {
        let Self {
            shape,
            theta,
            feedback,
            feedback_leaves,
            drift,
            ..
        } = self;
        let start = start.unwrap_or(theta);
        let places = &shape.shards[shards];
        let Some(first) = places.first() else {
            return Ok(Vec::new());
        };
        let counts: Vec<usize> = places.iter().map(|at| at.elements.len()).collect();
        let parts = feedback.parts(first.elements.start, &counts, codec)?;
        let mut leaves = &mut feedback_leaves[first.tiles.start..];
        let mut drift = drift.values_mut().get_mut(first.elements.start..);
        let shards = places.iter().zip(parts).map(|(at, part)| {
            let leaves = leaves.split_off_mut(..at.tiles.len()).unwrap_or_default();
            let drift = drift.as_mut();
            let drift = drift.and_then(|drift| drift.split_off_mut(..at.elements.len()));
            (at, part, leaves, drift)
        });
        let frames = each(shards, |(at, part, leaves, drift)| {
            let delta: Vec<f32> = match drift {
                Some(drift) => {
                    let delta = drift.to_vec();
                    drift.fill(0.0);
                    delta
                }
                None => {
                    let deltas = start[at.elements.clone()].iter();
                    let deltas = deltas.zip(&local[at.elements.clone()]);
                    deltas.map(|(start, local)| start - local).collect()
                }
            };
            frame_of(part, shape.tiles(at), &delta, leaves)
        });
        frames.into_iter().collect()
    }

    /// Keeps the work of an update that was never committed to: `e = e + (start - local)`, without decay, so that the
    /// next update carries it.
    ///
    /// # Errors
    /// [`UpdateError::Feedback`].
    pub fn fold(&mut self, start: &[f32], local: &[f32]) -> Result<(), UpdateError> {
        self.feedback.fold(start, local)?;
        self.rehash_feedback(0..self.shape.layout.tiles().len());
        Ok(())
    }

    /// Lets go of the error feedback: what was learnt and not sent is lost.
    pub fn forget_feedback(&mut self) {
        self.feedback = ErrorFeedback::new(self.theta.len(), self.shape.config.feedback_beta)
            .expect("the decay was checked when the replica was made");
        self.rehash_feedback(0..self.shape.layout.tiles().len());
    }

    /// Where training starts while an own update of `shards` is in flight: [`Self::start`] minus what its frames, of `stage`,
    /// say.
    ///
    /// Without this correction overlapped training is unsteady.
    ///
    /// # Errors
    /// [`UpdateError::Shards`], [`UpdateError::NoShards`], [`UpdateError::Frame`] unless `frames` are those of one own
    /// update of `shards`.
    pub fn start_ahead(
        &self,
        stage: Stage,
        shards: Range<usize>,
        frames: &[impl AsRef<[u8]>],
    ) -> Result<Vec<f32>, UpdateError> {
        self.check_shards(&shards, frames.len())?;
        let mut start = self.start().into_owned();
        let mut values = Vec::new();
        for (shard, bytes) in shards.zip(frames) {
            let frame = self.decode_own(stage, shard, bytes.as_ref())?;
            values.resize(frame.elements(), 0.0);
            frame.dequantise_into(&mut values);
            let elements = self.shape.shards[shard].elements.clone();
            for (start, value) in start[elements].iter_mut().zip(&values) {
                *start -= value;
            }
        }
        Ok(start)
    }

    /// Puts back into the error feedback what a round that is applied already left out of `own`.
    ///
    /// # Errors
    /// [`UpdateError::Shards`], [`UpdateError::NoShards`], [`UpdateError::Frame`]; the replica is as before then.
    pub fn settle(&mut self, own: OwnUpdate<'_>) -> Result<(), UpdateError> {
        for (shard, frame) in self.left_out(&own)? {
            self.give_back(shard, &frame);
        }
        Ok(())
    }

    /// The frames of `own` that were not accepted, decoded, by shard.
    pub(super) fn left_out(&self, own: &OwnUpdate<'_>) -> Result<Vec<(usize, Frame)>, UpdateError> {
        self.check_shards(&own.shards, own.frames.len())?;
        self.check_shards(&own.shards, own.accepted.len())?;
        let frames = own.frames.iter().zip(own.accepted);
        own.shards
            .clone()
            .zip(frames)
            .filter(|(_, (_, accepted))| !**accepted)
            .map(|(shard, (bytes, _))| Ok((shard, self.decode_own(own.stage, shard, bytes)?)))
            .collect()
    }

    /// Puts a frame of [`Self::left_out`] back into the error feedback.
    pub(super) fn give_back(&mut self, shard: usize, frame: &Frame) {
        let at = self.shape.shards[shard].clone();
        self.feedback
            .give_back(at.elements.start, frame)
            .expect("an own frame lies inside the residual");
        self.rehash_feedback(at.tiles);
    }

    fn all_shards(&self) -> Range<usize> {
        0..self.shape.shards.len()
    }

    fn check_range(&self, shards: &Range<usize>) -> Result<(), UpdateError> {
        let model = self.shape.shards.len();
        if shards.start <= shards.end && shards.end <= model {
            return Ok(());
        }
        let shards = shards.clone();
        Err(UpdateError::NoShards { shards, model })
    }

    fn check_shards(&self, shards: &Range<usize>, frames: usize) -> Result<(), UpdateError> {
        self.check_range(shards)?;
        let shards = shards.len();
        if frames == shards {
            Ok(())
        } else {
            Err(UpdateError::Shards { frames, shards })
        }
    }

    fn decode_own(&self, stage: Stage, shard: usize, bytes: &[u8]) -> Result<Frame, UpdateError> {
        self.shape
            .decode(stage, shard, bytes)
            .map_err(|source| UpdateError::Frame { shard, source })
    }
}

/// The frame of a shard whose update is `delta`; `leaves`, the hashes of its tiles' error feedback, are kept up.
fn frame_of(
    mut part: FeedbackPart<'_>,
    tiles: &[Tile],
    delta: &[f32],
    leaves: &mut [Hash],
) -> Result<Vec<u8>, FeedbackError> {
    let mut frame = Vec::new();
    part.send(tiles, delta, &mut frame)?;
    // Without one it was zero, and is.
    if let Some(mut residual) = part.residual() {
        for (leaf, tile) in leaves.iter_mut().zip(tiles) {
            let of_tile = residual.split_off(..tile.len()).unwrap_or_default();
            *leaf = hash_values(&[of_tile]);
        }
    }
    Ok(frame)
}
