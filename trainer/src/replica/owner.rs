//! What the owner of a shard does for its group (rule "reduce").
//!
//! A residual travels and is stored as the little-endian bytes of its f32 values, under their content hash. One without
//! any element but zeros is none: no bytes, and [`Hash::ZERO`] for its hash. That of a dense f32 run never is anything
//! else.

use gradmesh_compression::{ErrorFeedback, FeedbackError};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;

use super::sum::weigh;
use super::{Contribution, ContributionError, Shape};
use crate::optimizer::{f32_values, le_bytes};

/// Why an owner cannot reduce a shard.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReduceError {
    #[error("shard {shard} does not exist, there are {shards}")]
    NoShard { shard: usize, shards: usize },
    #[error(transparent)]
    Contribution(#[from] ContributionError),
    #[error("shard {shard} has no contribution with tokens")]
    NoTokens { shard: usize },
    #[error("residual of shard {shard} has {got} bytes, its elements take {expected}")]
    ResidualLength {
        shard: usize,
        got: usize,
        expected: usize,
    },
    #[error("shard {shard} cannot be reduced: {source}")]
    Feedback { shard: usize, source: FeedbackError },
}

/// What an owner publishes, and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduction {
    /// In the codec of the output stage.
    pub frame: Vec<u8>,
    /// What the frame left out (module doc); empty when it left out nothing.
    pub residual: Vec<u8>,
}

impl Reduction {
    /// By which everybody knows the residual; [`Hash::ZERO`] when nothing was left out.
    pub fn residual_hash(&self) -> Hash {
        if self.residual.is_empty() {
            Hash::ZERO
        } else {
            Hash::of_content(&self.residual)
        }
    }
}

impl Shape {
    /// Reduces the `inputs`, frames of `shard` at the stage `input`, to one frame at the stage `output`, going on from
    /// `residual`, if there is one. A pure function of its arguments and the settings: both owners get the same bytes.
    ///
    /// Memory: a few shards of f32, however many the inputs, and the sparse ones among them decoded.
    ///
    /// # Errors
    /// [`ReduceError`]; whoever provided `residual` is at fault for [`ReduceError::ResidualLength`] and for
    /// [`FeedbackError::Residual`].
    pub fn reduce(
        &self,
        shard: usize,
        input: Stage,
        output: Stage,
        residual: Option<&[u8]>,
        inputs: &[Contribution<'_>],
    ) -> Result<Reduction, ReduceError> {
        let at = self.shards.get(shard).ok_or(ReduceError::NoShard {
            shard,
            shards: self.shards.len(),
        })?;
        let fault = |source| ReduceError::Feedback { shard, source };
        let beta = match output {
            Stage::Reduced => self.config.owner_beta,
            Stage::Local | Stage::Update => self.config.feedback_beta,
        };
        let mut feedback = match residual {
            None | Some([]) => ErrorFeedback::new(at.elements.len(), beta),
            Some(bytes) if bytes.len() != at.elements.len() * 4 => {
                return Err(ReduceError::ResidualLength {
                    shard,
                    got: bytes.len(),
                    expected: at.elements.len() * 4,
                });
            }
            Some(bytes) => ErrorFeedback::restore(f32_values(bytes), beta),
        }
        .map_err(fault)?;

        let weighed = weigh(self.tiles(at), self.config.codec(input), inputs)?
            .ok_or(ReduceError::NoTokens { shard })?;
        let mut aggregate = Vec::with_capacity(at.elements.len());
        weighed.by_tile(|_, sum| aggregate.extend_from_slice(sum));
        drop(weighed);
        let mut frame = Vec::new();
        let codec = self.config.codec(output);
        feedback
            .send(0, self.tiles(at), codec, &aggregate, &mut frame)
            .map_err(fault)?;
        let left = feedback.residual().unwrap_or_default();
        Ok(Reduction {
            frame,
            residual: match left.iter().any(|value| *value != 0.0) {
                true => le_bytes(left).into_owned(),
                false => Vec::new(),
            },
        })
    }
}
