//! What a simulated peer learns with: the reference model and the replica that the daemon's worker has.
//!
//! Small on purpose: 280 parameters in five tensors, so that a round of a peer costs tens of microseconds, and yet every
//! bit of the state is a function of every decision. It measures nothing and touches no file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::fragment::Fragments;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{
    FrameId, FrameRef, PerStage, Stage, UpdateSummary, WorkCommitment,
};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{CodecKind, LocalFormat, Manifest, OuterRule, RoundId};
use gradmesh_protocol::node::AppliedShard;
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::wire::DecisionRecord;
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::replica::{
    Contribution, Outer, OwnUpdate, Replica, ReplicaConfig, RoundShard, StateImport, UpdateError,
};
use gradmesh_trainer::{Batch, InnerOptimizer, TrainTask, Trainer};

pub(crate) const MODEL: ReferenceConfig = ReferenceConfig {
    vocab: 16,
    context: 2,
    embed: 4,
    hidden: 8,
};

/// The shape of a run: the same for all its peers.
#[derive(Clone, Debug)]
pub struct Shape {
    shards: Vec<Range<usize>>,
    config: ReplicaConfig,
    batch_sequences: usize,
    sequence_tokens: usize,
    fragments: Fragments,
    genesis: Replica,
    optimizer: InnerOptimizer,
    planned_scale: u64,
    model: ReferenceConfig,
}

/// What training needs beside the replica.
#[derive(Clone, Debug)]
pub struct Private {
    trainer: ReferenceTrainer,
    /// The newest update and the round that it was made for, until that round is applied.
    pending: Option<(RoundId, Update)>,
}

/// An encoded update: what goes into the header, and the frames by shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// What goes into the header.
    pub summary: UpdateSummary,
    /// The frames, in the order of its shards.
    pub frames: Vec<Vec<u8>>,
    stage: Stage,
    /// The shards that it is of.
    shards: Range<usize>,
    /// Its first frame is no frame, on purpose.
    spoiled: bool,
}

/// A training task.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The round.
    pub round: RoundId,
    /// Fixes the data.
    pub seed: Hash,
    /// Inner steps.
    pub steps: u32,
}

/// Frames and residuals by content hash.
pub type Frames = BTreeMap<Hash, Vec<u8>>;

fn ppm(value: u32) -> f32 {
    (f64::from(value) / 1e6) as f32
}

fn sparse(k: u32, value_bits: u32) -> Codec {
    Codec::Sparse {
        k: TopK::new(k as u16).expect("a sound manifest's k"),
        value_bits: match value_bits {
            1 => ValueBits::One,
            2 => ValueBits::Two,
            _ => ValueBits::Four,
        },
    }
}

