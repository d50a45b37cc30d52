//! What a simulated peer learns with: the reference model, real frames, real aggregation, real state roots.
//!
//! Small on purpose: 280 parameters in five tensors, so that a round of a peer costs tens of microseconds, and yet every
//! bit of the state is a function of every decision. It does by the rules what the daemon's worker does; it measures
//! nothing and touches no file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use gradmesh_compression::{
    Codec, DenseFormat, ErrorFeedback, Frame, Layout, Member, TensorMode, TensorSpec, TopK,
    UpdateNorm, ValueBits, aggregate, decode, frame_bytes_max, weights,
};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, UpdateSummary};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{CodecKind, Manifest, OuterRule, RoundId};
use gradmesh_protocol::merkle::Tree;
use gradmesh_protocol::wire::DecisionRecord;
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::{Batch, InnerOptimizer, TrainTask, Trainer};

const MODEL: ReferenceConfig = ReferenceConfig {
    vocab: 16,
    context: 2,
    embed: 4,
    hidden: 8,
};

/// The shape of a run: the same for all its peers.
#[derive(Clone, Debug)]
pub struct Shape {
    layout: Layout,
    shards: Vec<Range<usize>>,
    codec: Codec,
    rule: OuterRule,
    rate: f32,
    momentum: f32,
    feedback_beta: f32,
    batch_sequences: usize,
    sequence_tokens: usize,
    genesis: State,
    optimizer: InnerOptimizer,
}

/// The replicated state: theta and, with Nesterov's rule, the outer momentum.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Parameters, flat.
    pub theta: Vec<f32>,
    /// Outer momentum, as long as theta; empty with the plain rule.
    pub momentum: Vec<f32>,
}

/// What a peer keeps for itself and makes durable with each update.
#[derive(Clone, Debug)]
pub struct Private {
    trainer: ReferenceTrainer,
    feedback: ErrorFeedback,
    /// The newest update and the round that it was made for, until that round is applied.
    pending: Option<(RoundId, Update)>,
}

/// An encoded update: what goes into the header, and the frames by shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// What goes into the header.
    pub summary: UpdateSummary,
    /// The frames, in shard order.
    pub frames: Vec<Vec<u8>>,
}

/// Frames by content hash.
pub type Frames = BTreeMap<Hash, Vec<u8>>;

fn ppm(value: u32) -> f32 {
    (f64::from(value) / 1e6) as f32
}

impl Shape {
    /// The shape that `manifest` fixes.
    ///
    /// # Panics
    /// If the manifest is unsound: the simulator made it.
    pub fn new(manifest: &Manifest) -> Shape {
        let sparse_min = manifest.codec.sparse_elements_min as usize;
        let tensors: Vec<TensorSpec> = MODEL
            .parameters()
            .iter()
            .map(|spec| TensorSpec {
                elements: spec.elements(),
                mode: TensorMode::for_elements(spec.elements(), sparse_min),
            })
            .collect();
        let layout = Layout::new(&tensors).expect("a small model");
        let per_shard = NonZeroUsize::new(manifest.codec.tiles_per_shard as usize)
            .expect("a sound manifest has tiles in its shards");
        let shards = layout.shards(per_shard).collect();
        let codec = match manifest.codec.kind {
            CodecKind::Sparse => Codec::Sparse {
                k: TopK::new(manifest.codec.k as u16).expect("a sound manifest's k"),
                value_bits: match manifest.codec.value_bits {
                    1 => ValueBits::One,
                    _ => ValueBits::Two,
                },
            },
            CodecKind::DenseBf16 => Codec::Dense(DenseFormat::Bf16),
            CodecKind::DenseF32 => Codec::Dense(DenseFormat::F32),
            CodecKind::DenseInt8 => Codec::Dense(DenseFormat::Int8),
            CodecKind::DenseInt4 => Codec::Dense(DenseFormat::Int4),
        };
        let theta = MODEL.init(manifest.seed.0);
        let momentum = match manifest.outer.rule {
            OuterRule::Plain => Vec::new(),
            OuterRule::Nesterov => vec![0.0; theta.len()],
        };
        let rate = |value: u32| f64::from(value) / 1e6;
        Shape {
            layout,
            shards,
            codec,
            rule: manifest.outer.rule,
            rate: ppm(manifest.outer.rate_ppm),
            momentum: ppm(manifest.outer.momentum_ppm),
            feedback_beta: ppm(manifest.codec.feedback_beta_ppm),
            batch_sequences: manifest.inner.batch_sequences as usize,
            sequence_tokens: manifest.data.sequence_tokens as usize,
            genesis: State { theta, momentum },
            optimizer: InnerOptimizer {
                learning_rate: rate(manifest.inner.learning_rate_ppm),
                warmup_steps: manifest.inner.warmup_steps.into(),
                beta1: rate(manifest.inner.beta1_ppm),
                beta2: rate(manifest.inner.beta2_ppm),
                weight_decay: rate(manifest.inner.weight_decay_ppm),
                ..InnerOptimizer::default()
            },
        }
    }

