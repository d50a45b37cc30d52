//! A decided round becomes the next shared state.

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::plan::GroupId;

use super::leaves::hash_values;
use super::sum::weigh;
use super::{Contribution, ContributionError, Outer, OwnUpdate, Replica, Shape, UpdateError};
use crate::workers::each;

/// Why a decided round cannot be applied; the replica is as before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("the round has {got} shards, the model {expected}")]
    Shards { got: usize, expected: usize },
    #[error("shard {shard}: {source}")]
    Contribution {
        shard: usize,
        source: ContributionError,
    },
    #[error("own update: {0}")]
    Own(#[from] UpdateError),
}

/// What was decided for one shard.
#[derive(Debug, Clone)]
pub struct RoundShard<'a> {
    /// Of the contributions.
    pub stage: Stage,
    /// In canonical order; none when the shard is skipped.
    pub contributions: Vec<Contribution<'a>>,
    /// The residuals that its owners have from now on; [`Hash::ZERO`] is none.
    pub residuals: Vec<(GroupId, Hash)>,
}

impl Replica {
    /// Applies a decided round: the outer step from `shards`, all of them in order, and gives the shards of `own` that
    /// were left out back to the error feedback. Of the owners' residuals, only those of `groups` remain.
    ///
    /// Cost: two passes over the contributions, one that checks and weighs them and one that adds them up, shards side by
    /// side in a pool ([`crate::workers`]); each tile that changes is hashed once, while the cache has it. Memory: the sparse
    /// contributions decoded.
    ///
    /// # Errors
    /// [`ApplyError`]; everything is decoded and checked before anything changes.
    pub fn apply(
        &mut self,
        shards: &[RoundShard<'_>],
        own: Option<OwnUpdate<'_>>,
        groups: &[GroupId],
    ) -> Result<(), ApplyError> {
        if shards.len() != self.shape.shards.len() {
            return Err(ApplyError::Shards {
                got: shards.len(),
                expected: self.shape.shards.len(),
            });
        }
        let left_out = match own {
            Some(own) => self.left_out(&own)?,
            None => Vec::new(),
        };
        // Apart, so that contributions can borrow the tiles while the rest changes.
        let Self {
            shape,
            theta,
            momentum,
            tile_leaves,
            residuals,
            ..
        } = self;
        let Shape {
            config,
            layout,
            shards: places,
        } = &**shape;
        let rounds = places.iter().zip(shards).enumerate();
        let weighed = each(rounds, |(shard, (place, round))| {
            let tiles = &layout.tiles()[place.tiles.clone()];
            weigh(tiles, config.codec(round.stage), &round.contributions)
                .map_err(|source| ApplyError::Contribution { shard, source })
        });
        let weighed = weighed.into_iter().collect::<Result<Vec<_>, _>>()?;

        // The shards lie one after the other.
        let (mut theta, mut momentum) = (theta.as_mut_slice(), momentum.as_mut_slice());
        let mut leaves = tile_leaves.as_mut_slice();
        let changing = places.iter().zip(weighed).map(|(place, contributions)| {
            let (elements, tiles) = (place.elements.len(), place.tiles.len());
            let theta = theta.split_off_mut(..elements).unwrap_or_default();
            // There may be none.
            let momentum = momentum.split_off_mut(..elements).unwrap_or_default();
            let leaves = leaves.split_off_mut(..tiles).unwrap_or_default();
            (contributions, theta, momentum, leaves)
        });
        each(changing, |(contributions, theta, momentum, leaves)| {
            let Some(contributions) = contributions else {
                return;
            };
            let mut leaves = leaves.iter_mut();
            contributions.by_tile(|tile, sum| {
                let leaf = leaves.next();
                let leaf = leaf.expect("frames were checked against the tiles");
                let theta = &mut theta[tile.clone()];
                let momentum = momentum.get_mut(tile).unwrap_or_default();
                outer_step(config.outer, theta, momentum, sum);
                *leaf = hash_values(&[theta, momentum]);
            });
        });
        for (shard, round) in shards.iter().enumerate() {
            for (group, residual) in &round.residuals {
                residuals.set(*group, shard, *residual);
            }
        }
        residuals.retain(groups);
        for (shard, frame) in left_out {
            self.give_back(shard, &frame);
        }
        Ok(())
    }

    /// The owners' residual of `shard` in `group`, by content hash; [`Hash::ZERO`] when there is none.
    pub fn residual_root(&self, group: GroupId, shard: usize) -> Hash {
        self.residuals.get(group, shard)
    }
}

/// Rules "plain" and "Nesterov" on one tile; `momentum` is empty under the former.
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