impl Shape {
    /// The shape of `model` that `manifest` fixes. `planned_scale`: see [`Options`](crate::Options).
    ///
    /// # Panics
    /// If the manifest is unsound: the simulator made it.
    pub fn new(manifest: &Manifest, model: ReferenceConfig, planned_scale: u64) -> Shape {
        let codec = &manifest.codec;
        let (update, reduced) = match codec.kind {
            CodecKind::Sparse => (
                sparse(codec.k, codec.value_bits),
                sparse(
                    manifest.exchange.reduced_k,
                    manifest.exchange.reduced_value_bits,
                ),
            ),
            CodecKind::DenseBf16 => dense(DenseFormat::Bf16),
            CodecKind::DenseF32 => dense(DenseFormat::F32),
            CodecKind::DenseInt8 => dense(DenseFormat::Int8),
            CodecKind::DenseInt4 => dense(DenseFormat::Int4),
        };
        let rate = ppm(manifest.outer.rate_ppm);
        let config = ReplicaConfig {
            codec: update,
            reduced,
            local: Codec::Dense(match manifest.exchange.local {
                LocalFormat::Bf16 => DenseFormat::Bf16,
                LocalFormat::F32 => DenseFormat::F32,
            }),
            outer: match manifest.outer.rule {
                OuterRule::Plain => Outer::Plain { rate },
                OuterRule::Nesterov => Outer::Nesterov {
                    rate,
                    momentum: ppm(manifest.outer.momentum_ppm),
                },
            },
            feedback_beta: ppm(codec.feedback_beta_ppm),
            owner_beta: ppm(manifest.exchange.owner_beta_ppm),
            sparse_elements_min: codec.sparse_elements_min as usize,
            tiles_per_shard: NonZeroUsize::new(codec.tiles_per_shard as usize)
                .expect("a sound manifest has tiles in its shards"),
        };
        let genesis = Replica::new(&model.parameters(), config, model.init(manifest.seed.0))
            .expect("a small model");
        let shards = genesis
            .shape()
            .layout()
            .shards(config.tiles_per_shard)
            .collect();
        let shape = genesis.shape();
        let elements = (0..shape.shard_count()).filter_map(|shard| shape.shard_elements(shard));
        let elements: Vec<u64> = elements.map(|range| range.len() as u64).collect();
        let fragments = Fragments::deal(&elements, manifest.exchange.fragments)
            .expect("the simulator wants no more fragments than the model has shards");
        let rate = |value: u32| f64::from(value) / 1e6;
        Shape {
            planned_scale,
            model,
            shards,
            fragments,
            config,
            batch_sequences: manifest.inner.batch_sequences as usize,
            sequence_tokens: manifest.data.sequence_tokens as usize,
            genesis,
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

    /// The replica before the first round.
    pub fn genesis(&self) -> &Replica {
        &self.genesis
    }

    /// The settings of the replica.
    pub fn config(&self) -> &ReplicaConfig {
        &self.config
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Which of them each round exchanges.
    pub fn fragments(&self) -> &Fragments {
        &self.fragments
    }

    /// Tiles of each shard.
    pub fn shard_tiles(&self, shard: usize) -> &[gradmesh_compression::Tile] {
        &self.genesis.shape().layout().tiles()[self.shards[shard].clone()]
    }

    /// Elements of each shard.
    pub fn shard_elements(&self, shard: usize) -> Range<usize> {
        let range = self.shards[shard].clone();
        let layout = self.genesis.shape().layout();
        layout
            .shard_elements(range)
            .expect("the layout's own shards lie in it")
    }

    /// The longest frame that any shard can have at each stage.
    pub fn frame_bytes_max(&self) -> PerStage {
        self.of_stages(|bytes| bytes.max().unwrap_or(0))
    }

    /// The most bytes that an update can have at each stage, as the planner is told.
    pub fn update_bytes(&self) -> PerStage {
        self.of_stages(|bytes| bytes.sum::<u64>() * self.planned_scale)
    }

    fn of_stages(&self, fold: impl Fn(&mut dyn Iterator<Item = u64>) -> u64) -> PerStage {
        let of = |stage| {
            let shards = 0..self.shards();
            let bytes =
                shards.filter_map(|shard| self.genesis.shape().frame_bytes_max(stage, shard));
            fold(&mut bytes.map(|bytes| bytes as u64))
        };
        PerStage {
            local: of(Stage::Local),
            update: of(Stage::Update),
            reduced: of(Stage::Reduced),
        }
    }

    /// Whether `bytes` are a frame of `shard` at `stage`.
    pub fn decodes(&self, stage: Stage, shard: usize, bytes: &[u8]) -> bool {
        self.genesis
            .shape()
            .check_frame(stage, shard, bytes)
            .is_ok()
    }

    /// The contents of the leaves of `state`, in order.
    pub fn leaves(&self, state: &Replica) -> Vec<Vec<u8>> {
        let leaves = 0..state.leaf_count();
        leaves.filter_map(|leaf| state.export_leaf(leaf)).collect()
    }

    /// A state to be filled with the contents of leaves that have these hashes; `None` if they are not those of `root`.
    pub fn import(&self, root: Hash, leaves: Vec<Hash>) -> Option<StateImport> {
        StateImport::new(&self.model.parameters(), self.config, root, leaves).ok()
    }

    /// Applies a decided round to `state`.
    ///
    /// `own`: this peer's update, and which of its shards were accepted.
    ///
    /// # Errors
    /// What is missing or wrong: the node asked for this before all frames were held.
    pub fn apply(
        &self,
        state: &mut Replica,
        shards: &[AppliedShard],
        groups: &[GroupId],
        frames: &Frames,
        own: Option<(&Update, &[bool])>,
    ) -> Result<(), String> {
        let mut round = Vec::with_capacity(self.shards());
        for shard in shards {
            let stage = shard.contributions.first().map(|c| c.frame.stage);
            let contributions = shard.contributions.iter().map(|c| {
                let frame = frames.get(&c.frame.hash);
                let frame = frame.ok_or_else(|| format!("frame {:?} is not held", c.frame))?;
                let tokens = c.tokens;
                Ok(Contribution { tokens, frame })
            });
            round.push(RoundShard {
                stage: stage.unwrap_or(Stage::Update),
                contributions: contributions.collect::<Result<_, String>>()?,
                residuals: shard.residuals.clone(),
            });
        }
        let own = own.map(|(update, accepted)| OwnUpdate {
            stage: update.stage,
            shards: update.shards.clone(),
            frames: &update.frames,
            accepted,
        });
        let applied = state.apply(&round, own, groups);
        applied.map_err(|error| error.to_string())
    }

    /// Mean loss of `theta` on a batch that no peer trains on, in nats per token.
    pub fn loss(&self, theta: &[f32]) -> f32 {
        let mut trainer = self.trainer();
        let batch = self.batch(&Hash::of_content(b"held out"), &PeerKey([0; 32]), 0);
        trainer.loss(theta, &batch).unwrap_or(f32::NAN)
    }

    /// A trainer that has done nothing.
    pub(crate) fn trainer(&self) -> ReferenceTrainer {
        ReferenceTrainer::new(self.model, self.optimizer.clone()).expect("a sound optimizer")
    }

    fn batch(&self, seed: &Hash, peer: &PeerKey, step: u32) -> Batch {
        let mut hasher = blake3::Hasher::new_keyed(&seed.0);
        hasher.update(&peer.0);
        hasher.update(&step.to_le_bytes());
        let row = self.sequence_tokens + 1;
        let mut noise = vec![0u8; self.batch_sequences * row];
        hasher.finalize_xof().fill(&mut noise);
        sequences(&noise, row)
    }

    /// The batch of these windows of data that is the same in all runs, in their order. At least one.
    pub(crate) fn windows(&self, indices: &[u64]) -> Batch {
        let row = self.sequence_tokens + 1;
        let mut noise = vec![0u8; indices.len() * row];
        for (row, index) in noise.chunks_mut(row).zip(indices) {
            let mut hasher = blake3::Hasher::new_keyed(&Hash::of_content(b"windows").0);
            hasher.update(&index.to_le_bytes());
            hasher.finalize_xof().fill(row);
        }
        sequences(&noise, row)
    }

    /// Sequences of a batch.
    pub(crate) fn batch_sequences(&self) -> usize {
        self.batch_sequences
    }
}

/// Sequences, one for each `row` bytes of noise, in which a token mostly follows from the one before, so that there is
/// something to learn.
fn sequences(noise: &[u8], row: usize) -> Batch {
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
    Batch::new(tokens, noise.len() / row).expect("rows of equal length")
}

fn dense(format: DenseFormat) -> (Codec, Codec) {
    (Codec::Dense(format), Codec::Dense(format))
}

impl Update {
    /// Whether it has these frames.
    pub fn is_of(&self, frames: &[FrameId]) -> bool {
        let own = self.shards.clone().zip(&self.summary.frames);
        own.map(|(shard, frame)| frame.id(shard as u32, self.stage))
            .eq(frames.iter().copied())
    }

    /// Where training starts on `state` while this update is in flight.
    ///
    /// # Errors
    /// For one that was spoiled.
    pub fn start_ahead(&self, state: &Replica) -> Result<Vec<f32>, UpdateError> {
        state.start_ahead(self.stage, self.shards.clone(), &self.frames)
    }

    /// Which of its shards `record` accepted, as far as they are given back. A peer that sent a frame that does not decode
    /// (on purpose) has nothing of it to give back.
    pub fn accepted(&self, peer: &PeerKey, record: Option<&DecisionRecord>) -> Vec<bool> {
        let place = record.and_then(|record| {
            let mut members = record.decision.members.iter();
            Some((record, members.position(|m| m.peer == *peer)?))
        });
        let shards = 0..self.frames.len();
        let accepted = shards.map(|shard| {
            let decided = place.is_some_and(|(record, place)| {
                let decided = record.decision.shards.get(shard);
                decided.is_some_and(|decided| decided.accepted.contains(place))
            });
            decided || shard == 0 && self.spoiled
        });
        accepted.collect()
    }
}

impl Private {
    /// What a peer begins with.
    pub fn new(shape: &Shape) -> Private {
        Private {
            trainer: shape.trainer(),
            pending: None,
        }
    }

    /// The update that was made for `round` and is not settled yet.
    pub fn pending(&self, round: RoundId) -> Option<&Update> {
        let pending = self.pending.as_ref().filter(|(of, _)| *of == round);
        pending.map(|(_, update)| update)
    }

    /// The round of the update that is not settled yet.
    pub fn pending_round(&self) -> Option<RoundId> {
        self.pending.as_ref().map(|(round, _)| *round)
    }

    /// The update that was made for `round`, which is settled with this.
    pub fn settle(&mut self, round: RoundId) -> Option<Update> {
        let pending = self.pending.take_if(|(of, _)| *of <= round);
        pending.map(|(_, update)| update)
    }

    fn learn(
        &mut self,
        shape: &Shape,
        start: &[f32],
        peer: &PeerKey,
        task: Task,
    ) -> (Vec<f32>, gradmesh_trainer::TrainReport) {
        let steps = task.steps;
        let train = TrainTask {
            first_step: 0,
            steps,
            global_step: task.round.0.saturating_sub(1) * u64::from(steps),
        };
        let mut batches = |step: u32| Ok(shape.batch(&task.seed, peer, step));
        let report = self
            .trainer
            .train(start, &train, &mut batches, &mut |_| true)
            .expect("the reference model trains on its own batches");
        (self.trainer.local(), report)
    }

    /// Trains `task` from `start`, encodes the update with the error feedback of `state` and keeps it as pending.
    pub fn train(
        &mut self,
        shape: &Shape,
        state: &mut Replica,
        start: &[f32],
        peer: &PeerKey,
        task: Task,
        (stage, shards): (Stage, Range<usize>),
    ) {
        let (local, report) = self.learn(shape, start, peer, task);
        let update = state
            .update_of(shards.clone(), Some(start), &local, stage)
            .expect("updates of the reference model are small");
        let micronats = |loss: f32| (f64::from(loss) * 1e6).round() as u64;
        let frame = |frame: &Vec<u8>| FrameRef {
            hash: Hash::of_content(frame),
            bytes: frame.len() as u64,
        };
        let summary = UpdateSummary {
            frames: update.frames.iter().map(frame).collect(),
            feedback_before: update.feedback_before,
            feedback_after: update.feedback_after,
            work: WorkCommitment::default(),
            tokens: report.tokens,
            steps: report.steps,
            loss_first_micronats: micronats(report.loss_first),
            loss_last_micronats: micronats(report.loss_last),
            build: "simulator".into(),
            device: "cpu".into(),
        };
        let update = Update {
            summary,
            frames: update.frames,
            stage,
            shards,
            spoiled: false,
        };
        self.pending = Some((task.round, update));
    }

    /// Keeps what was learnt in the steps that were done of a training that was stopped.
    pub fn fold(
        &mut self,
        shape: &Shape,
        state: &mut Replica,
        start: &[f32],
        peer: &PeerKey,
        task: Task,
    ) {
        if task.steps > 0 {
            let (local, _) = self.learn(shape, start, peer, task);
            state
                .fold(start, &local)
                .expect("updates of the reference model are small");
        }
    }

    /// Replaces the first frame by bytes that are no frame, as a liar would.
    pub fn spoil(&mut self) {
        if let Some((_, update)) = &mut self.pending {
            let frame = vec![0xff; update.frames[0].len()];
            update.summary.frames[0].hash = Hash::of_content(&frame);
            update.frames[0] = frame;
            update.spoiled = true;
        }
    }
}
