//! What every peer of a run holds in the same bits, and what each holds for itself.
//!
//! **Shared**: theta (flat f32), the outer optimizer's momentum, if it has one, and the content hashes of the residuals
//! that the owners of shards keep. Changed by [`Replica::apply`] alone, a pure function of the decided frames, so that
//! all replicas stay equal to the bit; [`Replica::state_root`] proves it.
//! **Private**: the error feedback of this peer's own updates, and its drift where updates are of some shards only. The
//! others know both by their root.
//!
//! Rules of a round:
//!
//! - "update": delta = start - local, element by element in f32, where start is what training began from:
//!   [`Replica::start`], or with overlap [`Replica::start_ahead`]. The error feedback takes delta in and gives one frame per shard, in the codec of
//!   the stage that the plan says. With overlap that is done when the round before is applied, so that what it left out
//!   goes with this update.
//! - "drift": where an update is of some shards only, what training did in the others adds up (`drift.rs`): drift = drift +
//!   delta. Training begins at theta minus drift, [`Replica::start`]. A shard's drift goes with the update of its turn, in
//!   the place of delta, and then there is none of it.
//! - "aggregate": [`gradmesh_compression::aggregate`] for each shard over the contributions to it, in their order. A
//!   shard whose contributions have no tokens is skipped: its theta and momentum stay as they are.
//! - "reduce": what an owner of a shard does ([`Shape::reduce`]): e = beta e + aggregate; the frame is taken of e, what
//!   it leaves out stays in e. Beta is `owner_beta` for a reduced frame and `feedback_beta` for one that goes on as an
//!   update, that of a site.
//! - "plain": `theta = theta - rate * g`. "Nesterov" (DiLoCo, arXiv 2311.08105; PyTorch's form): `m = momentum * m + g`,
//!   then `theta = theta - rate * (g + momentum * m)`. Each operation is rounded by itself in f32.
//! - "left out": an own frame that was not accepted goes back into the error feedback; a whole update that was never
//!   committed goes in by [`Replica::fold`]. Nothing that was learned is lost.
//!
//! Knows no peers, rounds or hashes of frames: who contributes, and in which order, is decided elsewhere.

mod apply;
mod drift;
mod leaves;
mod own;
mod owner;
mod private;
mod residuals;
mod shape;
mod state;
mod sum;

use std::num::NonZeroUsize;
use std::sync::Arc;

use gradmesh_compression::{Codec, ErrorFeedback, FeedbackError, LayoutError};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;

pub use self::apply::{ApplyError, RoundShard};
use self::drift::Drift;
pub use self::own::{OwnUpdate, Update, UpdateError};
pub use self::owner::{ReduceError, Reduction};
pub use self::private::PrivateError;
use self::residuals::Residuals;
pub use self::shape::Shape;
pub use self::state::{ImportError, StateImport};
pub use self::sum::{Contribution, ContributionError};
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
    /// Of [`Stage::Update`].
    pub codec: Codec,
    /// Of [`Stage::Reduced`].
    pub reduced: Codec,
    /// Of [`Stage::Local`].
    pub local: Codec,
    pub outer: Outer,
    /// Decay of the error feedback per round, in `0..=1`; also of the residual that a site's owner keeps.
    pub feedback_beta: f32,
    /// Decay per round, in `0..=1`, of the residual that the owner of a reduced shard keeps. 0.9: without decay training
    /// goes unstable.
    pub owner_beta: f32,
    /// Tensors with fewer elements travel dense.
    pub sparse_elements_min: usize,
    pub tiles_per_shard: NonZeroUsize,
}

impl ReplicaConfig {
    /// What the frames of `stage` are encoded in.
    pub fn codec(&self, stage: Stage) -> Codec {
        match stage {
            Stage::Local => self.local,
            Stage::Update => self.codec,
            Stage::Reduced => self.reduced,
        }
    }
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

/// The state of one peer (module doc).
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    shape: Arc<Shape>,
    theta: Vec<f32>,
    /// Flat; empty under [`Outer::Plain`].
    momentum: Vec<f32>,
    residuals: Residuals,
    feedback: ErrorFeedback,
    drift: Drift,
    /// Leaf `i`: the hash of tile `i` of theta and momentum. Kept with every change, because a tile is hashed fastest
    /// while the cache still has it.
    tile_leaves: Vec<Hash>,
    /// Leaf `i`: the hash of tile `i` of the error feedback; kept likewise.
    feedback_leaves: Vec<Hash>,
}

impl Replica {
    /// A replica at `theta`, with momentum and error feedback zero and no residuals known.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn new(
        parameters: &[ParameterSpec],
        config: ReplicaConfig,
        theta: Vec<f32>,
    ) -> Result<Self, ReplicaError> {
        let mut replica = Self::unhashed(parameters, config, theta)?;
        replica.rehash_tiles(0..replica.shape.layout.tiles().len());
        Ok(replica)
    }

    /// [`Self::new`] without the leaves of the tiles, for an import that brings them.
    fn unhashed(
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
        // The residuals of shards are only made when there is something to keep; their decay is judged now.
        ErrorFeedback::new(0, config.owner_beta)?;
        let shape = Shape::new(parameters, config)?;
        if theta.len() != shape.layout.elements() {
            return Err(ReplicaError::Length {
                got: theta.len(),
                expected: shape.layout.elements(),
            });
        }
        if let Some(element) = theta.iter().position(|value| !value.is_finite()) {
            return Err(ReplicaError::NotFinite(element));
        }
        let mut replica = Self {
            residuals: Residuals::new(shape.shards.len()),
            momentum: match momentum {
                Some(_) => vec![0.0; theta.len()],
                None => Vec::new(),
            },
            feedback: ErrorFeedback::new(theta.len(), config.feedback_beta)?,
            drift: Drift::default(),
            tile_leaves: vec![Hash::ZERO; shape.layout.tiles().len()],
            feedback_leaves: vec![Hash::ZERO; shape.layout.tiles().len()],
            theta,
            shape: Arc::new(shape),
        };
        replica.rehash_feedback(0..replica.shape.layout.tiles().len());
        Ok(replica)
    }

    /// The shared parameters, flat.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// How theta is cut, and in which codecs its frames are.
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }
}

#[cfg(test)]
mod tests;
