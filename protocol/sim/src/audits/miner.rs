//! One miner: the honest program around a trainer that may cheat.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, steps_of};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, Header, SignedHeader, Stage, UpdateSummary};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{InnerState, RoundId};
use gradmesh_trainer::adversary::{self, Kind};
use gradmesh_trainer::replica::{OwnUpdate, Replica, RoundShard};
use gradmesh_trainer::work::{Recorder, WorkState, zero_inner};
use gradmesh_trainer::{TrainTask, Trainer};

use super::Ground;
use super::machine::{Counted, Machine};

/// What a miner does for its pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conduct {
    /// One of [`gradmesh_trainer::adversary`], the honest one among them.
    Kind(Kind),
    /// Skips each segment with this chance, in parts per million.
    Partial(u32),
}

impl fmt::Display for Conduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conduct::Kind(kind) => kind.fmt(f),
            Conduct::Partial(ppm) => f.pad(&format!("partial {}", f64::from(*ppm) / 1e6)),
        }
    }
}

/// One miner of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinerSetup {
    /// What it does.
    pub conduct: Conduct,
    /// On what.
    pub machine: Machine,
}

impl MinerSetup {
    /// One on the reference machine.
    pub fn reference(conduct: Conduct) -> MinerSetup {
        let machine = Machine::Reference;
        MinerSetup { conduct, machine }
    }
}

/// An update that others can copy.
type Seen = Arc<Mutex<Option<Vec<f32>>>>;

pub(super) struct Miner {
    pub(super) keypair: Keypair,
    pub(super) key: PeerKey,
    pub(super) setup: MinerSetup,
    pub(super) replica: Replica,
    trainer: Box<dyn Trainer>,
    /// The inner optimizer's state that its newest decided update ended with.
    carried: Option<Hash>,
    seen: Seen,
    steps: Arc<AtomicU64>,
}

/// What a miner keeps of a round for whoever audits it.
pub(super) struct Work {
    pub(super) list: SegmentList,
    /// One more than there are segments.
    pub(super) states: Vec<WorkState>,
    pub(super) feedback_before: Vec<f32>,
    pub(super) feedback_after: Vec<f32>,
    pub(super) frames: Vec<Vec<u8>>,
    /// Whether it hands anything of this out.
    pub(super) served: bool,
}

impl Miner {
    pub(super) fn new(ground: &Ground, keypair: Keypair, setup: MinerSetup, seed: Hash) -> Miner {
        let steps = Arc::new(AtomicU64::new(0));
        let trainer = setup.machine.perturbed(Box::new(ground.shape.trainer()));
        let trainer: Box<dyn Trainer> = Box::new(Counted {
            trainer,
            steps: Arc::clone(&steps),
        });
        let seen = Seen::default();
        let others = Arc::clone(&seen);
        let others = Box::new(move || {
            let seen = others.lock().unwrap_or_else(PoisonError::into_inner);
            seen.clone()
        });
        let trainer = match setup.conduct {
            Conduct::Kind(kind) => {
                let steps = ground.manifest.schedule.steps_per_round;
                adversary::wrap(kind, trainer, steps, seed, others)
            }
            Conduct::Partial(skipped_ppm) => adversary::partial(trainer, skipped_ppm, seed),
        };
        Miner {
            key: keypair.public(),
            keypair,
            setup,
            replica: ground.shape.genesis().clone(),
            trainer,
            carried: None,
            seen,
            steps,
        }
    }

    /// Whether it hands out what audits need.
    pub(super) fn serves(&self) -> bool {
        self.setup.conduct != Conduct::Kind(Kind::Withhold)
    }

