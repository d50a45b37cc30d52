//! The worker of a simulated peer: trains and applies, one job at a time, and makes its results durable.

use std::collections::VecDeque;
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{AppliedShard, Input};
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::wire::DecisionRecord;

use super::{Life, Outside, Peer, Timer};
use crate::coverage::Situation;
use crate::learner::Task;
use crate::options::Moment;
use crate::queue::Instant;
use gradmesh_trainer::replica::Replica;

/// How long it takes to apply a decision: reading, adding and writing a few megabytes.
const APPLY_US: u64 = 20_000;
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

#[derive(Clone, Debug)]
enum Job {
    Train(Task),
    Apply(Application),
}

/// What the worker does and will do.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// The job at hand, its number, and when it began.
    current: Option<(Job, u64, Instant)>,
    waiting: VecDeque<Job>,
    jobs: u64,
}

impl Peer {
    pub(super) fn train(&mut self, outside: &mut Outside, task: Task) {
        let round = task.round;
        let state = self.applied();
        let follows = state.is_some_and(|applied| applied.next() == round);
        if !follows {
            let what = format!("trains round {round} on the state after {state:?}");
            return outside.fail(self.place, "orderly", what);
        }
        let pending = self.store.private.pending_round();
        if pending.is_some_and(|of| of != round) {
            let what =
                format!("trains round {round} while the update of {pending:?} is not settled");
            return outside.fail(self.place, "orderly", what);
        }
        self.enqueue(outside, Job::Train(task));
    }

    pub(super) fn apply(&mut self, outside: &mut Outside, application: Application) {
        let round = application.record.decision.round;
        let applied = self.applied();
        let next = applied.map_or(RoundId::FOUNDING, RoundId::next);
        if round != next {
            let what = format!("applies round {round} to the state after {applied:?}");
            return outside.fail(self.place, "orderly", what);
        }
        self.stop_training(outside, round);
        self.enqueue(outside, Job::Apply(application));
    }

    fn enqueue(&mut self, outside: &mut Outside, job: Job) {
        if let Some(running) = &mut self.running {
            running.worker.waiting.push_back(job);
            if running.worker.waiting.len() > 2 {
                outside.fail(
                    self.place,
                    "bounded",
                    "three jobs wait for the worker".into(),
                );
            }
            self.next_job(outside);
        }
    }

    fn next_job(&mut self, outside: &mut Outside) {
        let options = outside.options.clone();
        let Some(running) = self.running.as_mut().filter(|r| r.worker.current.is_none()) else {
            return;
        };
        let Some(job) = running.worker.waiting.pop_front() else {
            return;
        };
        let takes_us = match &job {
            Job::Train(task) => match self.store.private.pending(task.round) {
                Some(_) => FOUND_US,
                None => options.peers[self.place].step_us * u64::from(task.steps),
            },
            Job::Apply(..) => APPLY_US,
        };
        running.worker.jobs += 1;
        let number = running.worker.jobs;
        running.worker.current = Some((job, number, outside.now));
        self.set_timer(outside, outside.now + takes_us, Timer::Worker(number));
    }

    /// Ends the training of `round`, if it is going on, and keeps what was learnt.
    pub(super) fn stop_training(&mut self, outside: &mut Outside, round: RoundId) {
        let shape = outside.shape.clone();
        let Some(running) = &mut self.running else {
            return;
        };
        let is_of = |job: &Job| matches!(job, Job::Train(task) if task.round == round);
        running.worker.waiting.retain(|job| !is_of(job));
        let Some((Job::Train(task), _, began)) =
            running.worker.current.take_if(|(job, ..)| is_of(job))
        else {
            return;
        };
        outside.coverage.meet(Situation::TrainingStopped);
        if self.store.private.pending(round).is_none() {
            let step_us = outside.options.peers[self.place].step_us;
            let done = (outside.now.0 - began.0) / step_us;
            let steps = done.min(u64::from(task.steps)) as u32;
            let name = self.keypair.public();
            let store = &mut self.store;
            if let Some((_, state)) = &mut store.state {
                let task = Task { steps, ..task };
                store.private.fold(&shape, state, &name, task);
            }
        }
        self.next_job(outside);
    }

    /// Ends whatever goes on: the state is replaced.
    pub(super) fn drop_jobs(&mut self, outside: &mut Outside) {
        let training = self.running.as_ref().and_then(|r| match &r.worker.current {
            Some((Job::Train(task), ..)) => Some(task.round),
            Some((Job::Apply(..), ..)) | None => None,
        });
        if let Some(round) = training {
            self.stop_training(outside, round);
        }
        if let Some(running) = &mut self.running {
            running.worker.current = None;
            running.worker.waiting.clear();
        }
    }

    pub(super) fn job_done(&mut self, outside: &mut Outside, number: u64) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some((job, ..)) = running.worker.current.take_if(|(_, n, _)| *n == number) else {
            return;
        };
        let crashes = running.crash == Some(Moment::AfterTraining);
        let input = match job {
            Job::Train(task) => {
                let input = self.trained(outside, task);
                if crashes {
                    self.stop(outside, Life::Down);
                    return outside.connections_lost(self.place);
                }
                input
            }
            Job::Apply(application) => match self.applied_to_state(outside, &application) {
                Some(input) => input,
                None => return,
            },
        };
        self.next_job(outside);
        self.input(outside, input);
    }

    fn trained(&mut self, outside: &mut Outside, task: Task) -> Input {
        let round = task.round;
        let shape = outside.shape.clone();
        let found = self.store.private.pending(round).is_some();
        if !found {
            let fails_ppm = outside.options.peers[self.place].training_fails_ppm;
            if !outside.calm && fails_ppm > 0 && outside.random.chance(fails_ppm) {
                outside.coverage.meet(Situation::TrainingFailed);
                return Input::TrainingFailed(round);
            }
            let name = self.keypair.public();
            let store = &mut self.store;
            if let Some((_, state)) = &mut store.state {
                store.private.train(&shape, state, &name, task);
            }
            if self.liar.as_ref().is_some_and(|liar| liar.spoils_frames()) && !outside.calm {
                self.store.private.spoil();
            }
        }
        if found {
            outside.coverage.meet(Situation::UpdateFound);
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
