//! One run: peers that train, exchange and apply in one process.

use std::ops::Range;
use std::thread;

use anyhow::{Context, ensure};
use gradmesh_protocol::fragment::Fragments;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::plan::GroupId;
use gradmesh_trainer::data::{Windows, assignment};
use gradmesh_trainer::replica::{Contribution, Reduction, Replica, RoundShard};
use gradmesh_trainer::torch::TorchSettings;
use gradmesh_trainer::{Architecture, InnerOptimizer, TrainTask, Trainer};

use super::setting::{Plan, SITES, Setting};
use super::{Args, FINAL_WINDOWS, VALIDATE_EVERY, WINDOWS};

/// What a run gave; see the JSON of the parent module.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) loss: f64,
    pub(super) frame_bytes: f64,
    pub(super) reduced_bytes: f64,
    pub(super) rounds: Vec<Round>,
}

#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) train: f64,
    pub(super) validation: Option<f64>,
}

struct Peer {
    hotkey: [u8; 32],
    trainer: Box<dyn Trainer>,
    replica: Replica,
    /// An update that is not applied yet.
    in_flight: Option<InFlight>,
}

/// Frames of one fragment.
struct InFlight {
    shards: Range<usize>,
    frames: Vec<Vec<u8>>,
}

/// The peers of a run and what their owners keep.
pub(super) struct Mesh<'a> {
    setting: Setting,
    args: &'a Args,
    seed: u8,
    /// Of a round.
    steps: u32,
    rounds: u32,
    fragments: Fragments,
    peers: Vec<Peer>,
    /// By group and shard: the owners' residuals.
    residuals: Vec<Vec<Vec<u8>>>,
    frame_bytes: u64,
    reduced_bytes: u64,
}

/// What a peer's training of one round gave.
struct Trained {
    start: Vec<f32>,
    local: Vec<f32>,
    loss: f64,
}

