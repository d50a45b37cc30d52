//! Training, and what becomes of it: an update, or more error feedback.
//!
//! Rule `between-steps`: commands do not wait for the end of a training. After each inner step the worker looks whether one has
//! come, does it, and goes on with the steps that are left, from where it was. With overlap a decision is applied in the
//! middle of the next round's training that way: it waits for one step at most, and holds training up for as long as
//! applying takes.
//!
//! What is due to be written is written beside the inner steps (rule `save-behind` of `save.rs`).
//!
//! Rule `land-in-flight`: when the state after a round is here while the next one is trained from a start of its own, the
//! local parameters move by what the replica's start (theta, less the drift where updates are of some shards) has become less
//! that start, and the steps that are left go on from there. The update stays what the steps did; only those before were done without what others had learnt. Training that is over stays as it is.
//! What overlap costs in loss depends on the share of the steps that are done before: `gradmesh-bench learning --land-after`.
//!
//! Rule `stop-and-fold`: a training that will not be committed to ends between two steps; what was learnt goes into the error
//! feedback. So it does when the worker ends. A training ahead leaves no other trace: after a restart the round is trained
//! anew, with the inner optimizer's state as it was last saved.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;

use bytes::Bytes;
use gradmesh_protocol::audit::segment::data_hash;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameId, FrameRef, Stage, UpdateSummary, WorkCommitment};
use gradmesh_protocol::manifest::{InnerState, RoundId};
use gradmesh_protocol::node::Start;
use gradmesh_trainer::data::assignment;
use gradmesh_trainer::work::{WorkState, zero_inner};
use gradmesh_trainer::{StepReport, TrainReport, TrainTask};

use super::disk::{DiskError, Pending};
use super::save::{Behind, Wanted, Written};
use super::work::{KeptFeedback, KeptWork, Recording};
use super::{Command, Event, Machine, WorkerError, micronats};

/// A round that is trained, or was and is not encoded yet.
pub(super) struct Training {
    round: RoundId,
    seed: Hash,
    /// Inner steps to do.
    steps: u32,
    /// What it began from, unless that is the replica's start as it is, which then stays so until the update is encoded.
    start: Option<Vec<f32>>,
    /// What was done so far.
    done: Option<Done>,
    /// The stage to encode the update at, and the shards, once that was asked for.
    encode: Option<(Stage, Range<usize>)>,
    /// What others may do again of it, in a run with audits.
    recording: Option<Recording>,
}

/// Inner steps of a training.
struct Done {
    report: TrainReport,
    /// The local parameters after them.
    local: Vec<f32>,
}

impl Training {
    fn steps_done(&self) -> u32 {
        self.done.as_ref().map_or(0, |done| done.report.steps)
    }

    /// The step at which the call of the trainer ends that does the next one.
    fn segment_end(&self) -> u32 {
        let recording = self.recording.as_ref();
        recording.map_or(self.steps, |recording| {
            recording.segment_end(self.steps_done())
        })
    }

    fn is_over(&self) -> bool {
        self.steps_done() >= self.steps
    }

    /// Rule `land-in-flight`: `now` is the replica's start.
    fn land(&mut self, now: &[f32]) {
        if self.is_over() {
            return;
        }
        if let (Some(start), Some(done)) = (self.start.take(), &mut self.done) {
            for ((local, start), now) in done.local.iter_mut().zip(start).zip(now) {
                *local += now - start;
            }
        }
    }

    /// Takes in what a call of the trainer did.
    fn note(&mut self, report: TrainReport, local: Vec<f32>) {
        let report = match &self.done {
            Some(before) => TrainReport {
                steps: before.report.steps.saturating_add(report.steps),
                tokens: before.report.tokens.saturating_add(report.tokens),
                loss_first: before.report.loss_first,
                loss_last: report.loss_last,
            },
            None => report,
        };
        self.done = Some(Done { report, local });
    }
}

impl Machine {
    /// Whether there are inner steps to do.
    pub(super) fn is_training(&self) -> bool {
        let training = self.training.as_ref();
        training.is_some_and(|training| !training.is_over())
    }

    pub(super) fn begin_training(&mut self, round: RoundId, seed: Hash, steps: u32, start: &Start) {
        if self
            .durable
            .pending
            .as_ref()
            .is_some_and(|own| own.round == round)
        {
            // Made before a restart, and never published as far as the journal knows.
            return;
        }
        let start = match start {
            Start::State => None,
            Start::Ahead { frames } => Some(self.start_ahead(round, frames)),
        };
        let audit = self.config.settings.audit.as_ref();
        let recording = audit.map(|audit| Recording::new(audit, steps));
        self.training = Some(Training {
            round,
            seed,
            steps,
            start,
            done: None,
            encode: None,
            recording,
        });
    }

