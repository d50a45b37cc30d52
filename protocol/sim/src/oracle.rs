//! The state after each decision, computed by one thread from the decisions alone, with other code than the peers'.
//!
//! Follows the rules "norm", "median", "clip", "weight" and "sum" of `gradmesh_compression::aggregate`, the outer step, and an
//! owner's step, element by element on frames read and written by the slow reference, so that a shortcut in the fast path
//! shows as another root. Knows every frame that any peer made; takes no owner's word for what it made of others'.

use std::collections::BTreeMap;

use gradmesh_compression::{Codec, TensorMode, Tile, reference};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::merkle::Tree;
use gradmesh_protocol::node::AppliedShard;
use gradmesh_protocol::plan::{GroupId, Layout, Plan};
use gradmesh_protocol::wire::DecisionRecord;
use gradmesh_trainer::replica::Outer;

use crate::learner::{Frames, Shape};

/// The replayed state.
#[derive(Debug)]
pub struct Oracle {
    theta: Vec<f32>,
    /// As long as theta; empty with the plain rule.
    momentum: Vec<f32>,
    /// What every decided reduction left.
    residuals: BTreeMap<(GroupId, u32), Hash>,
    /// The residuals themselves, by hash.
    kept: BTreeMap<Hash, Vec<f32>>,
    /// Every frame that any peer made.
    frames: Frames,
}

/// What the oracle found out about one decision.
#[derive(Debug)]
pub struct Replayed {
    /// The root after it.
    pub root: Hash,
    /// The reductions that are not what the decided inputs give: group and shard.
    pub wrong: Vec<(GroupId, u32)>,
    /// Reductions that started without the residual that was decided before.
    pub anew: usize,
}

impl Oracle {
    /// Stands before the first decision.
    pub fn new(shape: &Shape) -> Oracle {
        let theta = shape.genesis().theta().to_vec();
        let momentum = match shape.config().outer {
            Outer::Plain { .. } => Vec::new(),
            Outer::Nesterov { .. } => vec![0.0; theta.len()],
        };
        Oracle {
            theta,
            momentum,
            residuals: BTreeMap::new(),
            kept: BTreeMap::new(),
            frames: Frames::new(),
        }
    }