impl<'a> Mesh<'a> {
    pub(super) fn new(
        architecture: &Architecture,
        inner: &InnerOptimizer,
        setting: Setting,
        args: &'a Args,
        seed: u8,
    ) -> anyhow::Result<Self> {
        let theta = architecture.init([seed; 32])?;
        let config = setting.replica(&args.parameters)?;
        let parameters = architecture.parameters();
        let replica = Replica::new(&parameters, config, theta)?;
        let shape = replica.shape();
        let elements = (0..shape.shard_count()).filter_map(|shard| shape.shard_elements(shard));
        let elements: Vec<u64> = elements.map(|range| range.len() as u64).collect();
        let count = setting.fragments(&args.parameters);
        let fragments = Fragments::deal(&elements, count)?;
        let peers = (0..args.peers)
            .map(|peer| {
                Ok(Peer {
                    hotkey: [u8::try_from(peer).context("too many peers")?; 32],
                    trainer: architecture.trainer(TorchSettings::cpu(inner.clone()))?,
                    replica: replica.clone(),
                    in_flight: None,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            setting,
            args,
            seed,
            steps: args.steps / count,
            rounds: args.rounds * count,
            fragments,
            peers,
            residuals: vec![vec![Vec::new(); replica.shape().shard_count()]; SITES],
            frame_bytes: 0,
            reduced_bytes: 0,
        })
    }

    /// All rounds; `tell` takes lines on how it goes.
    pub(super) fn run(
        &mut self,
        windows: &Windows<'_>,
        tell: impl Fn(String),
    ) -> anyhow::Result<Run> {
        let mut rounds = Vec::new();
        for round in 0..self.rounds {
            let train = self.round(round, windows)?;
            let validation = match (round + 1) % VALIDATE_EVERY {
                0 => Some(self.validation(windows, WINDOWS)?),
                _ => None,
            };
            if let Some(validation) = validation {
                let rounds = self.rounds;
                tell(format!(
                    "round {} of {rounds}: train {train:.4}, validation {validation:.4}",
                    round + 1
                ));
            }
            rounds.push(Round { train, validation });
        }
        self.land()?;
        let count = f64::from(self.rounds);
        Ok(Run {
            loss: self.validation(windows, FINAL_WINDOWS)?,
            frame_bytes: self.frame_bytes as f64 / count / self.peers.len() as f64,
            reduced_bytes: self.reduced_bytes as f64 / count,
            rounds,
        })
    }

    /// Trains, exchanges and applies; the mean loss of the last steps.
    fn round(&mut self, round: u32, windows: &Windows<'_>) -> anyhow::Result<f64> {
        let stage = self.setting.plan().stage();
        let starts = self.peers.iter().map(|peer| peer.start(stage));
        let starts: Vec<Vec<f32>> = starts.collect::<anyhow::Result<_>>()?;
        let steps = self.steps;
        let ahead = match self.peers[0].in_flight {
            Some(_) => self.args.parameters.land_after.min(steps),
            None => 0,
        };
        let mut trained = self.train((round, 0..ahead), windows, starts)?;
        self.land()?;
        if ahead < steps {
            // Rule `land-in-flight` of the daemon's worker.
            for (peer, trained) in self.peers.iter().zip(&mut trained) {
                let now = peer.replica.start();
                for (local, (start, now)) in trained
                    .local
                    .iter_mut()
                    .zip(trained.start.iter().zip(&*now))
                {
                    *local += now - start;
                }
                trained.start.copy_from_slice(&now);
            }
            let locals = trained
                .iter_mut()
                .map(|trained| std::mem::take(&mut trained.local));
            let rest = self.train((round, ahead..steps), windows, locals.collect())?;
            for (trained, rest) in trained.iter_mut().zip(rest) {
                (trained.local, trained.loss) = (rest.local, rest.loss);
            }
        }
        let mut loss = 0.0;
        for (peer, trained) in self.peers.iter_mut().zip(trained) {
            let (shards, start) = (self.fragments.of(RoundId(round.into())), &trained.start);
            let shards = shards.start as usize..shards.end as usize;
            let update =
                peer.replica
                    .update_of(shards.clone(), Some(start), &trained.local, stage)?;
            let bytes: usize = update.frames.iter().map(Vec::len).sum();
            self.frame_bytes += bytes as u64;
            loss += trained.loss;
            peer.in_flight = Some(InFlight {
                shards,
                frames: update.frames,
            });
        }
        if !self.setting.overlaps() {
            self.land()?;
        }
        Ok(loss / self.peers.len() as f64)
    }

    /// Does these steps of a round, each peer from its place in `from`.
    fn train(
        &mut self,
        (round, steps): (u32, Range<u32>),
        windows: &Windows<'_>,
        from: Vec<Vec<f32>>,
    ) -> anyhow::Result<Vec<Trained>> {
        let (args, seed, of_round) = (self.args, self.seed, self.steps);
        let first = u64::from(round) * u64::from(of_round);
        let mut work: Vec<(&mut Peer, Vec<f32>)> = self.peers.iter_mut().zip(from).collect();
        let at_a_time = work.len().div_ceil(args.threads);
        let train = |work: &mut [(&mut Peer, Vec<f32>)]| {
            let trained = work.iter_mut().map(|(peer, from)| {
                let from = std::mem::take(from);
                peer.train(from, (seed, first, steps.clone()), args, windows)
            });
            trained.collect::<anyhow::Result<Vec<_>>>()
        };
        let chunks = work.chunks_mut(at_a_time);
        let trained: Vec<anyhow::Result<Vec<Trained>>> = thread::scope(|scope| {
            let threads: Vec<_> = chunks.map(|work| scope.spawn(|| train(work))).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|trained| trained.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let trained: Vec<Vec<Trained>> = trained.into_iter().collect::<Result<_, _>>()?;
        Ok(trained.into_iter().flatten().collect())
    }

    /// Applies the updates in flight, if there are any, and compares the state roots.
    fn land(&mut self) -> anyhow::Result<()> {
        let in_flight = self.peers.iter_mut().map(|peer| peer.in_flight.take());
        let in_flight: Option<Vec<InFlight>> = in_flight.collect();
        let Some(in_flight) = in_flight else {
            return Ok(());
        };
        let exchanged = in_flight[0].shards.clone();
        let updates: Vec<Vec<Vec<u8>>> = in_flight.into_iter().map(|own| own.frames).collect();
        let groups = self.groups();
        let stage = self.setting.plan().stage();
        let reductions = match self.setting.plan() {
            Plan::Gather => Vec::new(),
            Plan::Reduce => self.reduce(&updates, &exchanged, &groups, Stage::Reduced)?,
            Plan::Hier => self.reduce(&updates, &exchanged, &groups, Stage::Update)?,
        };
        let mut shards = vec![
            RoundShard {
                stage,
                contributions: Vec::new(),
                residuals: Vec::new(),
            };
            self.peers[0].replica.shape().shard_count()
        ];
        for (place, shard) in shards[exchanged].iter_mut().enumerate() {
            match self.setting.plan() {
                Plan::Gather => shard.contributions = self.contributions(&updates, place).collect(),
                Plan::Reduce => *shard = reduced(Stage::Reduced, place, &groups, &reductions),
                Plan::Hier => *shard = reduced(Stage::Update, place, &groups, &reductions),
            }
        }
        let ids: Vec<GroupId> = groups.iter().map(|group| group.id).collect();
        for peer in &mut self.peers {
            peer.replica.apply(&shards, None, &ids)?;
        }
        let root = self.peers[0].replica.state_root();
        let equal = self.peers.iter().all(|p| p.replica.state_root() == root);
        ensure!(equal, "state roots differ, which must never be");
        Ok(())
    }

    /// What the owners of each group do, by group and exchanged shard.
    fn reduce(
        &mut self,
        updates: &[Vec<Vec<u8>>],
        exchanged: &Range<usize>,
        groups: &[Group],
        output: Stage,
    ) -> anyhow::Result<Vec<Vec<Reduction>>> {
        let input = self.setting.plan().stage();
        let mut reductions = Vec::with_capacity(groups.len());
        for (number, group) in groups.iter().enumerate() {
            let mut of_group = Vec::new();
            for (place, shard) in exchanged.clone().enumerate() {
                let all: Vec<_> = self.contributions(updates, place).collect();
                let inputs = &all[group.members.clone()];
                let residual = &self.residuals[number][shard];
                let owner = &self.peers[group.members.start].replica;
                let reduction =
                    owner
                        .shape()
                        .reduce(shard, input, output, Some(residual), inputs)?;
                self.reduced_bytes += reduction.frame.len() as u64;
                self.residuals[number][shard].clone_from(&reduction.residual);
                of_group.push(reduction);
            }
            reductions.push(of_group);
        }
        Ok(reductions)
    }

    fn contributions<'u>(
        &self,
        updates: &'u [Vec<Vec<u8>>],
        place: usize,
    ) -> impl Iterator<Item = Contribution<'u>> + use<'u> {
        let tokens = tokens_of_round(self.args);
        updates.iter().map(move |frames| Contribution {
            tokens,
            frame: &frames[place],
        })
    }

    fn groups(&self) -> Vec<Group> {
        let peers = self.peers.len();
        let tokens = tokens_of_round(self.args);
        let group = |id, members: Range<usize>| Group {
            id,
            tokens: tokens * members.len() as u64,
            members,
        };
        match self.setting.plan() {
            Plan::Gather => Vec::new(),
            Plan::Reduce => vec![group(GroupId::ALL, 0..peers)],
            Plan::Hier => (0..SITES)
                .map(|site| {
                    let members = peers * site / SITES..peers * (site + 1) / SITES;
                    let id = GroupId(Hash::of_content(&[b's', site as u8]));
                    group(id, members)
                })
                .filter(|group| !group.members.is_empty())
                .collect(),
        }
    }

    /// Loss of theta on the first held-out windows.
    fn validation(&mut self, windows: &Windows<'_>, count: u64) -> anyhow::Result<f64> {
        let peer = &mut self.peers[0];
        let indices: Vec<u64> = (0..count.min(windows.held_out())).collect();
        let batch = windows.validation_batch(&indices)?;
        Ok(peer.trainer.loss(peer.replica.theta(), &batch)?.into())
    }
}

/// Members that are summed together.
struct Group {
    id: GroupId,
    members: Range<usize>,
    tokens: u64,
}

/// A shard as the groups' reductions decide it; `place` is that among the exchanged ones.
fn reduced<'a>(
    stage: Stage,
    place: usize,
    groups: &[Group],
    reductions: &'a [Vec<Reduction>],
) -> RoundShard<'a> {
    let pairs = || groups.iter().zip(reductions);
    RoundShard {
        stage,
        contributions: pairs()
            .map(|(group, of_group)| Contribution {
                tokens: group.tokens,
                frame: &of_group[place].frame,
            })
            .collect(),
        residuals: pairs()
            .map(|(group, of_group)| (group.id, of_group[place].residual_hash()))
            .collect(),
    }
}

fn tokens_of_round(args: &Args) -> u64 {
    u64::from(args.steps) * (args.batch * args.tokens) as u64
}

impl Peer {
    /// Where training starts: with an update in flight, without it.
    fn start(&self, stage: Stage) -> anyhow::Result<Vec<f32>> {
        match &self.in_flight {
            None => Ok(self.replica.start().into_owned()),
            Some(own) => {
                let shards = own.shards.clone();
                Ok(self.replica.start_ahead(stage, shards, &own.frames)?)
            }
        }
    }

