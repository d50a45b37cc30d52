//! The worker of a simulated peer: trains one round at a time, applies decisions between two steps, and makes its results
//! durable.

use std::ops::Range;
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{AppliedShard, Input, Start};
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::wire::DecisionRecord;

use super::{Life, Outside, Peer, Timer, state_in};
use crate::coverage::Situation;
use crate::learner::Task;
use crate::options::Moment;
use crate::queue::Instant;
use gradmesh_trainer::replica::Replica;

/// How long it takes to find an update that is durable already.
const FOUND_US: u64 = 1_000;

/// A decision to be applied.
#[derive(Clone, Debug)]
pub(super) struct Application {
    pub(super) record: Arc<DecisionRecord>,
    pub(super) shards: Vec<AppliedShard>,
    pub(super) groups: Vec<GroupId>,
    pub(super) ends_epoch: bool,
}

/// A round that is trained, or was and is not encoded yet.
#[derive(Debug)]
struct Training {
    task: Task,
    /// What it began from.
    start: Vec<f32>,
    /// Whether that is not the state before the round.
    ahead: bool,
    /// When it would have begun, had nothing come between.
    began: Instant,
    /// When it ends, or did.
    ends: Instant,
    over: bool,
    /// Number of the timer that is set for it.
    timer: u64,
    /// Asked for at this stage, of these shards.
    encode: Option<(Stage, Range<u32>)>,
}

/// What the worker does.
#[derive(Debug, Default)]
pub(super) struct Worker {
    training: Option<Training>,
    /// What is applied, and the number of the timer that ends it.
    applying: Option<(Application, u64)>,
    timers: u64,
}

impl Peer {
    pub(super) fn train(&mut self, outside: &mut Outside, task: Task, start: Start) {
        let round = task.round;
        let step_us = outside.options.peers[self.place].step_us;
        let state = self.applied();
        let next = state.map_or(RoundId::FOUNDING, RoundId::next);
        let ahead = start != Start::State;
        let follows = round == if ahead { next.next() } else { next };
        let Some(running) = self.running.as_mut().filter(|_| follows) else {
            let what = format!("trains round {round} on the state after {state:?}");
            return outside.fail(self.place, "orderly", what);
        };
        if let Some(training) = &running.worker.training {
            let what = format!("trains round {round} beside {}", training.task.round);
            return outside.fail(self.place, "orderly", what);
        }
        let theta = state_in(&self.store.state, &outside.shape);
        let start = match start {
            Start::State => theta.start().into_owned(),
            Start::Ahead { frames } if frames.is_empty() => {
                outside.coverage.meet(Situation::FellIntoStep);
                theta.start().into_owned()
            }
            Start::Ahead { frames } => {
                let own = self.store.private.pending(next);
                if own.is_none_or(|own| !own.is_of(&frames)) {
                    let what = format!("trains round {round} on what is no update of {next}");
                    return outside.fail(self.place, "orderly", what);
                }
                let start = own.map(|own| own.start_ahead(theta));
                // A liar's update may be no update.
                start
                    .and_then(Result::ok)
                    .unwrap_or_else(|| theta.start().into_owned())
            }
        };
        let takes_us = match self.store.private.pending(round) {
            Some(_) => FOUND_US,
            None => step_us * u64::from(task.steps),
        };
        let training = Training {
            task,
            start,
            ahead,
            began: outside.now,
            ends: outside.now + takes_us,
            over: false,
            timer: 0,
            encode: None,
        };
        running.worker.training = Some(training);
        self.time_training(outside);
    }

    /// Sets the timer of the training anew.
    fn time_training(&mut self, outside: &mut Outside) {
        let Some(worker) = self.running.as_mut().map(|running| &mut running.worker) else {
            return;
        };
        let Some(training) = &mut worker.training else {
            return;
        };
        worker.timers += 1;
        training.timer = worker.timers;
        let (at, timer) = (training.ends.max(outside.now), Timer::Worker(worker.timers));
        self.set_timer(outside, at, timer);
    }