    /// The replica's start minus the own update of the round before `round`, if there is one; its frames are on disk.
    fn start_ahead(&self, round: RoundId, frames: &[FrameId]) -> Vec<f32> {
        let without = || self.durable.replica.start().into_owned();
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
            return without();
        };
        let (stage, shards) = (first.stage, first.shard as usize..last.shard as usize + 1);
        let in_flight = round.previous().unwrap_or_default();
        let own = frames.iter();
        let own = own.map(|frame| self.own_frame(in_flight, &frame.hash));
        let start = own
            .collect::<Result<Vec<Bytes>, WorkerError>>()
            .and_then(|own| Ok(self.durable.replica.start_ahead(stage, shards, &own)?));
        start.unwrap_or_else(|error| {
            tracing::warn!(%round, %error, "training ahead starts without the update in flight");
            without()
        })
    }

    /// Does inner steps until all are done or a command comes (rule `between-steps`).
    pub(super) fn go_on_training(
        &mut self,
        inbox: &Receiver<Command>,
    ) -> Result<Option<Event>, WorkerError> {
        let Some(mut training) = self.training.take() else {
            return Ok(None);
        };
        let wanted = self.wanted(Behind::is_due)?;
        let mut saved = Ok(Written::default());
        let trained = self
            .begin_recording(&mut training)
            .and_then(|()| self.inner_steps(&mut training, inbox, &wanted, &mut saved));
        saved?.note(&mut self.state_file, &mut self.private_file);
        if let Err(error) = trained {
            return Ok(Some(Event::TrainingFailed {
                round: training.round,
                reason: error.to_string(),
            }));
        }
        self.training = Some(training);
        self.encode_if_due()
    }

    /// What is `wanted` is written meanwhile; `saved` is what became of it.
    fn inner_steps(
        &mut self,
        training: &mut Training,
        inbox: &Receiver<Command>,
        wanted: &Wanted,
        saved: &mut Result<Written, DiskError>,
    ) -> Result<(), WorkerError> {
        let settings = &self.config.settings;
        let windows = self.corpus.windows(settings.sequence_tokens)?;
        let (me, batch) = (self.config.me.0, settings.batch_sequences);
        let (round, seed, steps) = (training.round, training.seed, training.steps);
        let mut source = |step: u32| {
            let indices = assignment(&seed.0, &me, step, batch, windows.training());
            windows
                .training_batch(&indices)
                .map_err(|error| error.to_string())
        };
        let first_step = training.steps_done();
        let segment_end = training.segment_end();
        let of_earlier = round.0.saturating_sub(1) * u64::from(settings.steps_per_round);
        let task = TrainTask {
            first_step,
            steps: segment_end - first_step,
            global_step: of_earlier + u64::from(first_step),
        };
        let (waiting, events, encode) = (&mut self.waiting, &self.events, &mut training.encode);
        let (recording, mut tokens) = (&mut training.recording, 0);
        let mut keep_going = |report: &StepReport| {
            if let Some(recording) = recording {
                recording.note_step(report, report.tokens - tokens);
                tokens = report.tokens;
            }
            // Progress is for people: what does not fit is dropped.
            let _ = events.try_send(Event::Progress {
                round,
                step: report.step + 1,
                steps,
                loss: report.loss,
            });
            match inbox.try_recv() {
                // Nothing to stop for: it is done at the end.
                Ok(Command::Encode {
                    round: of,
                    stage,
                    shards,
                }) if of == round => {
                    *encode = Some((stage, shards));
                    true
                }
                Ok(command) => {
                    *waiting = Some(command);
                    false
                }
                Err(TryRecvError::Empty) => true,
                Err(TryRecvError::Disconnected) => false,
            }
        };
        let from = match (&training.done, &training.start) {
            (Some(done), _) => Cow::Borrowed(&*done.local),
            (None, Some(start)) => Cow::Borrowed(&**start),
            (None, None) => self.durable.replica.start(),
        };
        let (durable, trainer) = (&self.durable, &mut self.trainer);
        let report = thread::scope(|scope| {
            let writes = || *saved = durable.write(wanted);
            if !wanted.is_nothing()
                && let Err(error) = thread::Builder::new().spawn_scoped(scope, writes)
            {
                tracing::warn!(%error, "nothing is saved while this round is trained");
            }
            trainer.train(&from, &task, &mut source, &mut keep_going)
        })?;
        let local = self.trainer.take_local();
        training.note(report, local);
        if training.steps_done() == segment_end {
            self.end_segment(training)?;
        }
        Ok(())
    }

    pub(super) fn encode(
        &mut self,
        round: RoundId,
        stage: Stage,
        shards: Range<usize>,
    ) -> Result<Option<Event>, WorkerError> {
        let made = self.durable.pending.as_ref();
        if let Some(made) = made.filter(|own| (own.round, own.stage) == (round, stage)) {
            let summary = Box::new(made.summary.clone());
            let frames = summary.frames.iter();
            let frames = frames.map(|frame| self.own_frame(round, &frame.hash));
            return Ok(Some(Event::Update {
                round,
                frames: frames.collect::<Result<_, _>>()?,
                summary,
                // Served since the start: it was found on disk.
                work: None,
            }));
        }
        // Without a training of the round: it has failed, and its failure was told.
        if let Some(training) = self.training.as_mut().filter(|t| t.round == round) {
            training.encode = Some((stage, shards));
        }
        self.encode_if_due()
    }

    /// Encodes the update of a training that is over, if that was asked for.
    fn encode_if_due(&mut self) -> Result<Option<Event>, WorkerError> {
        let due = self.training.take_if(|t| t.is_over() && t.encode.is_some());
        let Some(Training {
            round,
            start,
            done: Some(Done { report, local }),
            encode: Some((stage, shards)),
            recording,
            ..
        }) = due
        else {
            return Ok(None);
        };
        let first_shard = shards.start;
        let before = recording
            .as_ref()
            .map(|_| self.feedback(round, "feedback-before"));
        let before = before.transpose()?;
        let replica = &mut self.durable.replica;
        let update = self
            .workers
            .run(|| replica.update_of(shards, start.as_deref(), &local, stage));
        let update = match update {
            Ok(update) => update,
            Err(error) => {
                let reason = error.to_string();
                return Ok(Some(Event::TrainingFailed { round, reason }));
            }
        };
        drop((start, local));
        let work = match recording.zip(before) {
            Some((recording, before)) => {
                self.keep_work(round, recording, before, &update.frames)?
            }
            None => None,
        };
        let mut frames = Vec::with_capacity(update.frames.len());
        for bytes in &update.frames {
            let hash = Hash::of_content(bytes);
            self.durable.disk.write_frame(round, &hash, bytes)?;
            frames.push(FrameRef {
                hash,
                bytes: bytes.len() as u64,
            });
        }
        let pending = Pending {
            round,
            stage,
            first_shard,
            summary: UpdateSummary {
                frames,
                feedback_before: update.feedback_before,
                feedback_after: update.feedback_after,
                work: work
                    .as_ref()
                    .map_or(WorkCommitment::default(), |(kept, _)| {
                        kept.list.commitment()
                    }),
                tokens: report.tokens,
                steps: report.steps,
                loss_first_micronats: micronats(report.loss_first),
                loss_last_micronats: micronats(report.loss_last),
                build: env!("CARGO_PKG_VERSION").into(),
                device: self.device.clone(),
            },
        };
        let summary = Box::new(pending.summary.clone());
        self.durable.pending = Some(pending);
        self.private_file.change();
        Ok(Some(Event::Update {
            round,
            summary,
            frames: update.frames.into_iter().map(Bytes::from).collect(),
            work: work.map(Box::new),
        }))
    }

    /// Before the first step of a training that is recorded: the inner optimizer's state becomes what it has to be by rule
    /// `carried-or-zero`, and the state is noted.
    fn begin_recording(&mut self, training: &mut Training) -> Result<(), WorkerError> {
        let Some(recording) = training.recording.as_mut().filter(|r| r.is_new()) else {
            return Ok(());
        };
        let theta = self.durable.replica.start().into_owned();
        let mut state = WorkState {
            inner: self.trainer.inner_state()?,
            theta,
        };
        let resets = self
            .config
            .settings
            .audit
            .as_ref()
            .is_some_and(|a| a.inner == InnerState::Reset);
        let carried = self.carried.filter(|_| !resets);
        if carried.map(|carried| carried.inner) != Some(state.leaves()?.roots().inner) {
            state.inner = zero_inner(state.theta.len());
            self.trainer.set_inner_state(&state.inner)?;
        }
        let before = self
            .carried
            .filter(|carried| carried.whole && carried.round.next() == training.round);
        if before.is_some_and(|before| before.feedback != self.durable.replica.feedback_root()) {
            // After a crash: what was saved is older than what was committed to.
            tracing::warn!(round = %training.round, "error feedback starts anew: it is not what was committed to");
            self.durable.replica.forget_feedback();
        }
        self.archive
            .note_state(training.round, recording, &state, None)?;
        Ok(())
    }

    /// A segment of a training that is recorded has ended.
    fn end_segment(&mut self, training: &mut Training) -> Result<(), WorkerError> {
        let (Some(recording), Some(done)) = (training.recording.as_mut(), training.done.as_ref())
        else {
            return Ok(());
        };
        let settings = &self.config.settings;
        let windows = self.corpus.windows(settings.sequence_tokens)?;
        let sequences = recording
            .segment_ending_at(done.report.steps)
            .flat_map(|step| {
                assignment(
                    &training.seed.0,
                    &self.config.me.0,
                    step,
                    settings.batch_sequences,
                    windows.training(),
                )
            });
        let data = data_hash(sequences);
        let state = WorkState {
            inner: self.trainer.inner_state()?,
            theta: done.local.clone(),
        };
        self.archive
            .note_state(training.round, recording, &state, Some(data))?;
        Ok(())
    }

    /// Writes the error feedback as it is.
    fn feedback(&self, round: RoundId, name: &str) -> Result<(PathBuf, Vec<Hash>), WorkerError> {
        let path =
            self.archive
                .note_feedback(round, name, &self.durable.replica.feedback_values())?;
        Ok((path, self.durable.replica.feedback_leaves().to_vec()))
    }

    /// The update of a training that is recorded is encoded.
    fn keep_work(
        &mut self,
        round: RoundId,
        recording: Recording,
        (before, leaves_before): (PathBuf, Vec<Hash>),
        frames: &[Vec<u8>],
    ) -> Result<Option<(KeptWork, Vec<RoundId>)>, WorkerError> {
        let (after, leaves_after) = self.feedback(round, "feedback-after")?;
        let feedback = KeptFeedback {
            before,
            after,
            leaves_before,
            leaves_after,
        };
        Ok(self.archive.finish(round, recording, feedback, frames)?)
    }

    /// Rule `stop-and-fold`, for a training of `round` or an earlier one.
    pub(super) fn stop_training(&mut self, round: RoundId) -> Result<(), WorkerError> {
        match self.training.take_if(|training| training.round <= round) {
            Some(training) => self.fold(training),
            None => Ok(()),
        }
    }

    /// Ends a training that goes on from theta: theta is about to change. No node asks for that; one that trains ahead has a
    /// start of its own.
    pub(super) fn release_theta(&mut self) -> Result<(), WorkerError> {
        match self.training.take_if(|training| training.start.is_none()) {
            Some(training) => self.fold(training),
            None => Ok(()),
        }
    }

    /// Rule `land-in-flight`: `round` is applied.
    pub(super) fn land(&mut self, round: RoundId) {
        if let Some(training) = self.training.as_mut().filter(|t| t.round == round.next()) {
            training.land(&self.durable.replica.start());
        }
    }

    fn fold(&mut self, training: Training) -> Result<(), WorkerError> {
        let Some(Done { local, .. }) = training.done else {
            return Ok(());
        };
        let start = training.start;
        let start = start.unwrap_or_else(|| self.durable.replica.start().into_owned());
        self.durable.replica.fold(&start, &local)?;
        self.private_file.change();
        Ok(())
    }

    /// A frame of an own update, from disk.
    pub(super) fn own_frame(&self, round: RoundId, hash: &Hash) -> Result<Bytes, WorkerError> {
        let frame = self.durable.disk.read_frame(round, hash);
        frame.ok_or_else(|| {
            WorkerError::from(DiskError::Damaged {
                path: self.durable.disk.frames_path(round),
                reason: format!("the own frame {hash} is missing or was changed"),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(steps_done: u32) -> Training {
        let report = TrainReport {
            steps: steps_done,
            tokens: 0,
            loss_first: 0.0,
            loss_last: 0.0,
        };
        Training {
            round: RoundId(2),
            seed: Hash::ZERO,
            steps: 4,
            start: Some(vec![1.0, 2.0]),
            done: (steps_done > 0).then(|| Done {
                report,
                local: vec![0.5, 2.5],
            }),
            encode: None,
            recording: None,
        }
    }

    #[test]
    fn steps_that_are_done_move_with_theta_and_those_that_are_left_start_from_it() {
        let theta = [1.5, 1.75];
        let mut half = training(2);
        half.land(&theta);
        assert_eq!(half.start, None);
        assert_eq!(half.done.unwrap().local, [1.0, 2.25]);

        let mut fresh = training(0);
        fresh.land(&theta);
        assert!(fresh.start.is_none() && fresh.done.is_none());
    }

    #[test]
    fn training_that_is_over_stays_as_it_is() {
        let mut over = training(4);
        over.land(&[1.5, 1.75]);
        assert_eq!(over.start, Some(vec![1.0, 2.0]));
        assert_eq!(over.done.unwrap().local, [0.5, 2.5]);
    }
}