    fn train(
        &mut self,
        start: Vec<f32>,
        (seed, first, steps): (u8, u64, Range<u32>),
        args: &Args,
        windows: &Windows<'_>,
    ) -> anyhow::Result<Trained> {
        let task = TrainTask {
            first_step: steps.start,
            steps: steps.end - steps.start,
            global_step: first + u64::from(steps.start),
        };
        let hotkey = self.hotkey;
        let mut batches = |step: u32| {
            // By the rounds of a run without fragments, so that all settings see the same text.
            let step = first + u64::from(step);
            let of_round = u64::from(args.steps);
            let (round, step) = ((step / of_round) as u32, (step % of_round) as u32);
            let mut data_seed = vec![seed];
            data_seed.extend_from_slice(&round.to_le_bytes());
            let indices = assignment(&data_seed, &hotkey, step, args.batch, windows.training());
            let batch = windows.training_batch(&indices);
            batch.map_err(|error| error.to_string())
        };
        if task.steps == 0 {
            return Ok(Trained {
                local: start.clone(),
                start,
                loss: 0.0,
            });
        }
        let report = self
            .trainer
            .train(&start, &task, &mut batches, &mut |_| true)?;
        Ok(Trained {
            start,
            local: self.trainer.local(),
            loss: report.loss_last.into(),
        })
    }
}
