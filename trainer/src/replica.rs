//! What every peer of a run holds in the same bits, and what each holds for itself.
//!
//! **Shared**: theta (flat f32) and the outer optimizer's momentum, if it has one. Changed by [`Replica::apply`] alone, a
//! pure function of the decided members, so that all replicas stay equal to the bit; [`Replica::state_root`] proves it.
//! **Private**: the error feedback of this peer's own updates, which the others know by its root only.
//!
//! Rules of a round:
//!
//! - "update": delta = start - local, element by element in f32, where start is what training began from: theta, or with
//!   overlap [`Replica::start_ahead`]. The error feedback takes delta in and gives one frame per shard.
//! - "aggregate": [`gradmesh_compression::aggregate`] for each shard over the members whose frame of that shard was
//!   accepted. A member's norm is that of all its accepted shards. A shard whose members have no tokens is skipped: its
//!   theta and momentum stay as they are.
//! - "plain": `theta = theta - rate * g`. "Nesterov" (DiLoCo, arXiv 2311.08105; PyTorch's form): `m = momentum * m + g`,
//!   then `theta = theta - rate * (g + momentum * m)`. Each operation is rounded by itself in f32.
//! - "left out": an own frame that was not accepted goes back into the error feedback; a whole update that was never
//!   committed goes in by [`Replica::fold`]. Nothing that was learned is lost.
//!
//! Knows no peers, rounds or hashes of frames: who is a member, and in which order, is decided elsewhere.

mod private;
mod state;

use std::num::NonZeroUsize;
use std::ops::Range;

use gradmesh_compression::{
    AggregateError, Codec, DecodeError, ErrorFeedback, FeedbackError, Frame, Layout, LayoutError,
    Member, TensorMode, TensorSpec, Tile, UpdateNorm, aggregate, decode, frame_bytes_max, weights,
};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

pub use self::private::PrivateError;
pub use self::state::{ImportError, StateImport};
use crate::model::ParameterSpec;

/// How the aggregate changes theta.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outer {
    /// Rule "plain". Rate 2 in sparse mode; 1 is plain averaging.
    Plain { rate: f32 },
    /// Rule "Nesterov". 0.7 and 0.9 in dense mode.
    Nesterov { rate: f32, momentum: f32 },
}

/// The manifest's settings that shape a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaConfig {
    pub codec: Codec,
    pub outer: Outer,
    /// Decay of the error feedback per round, in `0..=1`.
    pub feedback_beta: f32,
    /// Tensors with fewer elements travel dense.
    pub sparse_elements_min: usize,
    pub tiles_per_shard: NonZeroUsize,
}

/// Why a replica cannot be made. The manifest is at fault, or a checkpoint of another model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReplicaError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Feedback(#[from] FeedbackError),
    #[error("outer optimizer: {name} is {value}, must be finite and not negative")]
    Outer { name: &'static str, value: f32 },
    #[error("theta has {got} elements, the model has {expected}")]
    Length { got: usize, expected: usize },
    #[error("element {0} of theta is not finite")]
    NotFinite(usize),
}

/// Why an own update cannot be taken in; the replica is as before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpdateError {
    #[error("{what} has {got} elements, the model has {expected}")]
    Length {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    #[error("{frames} frames or flags for {shards} shards")]
    Shards { frames: usize, shards: usize },
    #[error("own frame of shard {shard}: {source}")]
    Frame { shard: usize, source: DecodeError },
    #[error("local training has diverged: {0}")]
    Feedback(#[from] FeedbackError),
}

/// Why a decided round cannot be applied; the replica is as before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("member {member} has {frames} frames for {shards} shards")]
    Shards {
        member: usize,
        frames: usize,
        shards: usize,
    },
    #[error("frame of member {member}, shard {shard}: {source}")]
    Frame {
        member: usize,
        shard: usize,
        source: DecodeError,
    },
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    #[error("own update: {0}")]
    Own(#[from] UpdateError),
}

/// An own update, ready to be committed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// One per shard, in order.
    pub frames: Vec<Vec<u8>>,
    /// Root over the error feedback before the update went in.
    pub feedback_before: Hash,
    /// Root over it after all frames were taken.
    pub feedback_after: Hash,
}