    /// Notes the frames that a peer made, at the moment when they are made.
    pub fn note(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.frames.insert(Hash::of_content(frame), frame.clone());
        }
    }

    /// Notes a residual that an owner is left with.
    pub fn note_residual(&mut self, residual: &[u8]) {
        let (values, _) = residual.as_chunks::<4>();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        self.kept
            .insert(Hash::of_content(residual), values.collect());
    }

    /// The parameters after the last replayed decision.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// Replays `record`, the next decision. `layout`: of its round. `next`: of the round after it.
    ///
    /// # Errors
    /// What the decision names and nobody made.
    pub fn replay(
        &mut self,
        shape: &Shape,
        record: &DecisionRecord,
        layout: &Layout,
        next: &Layout,
    ) -> Result<Replayed, String> {
        let (mut wrong, mut anew) = (Vec::new(), 0);
        if layout.plan() != Plan::Gather {
            self.check_reductions(shape, record, layout, &mut wrong, &mut anew)?;
        }
        let applied = AppliedShard::of(layout, record);
        for (shard, applied) in applied.iter().enumerate() {
            let inputs = applied
                .contributions
                .iter()
                .map(|c| (c.tokens, c.frame.hash));
            let stage = layout.plan().stage_of_results();
            let inputs: Vec<(u64, Hash)> = inputs.collect();
            if let Some(mean) = self.mean(shape, shard, stage, &inputs)? {
                self.step(shape, shard, &mean);
            }
            for (group, residual) in &applied.residuals {
                self.residuals.insert((*group, shard as u32), *residual);
            }
        }
        let lives = |group: &GroupId| next.groups().iter().any(|g| g.id == *group);
        self.residuals
            .retain(|(group, _), residual| lives(group) && *residual != Hash::ZERO);
        let root = self.root(shape);
        Ok(Replayed { root, wrong, anew })
    }

    /// Recomputes what owners made of the accepted members' frames.
    fn check_reductions(
        &mut self,
        shape: &Shape,
        record: &DecisionRecord,
        layout: &Layout,
        wrong: &mut Vec<(GroupId, u32)>,
        anew: &mut usize,
    ) -> Result<(), String> {
        let decision = &record.decision;
        let shards = layout.shards_of(decision.round);
        for (shard, decided) in shards.zip(&decision.shards) {
            let groups = layout.accepted_groups(&decision.members, &decided.accepted);
            for (group, reduction) in groups.iter().zip(&decided.reduced) {
                let key = (*group, shard);
                let of_group = |place: &usize| {
                    let group = layout.place_of(&record.headers[*place].header.peer);
                    group.is_some_and(|place| layout.groups()[place].id == key.0)
                };
                let places = decided.accepted.positions().filter(of_group);
                let inputs: Vec<(u64, Hash)> = places
                    .map(|place| {
                        let header = &record.headers[place].header;
                        let frame = layout.frame_of(header, shard).expect("it is sound");
                        (header.update.tokens, frame.hash)
                    })
                    .collect();
                let shard = shard as usize;
                let before = self.residuals.get(&key).copied().unwrap_or(Hash::ZERO);
                let goes_on = self.reduced(shape, shard, layout.plan(), &inputs, before)?;
                let fits = |(frame, left): &(Vec<u8>, Vec<f32>)| {
                    Hash::of_content(frame) == reduction.frame.hash
                        && frame.len() as u64 == reduction.frame.bytes
                        && hash_of(left) == reduction.residual
                };
                let starts = self.reduced(shape, shard, layout.plan(), &inputs, Hash::ZERO)?;
                let right = match (fits(&goes_on), fits(&starts)) {
                    (true, _) => Some(goes_on),
                    (false, true) => {
                        *anew += 1;
                        Some(starts)
                    }
                    (false, false) => None,
                };
                match right {
                    Some((frame, left)) => {
                        self.frames.insert(reduction.frame.hash, frame);
                        if reduction.residual != Hash::ZERO {
                            self.kept.insert(reduction.residual, left);
                        }
                    }
                    None => wrong.push(key),
                }
            }
        }
        Ok(())
    }

    /// An owner's step: the frame, and the residual that it leaves.
    fn reduced(
        &self,
        shape: &Shape,
        shard: usize,
        plan: Plan,
        inputs: &[(u64, Hash)],
        before: Hash,
    ) -> Result<(Vec<u8>, Vec<f32>), String> {
        let (output, beta) = match plan {
            Plan::Gather | Plan::Reduce => (Stage::Reduced, shape.config().owner_beta),
            Plan::Hier => (Stage::Update, shape.config().feedback_beta),
        };
        let mean = self.mean(shape, shard, plan.stage_of_updates(), inputs)?;
        let mean = mean.ok_or("a reduction of nothing was decided")?;
        let zeros = vec![0.0; mean.len()];
        let before = self.kept.get(&before).unwrap_or(&zeros);
        let values = before.iter().zip(&mean);
        let values: Vec<f32> = values.map(|(before, mean)| beta * before + mean).collect();
        let (tiles, codec) = (shape.shard_tiles(shard), shape.config().codec(output));
        let frame = reference::encode(&values, tiles, codec).ok_or("a sum is out of range")?;
        let sent = reference::decode(&frame, tiles, codec).ok_or("a sum does not decode")?;
        let left = values.iter().zip(&sent).map(|(value, sent)| value - sent);
        let left = left.collect();
        Ok((frame, left))
    }

    /// The aggregate of one shard; `None` for one without tokens.
    fn mean(
        &self,
        shape: &Shape,
        shard: usize,
        stage: Stage,
        inputs: &[(u64, Hash)],
    ) -> Result<Option<Vec<f32>>, String> {
        let (tiles, codec) = (shape.shard_tiles(shard), shape.config().codec(stage));
        let mut values = Vec::new();
        for (_, hash) in inputs {
            let bytes = self
                .frames
                .get(hash)
                .ok_or_else(|| format!("decided frame {hash:?} was made by nobody"))?;
            let decoded = reference::decode(bytes, tiles, codec);
            values.push(decoded.ok_or_else(|| format!("decided frame {hash:?} does not decode"))?);
        }
        let total: u64 = inputs.iter().map(|(tokens, _)| tokens).sum();
        if total == 0 {
            return Ok(None);
        }
        let norms: Vec<f64> = values
            .iter()
            .map(|values| {
                let at = tiles.first().map_or(0, |tile| tile.elements().start);
                let of_tile = |tile: &Tile| {
                    let range = tile.elements();
                    &values[range.start - at..range.end - at]
                };
                let squares = tiles.iter().map(|tile| squares(codec, tile, of_tile(tile)));
                squares.fold(0.0f64, |sum, next| sum + next).sqrt()
            })
            .collect();
        let mut positive = norms.clone();
        positive.retain(|norm| *norm > 0.0);
        positive.sort_by(f64::total_cmp);
        let median = match positive.len() {
            0 => 0.0,
            count => positive[(count - 1) / 2],
        };
        let weights: Vec<f32> = inputs
            .iter()
            .zip(&norms)
            .map(|((tokens, _), norm)| {
                let clip = if *norm > median { median / norm } else { 1.0 };
                (*tokens as f64 * clip / total as f64) as f32
            })
            .collect();
        let elements = 0..shape.shard_elements(shard).len();
        let mean = elements.map(|element| {
            let mut sum = 0.0f32;
            for (values, weight) in values.iter().zip(&weights) {
                sum += weight * values[element];
            }
            sum
        });
        Ok(Some(mean.collect()))
    }

    /// The outer step on one shard.
    fn step(&mut self, shape: &Shape, shard: usize, mean: &[f32]) {
        for (element, mean) in shape.shard_elements(shard).zip(mean) {
            match shape.config().outer {
                Outer::Plain { rate } => self.theta[element] -= rate * mean,
                Outer::Nesterov { rate, momentum } => {
                    self.momentum[element] = momentum * self.momentum[element] + mean;
                    self.theta[element] -= rate * (mean + momentum * self.momentum[element]);
                }
            }
        }
    }

    fn root(&self, shape: &Shape) -> Hash {
        let mut leaves = Vec::new();
        for tile in shape.genesis().shape().layout().tiles() {
            let momentum = self.momentum.get(tile.elements()).unwrap_or_default();
            leaves.push([bytes(&self.theta[tile.elements()]), bytes(momentum)].concat());
        }
        if !self.residuals.is_empty() {
            for shard in 0..shape.shards() as u32 {
                let of_shard = self.residuals.iter().filter(|((_, of), _)| *of == shard);
                let pairs = of_shard.flat_map(|((group, _), hash)| [group.0.0, hash.0].concat());
                leaves.push(pairs.collect());
            }
        }
        let leaves = leaves.iter().map(|leaf| Hash::of_content(leaf));
        Tree::from_leaves(leaves.collect()).root()
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The hash of a residual; one of zeros alone is none.
fn hash_of(residual: &[f32]) -> Hash {
    if residual.iter().all(|value| *value == 0.0) {
        Hash::ZERO
    } else {
        Hash::of_content(&bytes(residual))
    }
}

/// Rule "norm" for one tile, which has these values. Besides its peak, the largest, all entries of a sparse tile have one
/// of a few magnitudes. They are added from the largest down; of two the order makes no difference.
fn squares(codec: Codec, tile: &Tile, values: &[f32]) -> f64 {
    let sparse = matches!(codec, Codec::Sparse { .. }) && tile.mode() == TensorMode::Sparse;
    if !sparse {
        return values
            .iter()
            .fold(0.0, |sum, v| sum + f64::from(*v) * f64::from(*v));
    }
    let mut others: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    others.retain(|v| *v > 0.0);
    others.sort_by(f32::total_cmp);
    let Some(peak) = others.pop() else {
        return 0.0;
    };
    let square = |level: f32| f64::from(level) * f64::from(level);
    let levels = others.chunk_by(|a, b| a == b).rev();
    let squares = levels.map(|level| level.len() as f64 * square(level[0]));
    squares.fold(0.0, |sum, next| sum + next) + square(peak)
}
