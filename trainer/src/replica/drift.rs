//! What this peer has learnt in shards that no round has exchanged since.
//!
//! Theta minus the local parameters, flat. Each update adds what its training did; the shards that it is of go through the
//! error feedback into frames, and have none left. So a round that this peer takes no part in, or theta that moves under
//! the drift, loses nothing: training begins at theta minus the drift, wherever theta is by then.

use std::borrow::Cow;

use gradmesh_compression::{FeedbackError, VALUE_ABS_MAX};
use gradmesh_protocol::hash::Hash;

use super::Replica;
use super::leaves::hash_values;
use crate::workers::each;

/// Drift, 4 bytes per element; empty while every update was of all shards.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Drift {
    values: Vec<f32>,
    /// Leaf `i`: the hash of tile `i`.
    leaves: Vec<Hash>,
}

impl Drift {
    /// Flat; empty if there is none.
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be changed; the leaves stay as they are.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(super) fn leaves(&self) -> &[Hash] {
        &self.leaves
    }
}

impl Replica {
    /// Where training begins: theta minus the drift, which is theta itself while every update was of all shards.
    pub fn start(&self) -> Cow<'_, [f32]> {
        let drift = self.drift.values.iter();
        if drift.len() == 0 {
            return Cow::Borrowed(&self.theta);
        }
        self.theta.iter().zip(drift).map(|(t, d)| t - d).collect()
    }

    /// The drift with what a training from `start` to `local` did, both as long as theta; changes nothing. Without `start` it
    /// is [`Self::start`], so that all between theta and `local` is drift.
    ///
    /// # Errors
    /// [`FeedbackError::Diverged`] for what no frame could say.
    pub(super) fn drifted(
        &self,
        start: Option<&[f32]>,
        local: &[f32],
    ) -> Result<Vec<f32>, FeedbackError> {
        let from = start.unwrap_or(&self.theta).iter();
        let mut drifted: Vec<f32> = from.zip(local).map(|(s, l)| s - l).collect();
        if start.is_some() {
            for (drifted, drift) in drifted.iter_mut().zip(&self.drift.values) {
                *drifted += drift;
            }
        }
        let in_range = |value: &f32| value.abs() <= VALUE_ABS_MAX;
        match drifted.iter().position(|value| !in_range(value)) {
            Some(element) => Err(FeedbackError::Diverged {
                element,
                value: drifted[element],
            }),
            None => Ok(drifted),
        }
    }

    pub(super) fn set_drift(&mut self, values: Vec<f32>) {
        self.drift.values = values;
    }

    /// Hashes all of the drift, every tile of which changes with each update.
    pub(super) fn rehash_drift(&mut self) {
        let tiles = self.shape.layout.tiles().iter();
        self.drift.leaves = each(tiles, |tile| {
            hash_values(&[&self.drift.values[tile.elements()]])
        });
    }

    /// All that this peer has learnt and not sent: error feedback and drift. `None`: nothing.
    pub(super) fn unsent(&self) -> Option<Cow<'_, [f32]>> {
        let (residual, drift) = (self.feedback.residual(), &self.drift.values);
        match residual {
            _ if drift.is_empty() => residual.map(Cow::Borrowed),
            None => Some(Cow::Borrowed(drift)),
            Some(residual) => Some(residual.iter().zip(drift).map(|(e, d)| e + d).collect()),
        }
    }
}