    /// The state before the first round.
    pub fn genesis(&self) -> &State {
        &self.genesis
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Tiles of each shard.
    pub fn shard_tiles(&self, shard: usize) -> &[gradmesh_compression::Tile] {
        &self.layout.tiles()[self.shards[shard].clone()]
    }

    /// Elements of each shard.
    pub fn shard_elements(&self, shard: usize) -> Range<usize> {
        let range = self.shards[shard].clone();
        self.layout
            .shard_elements(range)
            .expect("the layout's own shards lie in it")
    }

    /// The codec of the run.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The longest frame that any shard can have.
    pub fn frame_bytes_max(&self) -> usize {
        (0..self.shards())
            .map(|shard| frame_bytes_max(self.shard_tiles(shard), self.codec))
            .max()
            .unwrap_or(0)
    }

    /// Whether `bytes` are a frame of `shard`.
    pub fn decodes(&self, shard: usize, bytes: &[u8]) -> bool {
        shard < self.shards() && decode(bytes, self.shard_tiles(shard), self.codec).is_ok()
    }

    /// The contents of the leaves of `state`, in order: each tile of theta, then each tile of the momentum, as f32 le.
    pub fn leaves(&self, state: &State) -> Vec<Vec<u8>> {
        [&state.theta, &state.momentum]
            .into_iter()
            .filter(|flat| !flat.is_empty())
            .flat_map(|flat| {
                self.layout.tiles().iter().map(|tile| {
                    let values = &flat[tile.elements()];
                    values.iter().flat_map(|v| v.to_le_bytes()).collect()
                })
            })
            .collect()
    }

    /// The state root.
    pub fn root(&self, state: &State) -> Hash {
        let leaves = self.leaves(state);
        Tree::from_leaves(leaves.iter().map(|leaf| Hash::of_content(leaf)).collect()).root()
    }

    /// The state with these leaves; `None` if their number or a length is wrong.
    pub fn state_from_leaves(&self, leaves: &[Vec<u8>]) -> Option<State> {
        let tiles = self.layout.tiles();
        let momentum = !self.genesis.momentum.is_empty();
        if leaves.len() != tiles.len() * (1 + usize::from(momentum)) {
            return None;
        }
        let mut flats = leaves.chunks(tiles.len()).map(|leaves| {
            let mut flat = Vec::with_capacity(self.layout.elements());
            for (tile, leaf) in tiles.iter().zip(leaves) {
                let (values, rest) = leaf.as_chunks::<4>();
                if values.len() != tile.len() || !rest.is_empty() {
                    return None;
                }
                flat.extend(values.iter().map(|v| f32::from_le_bytes(*v)));
            }
            Some(flat)
        });
        Some(State {
            theta: flats.next()??,
            momentum: if momentum { flats.next()?? } else { Vec::new() },
        })
    }

    /// Applies `record` to `state`: the accepted frames in canonical order, then the outer step.
    ///
    /// # Errors
    /// What is missing or wrong: the node asked for this before all frames were held.
    pub fn apply(
        &self,
        state: &mut State,
        record: &DecisionRecord,
        frames: &Frames,
    ) -> Result<(), String> {
        if record.decision.members.is_empty() {
            return Ok(());
        }
        let counts = |place: usize, shard: usize| {
            let decided = record.decision.shards.get(shard);
            decided.is_some_and(|decided| decided.accepted.contains(place))
        };
        let mut decoded: Vec<Vec<Option<Frame>>> = Vec::with_capacity(record.headers.len());
        for (place, header) in record.headers.iter().enumerate() {
            let mut shards = Vec::with_capacity(self.shards());
            for (shard, frame) in header.header.update.frames.iter().enumerate() {
                if !counts(place, shard) {
                    shards.push(None);
                    continue;
                }
                let bytes = frames.get(&frame.hash).ok_or_else(|| {
                    format!(
                        "frame {:?} of {:?} is not held",
                        frame.hash, header.header.peer
                    )
                })?;
                let frame = decode(bytes, self.shard_tiles(shard), self.codec)
                    .map_err(|error| format!("frame {:?}: {error}", frame.hash))?;
                shards.push(Some(frame));
            }
            decoded.push(shards);
        }
        // The norm of an update is that of its accepted shards: nobody has to hold the others.
        let norms: Vec<UpdateNorm> = decoded
            .iter()
            .map(|shards| {
                let mut norm = UpdateNorm::default();
                shards.iter().flatten().for_each(|frame| norm.add(frame));
                norm
            })
            .collect();
        let headers = &record.headers;
        let mut mean = vec![0.0; self.layout.elements()];
        for shard in 0..self.shards() {
            let accepted: Vec<usize> = (0..headers.len())
                .filter(|place| counts(*place, shard))
                .collect();
            if accepted.is_empty() {
                continue;
            }
            let tokens: Vec<u64> = accepted
                .iter()
                .map(|place| headers[*place].header.update.tokens)
                .collect();
            let of_accepted: Vec<UpdateNorm> = accepted.iter().map(|p| norms[*p]).collect();
            let weights = weights(&tokens, &of_accepted).map_err(|e| e.to_string())?;
            let members: Vec<Member<'_>> = accepted
                .iter()
                .zip(weights)
                .filter_map(|(place, weight)| {
                    let frame = decoded[*place][shard].as_ref()?;
                    Some(Member { frame, weight })
                })
                .collect();
            aggregate(&members, &mut mean[self.shard_elements(shard)])
                .map_err(|e| e.to_string())?;
        }
        self.step(state, &mean);
        Ok(())
    }

    /// The outer step: `theta -= rate * mean`, or Nesterov's (`m = mu m + mean`, `theta -= rate (mean + mu m)`).
    pub fn step(&self, state: &mut State, mean: &[f32]) {
        match self.rule {
            OuterRule::Plain => {
                for (theta, mean) in state.theta.iter_mut().zip(mean) {
                    *theta -= self.rate * mean;
                }
            }
            OuterRule::Nesterov => {
                let values = state.theta.iter_mut().zip(&mut state.momentum);
                for ((theta, momentum), mean) in values.zip(mean) {
                    *momentum = self.momentum * *momentum + mean;
                    *theta -= self.rate * (mean + self.momentum * *momentum);
                }
            }
        }
    }

    /// Mean loss of `state` on a batch that no peer trains on, in nats per token.
    pub fn loss(&self, state: &State) -> f32 {
        let mut trainer = self.trainer();
        let batch = self.batch(&Hash::of_content(b"held out"), &PeerKey([0; 32]), 0);
        trainer.loss(&state.theta, &batch).unwrap_or(f32::NAN)
    }

    fn trainer(&self) -> ReferenceTrainer {
        ReferenceTrainer::new(MODEL, self.optimizer.clone()).expect("a sound optimizer")
    }

    /// Sequences in which a token mostly follows from the one before, so that there is something to learn.
    fn batch(&self, seed: &Hash, peer: &PeerKey, step: u32) -> Batch {
        let mut hasher = blake3::Hasher::new_keyed(&seed.0);
        hasher.update(&peer.0);
        hasher.update(&step.to_le_bytes());
        let row = self.sequence_tokens + 1;
        let mut noise = vec![0u8; self.batch_sequences * row];
        hasher.finalize_xof().fill(&mut noise);
        let vocab = MODEL.vocab as u32;
        let mut tokens = Vec::with_capacity(noise.len());
        for row in noise.chunks(row) {
            let mut token = u32::from(row[0]) % vocab;
            for byte in row {
                tokens.push(token);
                let follows = (5 * token + 3) % vocab;
                token = if *byte < 200 {
                    follows
                } else {
                    u32::from(*byte) % vocab
                };
            }
        }
        Batch::new(tokens, self.batch_sequences).expect("rows of equal length")
    }
}

impl Private {
    /// What a peer begins with.
    pub fn new(shape: &Shape) -> Private {
        let elements = shape.layout.elements();
        Private {
            trainer: shape.trainer(),
            feedback: ErrorFeedback::new(elements, shape.feedback_beta)
                .expect("a sound manifest's beta"),
            pending: None,
        }
    }

