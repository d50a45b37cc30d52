//! The state after each decision, computed by one thread from the decisions alone, with other code than the peers'.
//!
//! Follows the rules "norm", "median", "clip", "weight" and "sum" of `gradmesh_compression::aggregate` element by
//! element on frames decoded by the slow reference, so that a shortcut in the fast path shows as another root.

use gradmesh_compression::{Codec, TensorMode, Tile, reference};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::wire::DecisionRecord;

use crate::learner::{Frames, Shape, State};

/// The replayed state.
#[derive(Debug)]
pub struct Oracle {
    state: State,
    /// Every frame that any peer made.
    frames: Frames,
}

impl Oracle {
    /// Stands before the first decision.
    pub fn new(shape: &Shape) -> Oracle {
        Oracle {
            state: shape.genesis().clone(),
            frames: Frames::new(),
        }
    }

    /// Notes the frames of an update, at the moment it is made.
    pub fn note(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.frames.insert(Hash::of_content(frame), frame.clone());
        }
    }

    /// The root after `record`, the next decision.
    ///
    /// # Errors
    /// What the decision names and nobody made.
    pub fn replay(&mut self, shape: &Shape, record: &DecisionRecord) -> Result<Hash, String> {
        let mut updates = Vec::new();
        for (place, header) in record.headers.iter().enumerate() {
            let mut values = Vec::new();
            for (shard, frame) in header.header.update.frames.iter().enumerate() {
                let decided = record.decision.shards.get(shard);
                if !decided.is_some_and(|decided| decided.accepted.contains(place)) {
                    values.extend(shape.shard_elements(shard).map(|_| 0.0));
                    continue;
                }
                let bytes = self
                    .frames
                    .get(&frame.hash)
                    .ok_or_else(|| format!("decided frame {:?} was made by nobody", frame.hash))?;
                let tiles = shape.shard_tiles(shard);
                values.extend(
                    reference::decode(bytes, tiles, shape.codec())
                        .ok_or_else(|| format!("decided frame {:?} does not decode", frame.hash))?,
                );
            }
            updates.push(values);
        }
        if !updates.is_empty() {
            let mean = self.mean(shape, record, &updates);
            shape.step(&mut self.state, &mean);
        }
        Ok(shape.root(&self.state))
    }

    /// The state after the last replayed decision.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn mean(&self, shape: &Shape, record: &DecisionRecord, updates: &[Vec<f32>]) -> Vec<f32> {
        let norms: Vec<f64> = updates
            .iter()
            .map(|update| {
                let tiles = (0..shape.shards()).flat_map(|shard| shape.shard_tiles(shard));
                let squares = tiles.map(|tile| squares(shape.codec(), tile, update));
                squares.fold(0.0f64, |sum, next| sum + next).sqrt()
            })
            .collect();
        let mut mean = vec![0.0f32; self.state.theta.len()];
        for (shard, decided) in record.decision.shards.iter().enumerate() {
            let members: Vec<usize> = (0..updates.len())
                .filter(|place| decided.accepted.contains(*place))
                .collect();
            let tokens = |place: &usize| record.headers[*place].header.update.tokens;
            let total: u64 = members.iter().map(tokens).sum();
            let mut positive: Vec<f64> = members.iter().map(|p| norms[*p]).collect();
            positive.retain(|norm| *norm > 0.0);
            positive.sort_by(f64::total_cmp);
            let median = match positive.len() {
                0 => 0.0,
                count => positive[(count - 1) / 2],
            };
            for element in shape.shard_elements(shard) {
                let mut sum = 0.0f32;
                for place in &members {
                    let clip = if norms[*place] > median {
                        median / norms[*place]
                    } else {
                        1.0
                    };
                    let weight = (tokens(place) as f64 * clip / total as f64) as f32;
                    sum += weight * updates[*place][element];
                }
                mean[element] = sum;
            }
        }
        mean
    }
}

/// Rule "norm" for one tile. All entries of a sparse tile have one of at most two magnitudes.
fn squares(codec: Codec, tile: &Tile, update: &[f32]) -> f64 {
    let values = &update[tile.elements()];
    let sparse = matches!(codec, Codec::Sparse { .. }) && tile.mode() == TensorMode::Sparse;
    if !sparse {
        return values
            .iter()
            .fold(0.0, |sum, v| sum + f64::from(*v) * f64::from(*v));
    }
    let magnitudes = || values.iter().map(|v| v.abs()).filter(|v| *v > 0.0);
    let high = magnitudes().fold(0.0f32, f32::max);
    let low = magnitudes().fold(high, f32::min);
    let count = |level: f32| magnitudes().filter(|v| *v == level).count() as f64;
    let square = |level: f32| f64::from(level) * f64::from(level);
    if low == high {
        count(high) * square(high)
    } else {
        count(low) * square(low) + count(high) * square(high)
    }
}