    pub(super) fn encode(
        &mut self,
        outside: &mut Outside,
        round: RoundId,
        frames: (Stage, Range<u32>),
    ) {
        let (state, unsettled) = (self.applied(), self.store.private.pending_round());
        let training = self
            .running
            .as_mut()
            .and_then(|running| running.worker.training.as_mut());
        let follows = state.is_some_and(|applied| applied.next() == round);
        let settled = unsettled.is_none_or(|of| of == round);
        match training.filter(|training| training.task.round == round && follows && settled) {
            Some(training) => {
                training.encode = Some(frames);
                if training.over {
                    self.time_training(outside);
                }
            }
            None => {
                let what = format!(
                    "encodes round {round} on the state after {state:?}, with the update of {unsettled:?} not settled"
                );
                outside.fail(self.place, "orderly", what);
            }
        }
    }

    /// Applies a decision: a training that goes on is held up from its next step on, until that is done.
    pub(super) fn apply(&mut self, outside: &mut Outside, application: Application) {
        let round = application.record.decision.round;
        let step_us = outside.options.peers[self.place].step_us;
        let apply_us = outside.options.sizes().apply_us;
        let applied = self.applied();
        let next = applied.map_or(RoundId::FOUNDING, RoundId::next);
        let Some(worker) = self.running.as_mut().map(|running| &mut running.worker) else {
            return;
        };
        let training = worker.training.as_mut();
        let trains = training.as_ref().map(|training| training.task.round);
        if round != next || worker.applying.is_some() || trains.is_some_and(|of| of <= round) {
            let what = format!(
                "applies round {round} to the state after {applied:?} while it trains {trains:?}"
            );
            return outside.fail(self.place, "orderly", what);
        }
        let mut rest_us = 0;
        let under_way = training.filter(|training| !training.over);
        let held_up = under_way.is_some();
        if let Some(training) = under_way {
            outside.coverage.meet(Situation::AppliedWhileTraining);
            rest_us = step_us - (outside.now.0 - training.began.0) % step_us;
            training.began = training.began + apply_us;
            training.ends = training.ends + apply_us;
        }
        worker.timers += 1;
        let number = worker.timers;
        worker.applying = Some((application, number));
        let at = outside.now + rest_us + apply_us;
        self.set_timer(outside, at, Timer::Worker(number));
        if held_up {
            self.time_training(outside);
        }
    }

    /// Ends the training of `round`, if it is going on, and keeps what was learnt.
    pub(super) fn stop_training(&mut self, outside: &mut Outside, round: RoundId) {
        let shape = outside.shape.clone();
        let Some(running) = &mut self.running else {
            return;
        };
        let training = running.worker.training.take();
        let Some(training) = training.filter(|training| training.task.round == round) else {
            let what = format!("stops the training of round {round}, which does not go on");
            return outside.fail(self.place, "orderly", what);
        };
        outside.coverage.meet(Situation::TrainingStopped);
        if training.ahead {
            outside.coverage.meet(Situation::StoppedAhead);
        }
        if self.store.private.pending(round).is_none() {
            let step_us = outside.options.peers[self.place].step_us;
            let until = outside.now.min(training.ends).0;
            let done = until.saturating_sub(training.began.0) / step_us;
            let steps = done.min(u64::from(training.task.steps)) as u32;
            let name = self.keypair.public();
            let task = Task {
                steps,
                ..training.task
            };
            let store = &mut self.store;
            if let Some((_, state)) = &mut store.state {
                let private = &mut store.private;
                private.fold(&shape, state, &training.start, &name, task);
            }
        }
    }

    /// Whether the worker does nothing.
    pub(super) fn is_idle(&self) -> bool {
        let worker = self.running.as_ref().map(|running| &running.worker);
        worker.is_none_or(|worker| worker.training.is_none() && worker.applying.is_none())
    }

    pub(super) fn job_done(&mut self, outside: &mut Outside, number: u64) {
        let Some(worker) = self.running.as_mut().map(|running| &mut running.worker) else {
            return;
        };
        let of_training = worker.training.as_ref().is_some_and(|t| t.timer == number);
        let applied = worker.applying.take_if(|(_, timer)| *timer == number);
        let input = match applied {
            Some((application, _)) => self.applied_to_state(outside, &application),
            None if of_training => self.trained(outside),
            None => None,
        };
        if let Some(input) = input {
            self.input(outside, input);
        }
    }