    /// The update that was made for `round` and is not settled yet.
    pub fn pending(&self, round: RoundId) -> Option<&Update> {
        self.pending
            .as_ref()
            .filter(|(of, _)| *of == round)
            .map(|(_, update)| update)
    }

    /// The round of the update that is not settled yet.
    pub fn pending_round(&self) -> Option<RoundId> {
        self.pending.as_ref().map(|(round, _)| *round)
    }

    fn learn(
        &mut self,
        shape: &Shape,
        state: &State,
        peer: &PeerKey,
        task: (RoundId, Hash, u32),
    ) -> (Vec<f32>, gradmesh_trainer::TrainReport) {
        let (round, seed, steps) = task;
        let task = TrainTask {
            first_step: 0,
            steps,
            global_step: round.0.saturating_sub(1) * u64::from(steps),
        };
        let mut batches = |step: u32| Ok(shape.batch(&seed, peer, step));
        let report = self
            .trainer
            .train(&state.theta, &task, &mut batches, &mut |_| true)
            .expect("the reference model trains on its own batches");
        let local = self.trainer.local();
        let delta = state.theta.iter().zip(&local).map(|(t, l)| t - l).collect();
        (delta, report)
    }

    /// Trains `task` (round, data seed, steps) from `state`, encodes the update and keeps it as pending.
    pub fn train(
        &mut self,
        shape: &Shape,
        state: &State,
        peer: &PeerKey,
        task: (RoundId, Hash, u32),
    ) -> &Update {
        let (delta, report) = self.learn(shape, state, peer, task);
        let feedback_before = residual_root(&self.feedback);
        self.feedback
            .accumulate(&delta)
            .expect("updates of the reference model are small");
        let mut frames = Vec::with_capacity(shape.shards());
        for shard in 0..shape.shards() {
            let mut frame = Vec::new();
            let start = shape.shard_elements(shard).start;
            self.feedback
                .take(start, shape.shard_tiles(shard), shape.codec, &mut frame)
                .expect("a residual in range encodes");
            frames.push(frame);
        }
        let micronats = |loss: f32| (f64::from(loss) * 1e6).round() as u64;
        let summary = UpdateSummary {
            frames: frames
                .iter()
                .map(|frame| FrameRef {
                    hash: Hash::of_content(frame),
                    bytes: frame.len() as u64,
                })
                .collect(),
            feedback_before,
            feedback_after: residual_root(&self.feedback),
            segments_root: Hash::ZERO,
            tokens: report.tokens,
            steps: report.steps,
            loss_first_micronats: micronats(report.loss_first),
            loss_last_micronats: micronats(report.loss_last),
            build: "simulator".into(),
            device: "cpu".into(),
        };
        let update = Update { summary, frames };
        &self.pending.insert((task.0, update)).1
    }