/// One accepted member of a round; members come in canonical order.
#[derive(Debug, Clone, Copy)]
pub struct RoundMember<'a> {
    /// Weight in the mean.
    pub tokens: u64,
    /// One per shard; `None` where its frame was not accepted.
    pub frames: &'a [Option<&'a [u8]>],
}

/// This peer's own update in a decided round.
#[derive(Debug, Clone, Copy)]
pub struct OwnUpdate<'a> {
    /// [`Update::frames`] as committed.
    pub frames: &'a [Vec<u8>],
    /// One per shard: whether the decision names it. All false for an update that missed the round.
    pub accepted: &'a [bool],
}

/// The state of one peer (module doc).
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    config: ReplicaConfig,
    layout: Layout,
    shards: Vec<Range<usize>>,
    theta: Vec<f32>,
    /// Flat; empty under [`Outer::Plain`].
    momentum: Vec<f32>,
    feedback: ErrorFeedback,
}

impl Replica {
    /// A replica at `theta`, with momentum and error feedback zero.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn new(
        parameters: &[ParameterSpec],
        config: ReplicaConfig,
        theta: Vec<f32>,
    ) -> Result<Self, ReplicaError> {
        let (rate, momentum) = match config.outer {
            Outer::Plain { rate } => (rate, None),
            Outer::Nesterov { rate, momentum } => (rate, Some(momentum)),
        };
        for (name, value) in [("rate", rate), ("momentum", momentum.unwrap_or(0.0))] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ReplicaError::Outer { name, value });
            }
        }
        let layout = layout_of(parameters, &config)?;
        if theta.len() != layout.elements() {
            return Err(ReplicaError::Length {
                got: theta.len(),
                expected: layout.elements(),
            });
        }
        if let Some(element) = theta.iter().position(|value| !value.is_finite()) {
            return Err(ReplicaError::NotFinite(element));
        }
        Ok(Self {
            shards: layout.shards(config.tiles_per_shard).collect(),
            momentum: match momentum {
                Some(_) => vec![0.0; theta.len()],
                None => Vec::new(),
            },
            feedback: ErrorFeedback::new(theta.len(), config.feedback_beta)?,
            theta,
            layout,
            config,
        })
    }

    /// The shared parameters, flat.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of shards: frames of an update.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// No frame of `shard` is longer; `None` for a shard that does not exist.
    pub fn frame_bytes_max(&self, shard: usize) -> Option<usize> {
        let tiles = self.tiles(self.shards.get(shard)?);
        Some(frame_bytes_max(tiles, self.config.codec))
    }

    /// Whether `bytes` are a frame of `shard`: what a peer checks on arrival. A shard that does not exist has no tiles,
    /// and so no frame with content.
    ///
    /// # Errors
    /// [`DecodeError`]: whoever made the bytes is at fault.
    pub fn check_frame(&self, shard: usize, bytes: &[u8]) -> Result<(), DecodeError> {
        self.decode(shard, bytes).map(|_frame| ())
    }

    /// Where training starts while an own update is in flight: theta minus what its frames say.
    ///
    /// Without this correction overlapped training is unsteady.
    ///
    /// # Errors
    /// [`UpdateError::Shards`], [`UpdateError::Frame`] unless `frames` are those of one own update.
    pub fn start_ahead(&self, frames: &[Vec<u8>]) -> Result<Vec<f32>, UpdateError> {
        let decoded = self.decode_own(frames, |_| true)?;
        let mut start = self.theta.clone();
        let mut values = Vec::new();
        for (range, frame) in decoded {
            values.resize(frame.elements(), 0.0);
            frame.dequantise_into(&mut values);
            for (start, value) in start[range].iter_mut().zip(&values) {
                *start -= value;
            }
        }
        Ok(start)
    }

    /// Takes in what local training did from `start` to `local` and gives the frames to commit to (rule "update").
    ///
    /// Cost: three passes over the elements, two of them hashing.
    ///
    /// # Errors
    /// [`UpdateError`]; NaN in `local` is among them.
    pub fn update(&mut self, start: &[f32], local: &[f32]) -> Result<Update, UpdateError> {
        let delta = self.delta(start, local)?;
        let feedback_before = self.feedback_root();
        self.feedback.accumulate(&delta)?;
        let mut frames = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            let (range, tiles) = elements_and_tiles(&self.layout, shard);
            let mut frame = Vec::new();
            self.feedback
                .take(range.start, tiles, self.config.codec, &mut frame)?;
            frames.push(frame);
        }
        Ok(Update {
            frames,
            feedback_before,
            feedback_after: self.feedback_root(),
        })
    }

    /// Keeps the work of an update that was never committed to: `e = e + (start - local)`, without decay, so that the
    /// next update carries it.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn fold(&mut self, start: &[f32], local: &[f32]) -> Result<(), UpdateError> {
        let mut sum = self.delta(start, local)?;
        for (sum, residual) in sum.iter_mut().zip(self.feedback.residual()) {
            *sum += residual;
        }
        self.feedback = ErrorFeedback::restore(sum, self.config.feedback_beta)?;
        Ok(())
    }

    /// Applies a decided round: the outer step from `members` in their order, and gives `own` shards that were left out
    /// back to the error feedback.
    ///
    /// Memory: the decoded frames of all members, and one shard of f32.
    ///
    /// # Errors
    /// [`ApplyError`]; everything is decoded and checked before anything changes.
    pub fn apply(
        &mut self,
        members: &[RoundMember<'_>],
        own: Option<OwnUpdate<'_>>,
    ) -> Result<(), ApplyError> {
        let decoded = self.decode_members(members)?;
        let left_out = match own {
            Some(own) if own.accepted.len() != self.shards.len() => {
                return Err(ApplyError::Own(UpdateError::Shards {
                    frames: own.accepted.len(),
                    shards: self.shards.len(),
                }));
            }
            Some(own) => self.decode_own(own.frames, |shard| !own.accepted[shard])?,
            None => Vec::new(),
        };
        let norms: Vec<UpdateNorm> = decoded
            .iter()
            .map(|frames| {
                let mut norm = UpdateNorm::default();
                frames.iter().flatten().for_each(|frame| norm.add(frame));
                norm
            })
            .collect();

        let mut parts = Vec::with_capacity(self.shards.len());
        for shard in 0..self.shards.len() {
            parts.push(shard_members(shard, members, &decoded, &norms)?);
        }
        let mut sum = Vec::new();
        for (shard, part) in self.shards.iter().zip(&parts) {
            if part.is_empty() {
                continue;
            }
            let (range, _) = elements_and_tiles(&self.layout, shard);
            sum.resize(range.len(), 0.0);
            aggregate(part, &mut sum).expect("frames were decoded for the tiles of this shard");
            let momentum = self.momentum.get_mut(range.clone()).unwrap_or_default();
            outer_step(self.config.outer, &mut self.theta[range], momentum, &sum);
        }
        for (range, frame) in left_out {
            self.feedback
                .give_back(range.start, &frame)
                .expect("an own frame lies inside the residual");
        }
        Ok(())
    }

    /// Merkle root over the error feedback, a leaf per tile (the little-endian bytes of its f32 values).
    pub fn feedback_root(&self) -> Hash {
        let leaves = self.layout.tiles().iter().map(|tile| {
            let values = &self.feedback.residual()[tile.elements()];
            Hash::of_content(&crate::optimizer::le_bytes(values))
        });
        merkle::Tree::from_leaves(leaves.collect()).root()
    }

    fn delta(&self, start: &[f32], local: &[f32]) -> Result<Vec<f32>, UpdateError> {
        for (what, values) in [("start", start), ("local", local)] {
            if values.len() != self.theta.len() {
                return Err(UpdateError::Length {
                    what,
                    got: values.len(),
                    expected: self.theta.len(),
                });
            }
        }
        Ok(start.iter().zip(local).map(|(s, l)| s - l).collect())
    }

    fn tiles(&self, shard: &Range<usize>) -> &[Tile] {
        self.layout.tiles().get(shard.clone()).unwrap_or_default()
    }

    fn decode(&self, shard: usize, bytes: &[u8]) -> Result<Frame, DecodeError> {
        let tiles = self.shards.get(shard).map(|shard| self.tiles(shard));
        decode(bytes, tiles.unwrap_or_default(), self.config.codec)
    }

    /// The own frames of the shards that `wanted` names, with their elements.
    fn decode_own(
        &self,
        frames: &[Vec<u8>],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<(Range<usize>, Frame)>, UpdateError> {
        if frames.len() != self.shards.len() {
            return Err(UpdateError::Shards {
                frames: frames.len(),
                shards: self.shards.len(),
            });
        }
        let mut decoded = Vec::new();
        for (shard, (tiles, bytes)) in self.shards.iter().zip(frames).enumerate() {
            if wanted(shard) {
                let frame = self
                    .decode(shard, bytes)
                    .map_err(|source| UpdateError::Frame { shard, source })?;
                decoded.push((elements_and_tiles(&self.layout, tiles).0, frame));
            }
        }
        Ok(decoded)
    }

    fn decode_members(
        &self,
        members: &[RoundMember<'_>],
    ) -> Result<Vec<Vec<Option<Frame>>>, ApplyError> {
        let mut decoded = Vec::with_capacity(members.len());
        for (member, RoundMember { frames, .. }) in members.iter().enumerate() {
            if frames.len() != self.shards.len() {
                return Err(ApplyError::Shards {
                    member,
                    frames: frames.len(),
                    shards: self.shards.len(),
                });
            }
            let decode = |(shard, bytes): (usize, &Option<&[u8]>)| {
                bytes
                    .map(|bytes| self.decode(shard, bytes))
                    .transpose()
                    .map_err(|source| ApplyError::Frame {
                        member,
                        shard,
                        source,
                    })
            };
            decoded.push(
                frames
                    .iter()
                    .enumerate()
                    .map(decode)
                    .collect::<Result<_, _>>()?,
            );
        }
        Ok(decoded)
    }
}

/// Members of one shard with their weights; none when they have no tokens (rule "aggregate").
fn shard_members<'a>(
    shard: usize,
    members: &[RoundMember<'_>],
    decoded: &'a [Vec<Option<Frame>>],
    norms: &[UpdateNorm],
) -> Result<Vec<Member<'a>>, AggregateError> {
    let present = members.iter().zip(norms).zip(decoded);
    let present: Vec<_> = present
        .filter_map(|((member, norm), frames)| {
            let frame = frames.get(shard)?.as_ref()?;
            Some((member.tokens, *norm, frame))
        })
        .collect();
    if present.iter().all(|(tokens, ..)| *tokens == 0) {
        return Ok(Vec::new());
    }
    let tokens: Vec<u64> = present.iter().map(|(tokens, ..)| *tokens).collect();
    let norms: Vec<UpdateNorm> = present.iter().map(|(_, norm, _)| *norm).collect();
    let weights = weights(&tokens, &norms)?;
    let members = present.iter().zip(weights);
    Ok(members
        .map(|((.., frame), weight)| Member { frame, weight })
        .collect())
}

/// Rules "plain" and "Nesterov" on one shard; `momentum` is empty under the former.
fn outer_step(outer: Outer, theta: &mut [f32], momentum: &mut [f32], aggregate: &[f32]) {
    match outer {
        Outer::Plain { rate } => {
            for (theta, g) in theta.iter_mut().zip(aggregate) {
                *theta -= rate * g;
            }
        }
        Outer::Nesterov {
            rate,
            momentum: keep,
        } => {
            for ((theta, m), g) in theta.iter_mut().zip(momentum).zip(aggregate) {
                *m = keep * *m + g;
                *theta -= rate * (g + keep * *m);
            }
        }
    }
}

fn layout_of(parameters: &[ParameterSpec], config: &ReplicaConfig) -> Result<Layout, LayoutError> {
    let tensors: Vec<TensorSpec> = parameters
        .iter()
        .map(|spec| TensorSpec {
            elements: spec.elements(),
            mode: TensorMode::for_elements(spec.elements(), config.sparse_elements_min),
        })
        .collect();
    Layout::new(&tensors)
}

fn elements_and_tiles<'a>(layout: &'a Layout, shard: &Range<usize>) -> (Range<usize>, &'a [Tile]) {
    let range = layout.shard_elements(shard.clone());
    (
        range.expect("shards are cut from this layout"),
        &layout.tiles()[shard.clone()],
    )
}

#[cfg(test)]
mod tests;