    /// The training is over. Encodes its update if that was asked for.
    fn trained(&mut self, outside: &mut Outside) -> Option<Input> {
        let running = self.running.as_mut()?;
        let crashes = running.crash == Some(Moment::AfterTraining);
        let training = running.worker.training.as_mut()?;
        let (round, first) = (training.task.round, !training.over);
        let found = self.store.private.pending(round).is_some();
        let fails_ppm = outside.options.peers[self.place].training_fails_ppm;
        let may_fail = first && !found && !outside.calm && fails_ppm > 0;
        if may_fail && outside.random.chance(fails_ppm) {
            outside.coverage.meet(Situation::TrainingFailed);
            running.worker.training = None;
            return Some(Input::TrainingFailed(round));
        }
        training.over = true;
        let frames = training.encode.clone()?;
        let training = running.worker.training.take()?;
        let update = self.encoded(outside, training, frames);
        if crashes {
            self.stop(outside, Life::Down);
            outside.connections_lost(self.place);
            return None;
        }
        Some(update)
    }

    fn encoded(
        &mut self,
        outside: &mut Outside,
        training: Training,
        (stage, shards): (Stage, Range<u32>),
    ) -> Input {
        let Training {
            task, start, ahead, ..
        } = training;
        let round = task.round;
        let shape = outside.shape.clone();
        if self.store.private.pending(round).is_some() {
            outside.coverage.meet(Situation::UpdateFound);
        } else {
            let name = self.keypair.public();
            let store = &mut self.store;
            if let Some((_, state)) = &mut store.state {
                let private = &mut store.private;
                let frames = (stage, shards.start as usize..shards.end as usize);
                private.train(&shape, state, &start, &name, task, frames);
            }
            if self.liar.as_ref().is_some_and(|liar| liar.spoils_frames()) && !outside.calm {
                self.store.private.spoil();
            }
            if ahead {
                outside.coverage.meet(Situation::TrainedAhead);
            }
            if shards.len() < shape.shards() {
                outside.coverage.meet(Situation::FragmentEncoded);
            }
        }
        let Some(update) = self.store.private.pending(round).cloned() else {
            unreachable!("the update was made above");
        };
        outside.checks.update_made(&update.frames);
        for frame in update.frames {
            let hash = Hash::of_content(&frame);
            self.store.frame_rounds.insert(hash, round);
            self.store.frames.insert(hash, frame);
        }
        Input::UpdateReady {
            round,
            update: Box::new(update.summary),
        }
    }

    fn applied_to_state(
        &mut self,
        outside: &mut Outside,
        application: &Application,
    ) -> Option<Input> {
        let shape = outside.shape.clone();
        let record = &application.record;
        let round = record.decision.round;
        let mut state = self.state(&shape).clone();
        let name = self.keypair.public();
        let own = self.store.private.pending(round).cloned();
        let accepted = own.as_ref().map(|own| own.accepted(&name, Some(&**record)));
        let own = own.as_ref().zip(accepted.as_deref());
        let (shards, groups) = (&application.shards, &application.groups);
        if let Err(what) = shape.apply(&mut state, shards, groups, &self.store.frames, own) {
            outside.fail(
                self.place,
                "orderly",
                format!("applies round {round}: {what}"),
            );
            return None;
        }
        let state_root = state.state_root();
        if let Err((check, what)) = outside.checks.stands_at(round, &state_root) {
            outside.fail(self.place, check, what);
            return None;
        }
        if self.store.private.pending(round).is_some() {
            self.store.private.settle(round);
        }
        if application.ends_epoch {
            let kept = outside.options.peers[self.place].snapshots;
            self.keep_snapshot(kept, round, state.clone());
        }
        self.store.state = Some((round, state));
        Some(Input::Applied { round, state_root })
    }

    /// Keeps `state` for others, and forgets what is older than the oldest state that is kept.
    fn keep_snapshot(&mut self, kept: usize, round: RoundId, state: Replica) {
        let store = &mut self.store;
        store.snapshots.insert(round, state);
        while store.snapshots.len() > kept {
            store.snapshots.pop_first();
        }
        let Some((oldest, _)) = store.snapshots.first_key_value() else {
            return;
        };
        if store.snapshots.len() == kept {
            let oldest = *oldest;
            store.frames_from = store.frames_from.max(oldest.next());
            let frames = &mut store.frames;
            store.frame_rounds.retain(|hash, of| {
                let keep = *of > oldest;
                if !keep {
                    frames.remove(hash);
                }
                keep
            });
        }
    }
}