    /// Keeps what was learnt in the `steps` that were done of a stopped training.
    pub fn fold(
        &mut self,
        shape: &Shape,
        state: &State,
        peer: &PeerKey,
        task: (RoundId, Hash, u32),
    ) {
        if task.2 == 0 {
            return;
        }
        let (delta, _) = self.learn(shape, state, peer, task);
        self.feedback
            .accumulate(&delta)
            .expect("updates of the reference model are small");
    }

    /// Settles the pending update, if it is of `round` or before: what `record` did not accept goes back into the error
    /// feedback. `record`: the decision of the update's round, if it is known; without it nothing counts as accepted.
    pub fn settle(&mut self, shape: &Shape, peer: &PeerKey, record: Option<&DecisionRecord>) {
        let Some((_, update)) = self.pending.take() else {
            return;
        };
        let place = record.and_then(|record| {
            let mut members = record.decision.members.iter();
            Some((record, members.position(|m| m.peer == *peer)?))
        });
        for (shard, bytes) in update.frames.iter().enumerate() {
            let accepted = place.is_some_and(|(record, place)| {
                let decided = record.decision.shards.get(shard);
                decided.is_some_and(|decided| decided.accepted.contains(place))
            });
            if accepted {
                continue;
            }
            // A peer that sent a frame that does not decode (on purpose) has nothing to give back.
            if let Ok(frame) = decode(bytes, shape.shard_tiles(shard), shape.codec) {
                self.feedback
                    .give_back(shape.shard_elements(shard).start, &frame)
                    .expect("an own frame lies in the residual");
            }
        }
    }

    /// Replaces the frame of shard 0 by bytes that are no frame, as a liar would.
    pub fn spoil(&mut self) {
        if let Some((_, update)) = &mut self.pending {
            let frame = vec![0xff; update.frames[0].len()];
            update.summary.frames[0].hash = Hash::of_content(&frame);
            update.frames[0] = frame;
        }
    }
}

/// A hash over the residual, as f32 le.
fn residual_root(feedback: &ErrorFeedback) -> Hash {
    let bytes: Vec<u8> = feedback
        .residual()
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    Hash::of_content(&bytes)
}