    /// Inner steps that it has really done.
    pub(super) fn steps_done(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Another miner's update of the round before is public.
    pub(super) fn see(&self, update: Option<Vec<f32>>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = update;
    }

    /// A round, as the honest program does it; `None` if training failed.
    pub(super) fn work(
        &mut self,
        ground: &Ground,
        round: RoundId,
        seed: &Hash,
    ) -> Option<(SignedHeader, Work)> {
        let done = self.train(ground, round, seed);
        // The state after a failure is nobody's business: the next round begins from zero (rule `carried-or-zero`).
        self.carried = done
            .as_ref()
            .map(|(header, _)| header.header.update.work.inner_after);
        done
    }

    fn train(
        &mut self,
        ground: &Ground,
        round: RoundId,
        seed: &Hash,
    ) -> Option<(SignedHeader, Work)> {
        let steps_per_round = ground.manifest.schedule.steps_per_round;
        let segments = ground.audit.segments;
        let start = self.replica.theta().to_vec();
        let mut state = WorkState {
            theta: start.clone(),
            inner: self.trainer.inner_state().ok()?,
        };
        let mut roots = state.leaves().ok()?.roots();
        if self.carried != Some(roots.inner) || ground.audit.inner == InnerState::Reset {
            state.inner = zero_inner(start.len());
            self.trainer.set_inner_state(&state.inner).ok()?;
            roots = state.leaves().ok()?.roots();
        }
        let mut recorder = Recorder::new(segments, steps_per_round);
        recorder.begin(roots);
        let mut states = vec![state];
        let (mut tokens, mut loss_first, mut loss_last) = (0, None, 0.0);
        for segment in 0..segments {
            let steps = steps_of(segment, segments, steps_per_round);
            let task = TrainTask {
                first_step: steps.start,
                steps: steps.end - steps.start,
                global_step: ground.global_step(round, steps.start),
            };
            let mut batches = |step: u32| Ok(ground.batch(seed, &self.key, step));
            let from = &states.last()?.theta;
            let mut so_far = 0;
            let report = self.trainer.train(from, &task, &mut batches, &mut |step| {
                recorder.step(step, step.tokens - so_far);
                so_far = step.tokens;
                true
            });
            let report = report.ok()?;
            tokens += report.tokens;
            loss_first = loss_first.or(Some(report.loss_first));
            loss_last = report.loss_last;
            let state = WorkState {
                theta: self.trainer.take_local(),
                inner: self.trainer.inner_state().ok()?,
            };
            let roots: StateRoots = state.leaves().ok()?.roots();
            recorder.end_segment(roots, ground.data(seed, &self.key, steps));
            states.push(state);
        }
        let list = recorder.finish()?;
        let feedback_before = self.replica.feedback_values().into_owned();
        let local = &states.last()?.theta;
        let update = self.replica.update(&start, local, Stage::Update).ok()?;
        let micronats = |loss: f32| (f64::from(loss) * 1e6).round() as u64;
        let frame = |frame: &Vec<u8>| FrameRef {
            hash: Hash::of_content(frame),
            bytes: frame.len() as u64,
        };
        let machine = self.setup.machine.describe();
        let header = Header {
            run: ground.run,
            round,
            peer: self.key,
            state_root: self.replica.state_root(),
            update: UpdateSummary {
                frames: update.frames.iter().map(frame).collect(),
                feedback_before: update.feedback_before,
                feedback_after: update.feedback_after,
                work: list.commitment(),
                tokens,
                steps: steps_per_round,
                loss_first_micronats: micronats(loss_first?),
                loss_last_micronats: micronats(loss_last),
                build: machine.build,
                device: machine.device,
            },
        };
        let work = Work {
            list,
            states,
            feedback_before,
            feedback_after: self.replica.feedback_values().into_owned(),
            frames: update.frames,
            served: self.serves(),
        };
        Some((header.sign(&self.keypair), work))
    }

    /// Applies a round in which every update was accepted whole.
    pub(super) fn apply(&mut self, shards: &[RoundShard<'_>], own: Option<&Work>) {
        let accepted = vec![true; shards.len()];
        let own = own.map(|work| OwnUpdate {
            stage: Stage::Update,
            shards: 0..shards.len(),
            frames: &work.frames,
            accepted: &accepted,
        });
        self.replica
            .apply(shards, own, &[])
            .expect("frames that the codec has made");
    }
}
