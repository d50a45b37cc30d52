//! Training, and what becomes of it: an update, or more error feedback.
//!
//! Rule `between-steps`: commands do not wait for the end of a training. After each inner step the worker looks whether one has
//! come, does it, and goes on with the steps that are left, from where it was. With overlap a decision is applied in the
//! middle of the next round's training that way: it waits for one step at most, and holds training up for as long as
//! applying takes.
//!
//! Rule `stop-and-fold`: a training that will not be committed to ends between two steps; what was learnt goes into the error
//! feedback. So it does when the worker ends. A training ahead leaves no other trace: after a restart the round is trained
//! anew, with the inner optimizer's state as it was last saved.

use std::sync::mpsc::{Receiver, TryRecvError};

use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, Stage, UpdateSummary};
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::Start;
use gradmesh_trainer::data::assignment;
use gradmesh_trainer::{StepReport, TrainReport, TrainTask};

use super::disk::{DiskError, Pending};
use super::{Command, Event, Machine, WorkerError, micronats};

/// A round that is trained, or was and is not encoded yet.
pub(super) struct Training {
    round: RoundId,
    seed: Hash,
    /// Inner steps to do.
    steps: u32,
    /// What it began from; `None`: theta, which stays as it is until the training is over.
    start: Option<Vec<f32>>,
    /// What was done so far.
    done: Option<Done>,
    /// The stage to encode the update at, once that was asked for.
    encode: Option<Stage>,
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

    fn is_over(&self) -> bool {
        self.steps_done() >= self.steps
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
        if self.pending.as_ref().is_some_and(|own| own.round == round) {
            // Made before a restart, and never published as far as the journal knows.
            return;
        }
        let start = match start {
            Start::State => None,
            Start::Ahead { stage, frames } => Some(self.start_ahead(round, *stage, frames)),
        };
        self.training = Some(Training {
            round,
            seed,
            steps,
            start,
            done: None,
            encode: None,
        });
    }

    /// Theta minus the own update of the round before `round`, whose frames are on disk.
    fn start_ahead(&self, round: RoundId, stage: Stage, frames: &[FrameRef]) -> Vec<f32> {
        let in_flight = round.previous().unwrap_or_default();
        let own = frames.iter();
        let own = own.map(|frame| self.own_frame(in_flight, &frame.hash));
        let start = own
            .collect::<Result<Vec<Bytes>, WorkerError>>()
            .and_then(|own| Ok(self.replica.start_ahead(stage, &own)?));
        start.unwrap_or_else(|error| {
            tracing::warn!(%round, %error, "training ahead starts without the update in flight");
            self.replica.theta().to_vec()
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
        if let Err(error) = self.inner_steps(&mut training, inbox) {
            return Ok(Some(Event::TrainingFailed {
                round: training.round,
                reason: error.to_string(),
            }));
        }
        self.training = Some(training);
        self.encode_if_due()
    }

    fn inner_steps(
        &mut self,
        training: &mut Training,
        inbox: &Receiver<Command>,
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
        let of_earlier = round.0.saturating_sub(1) * u64::from(settings.steps_per_round);
        let task = TrainTask {
            first_step,
            steps: steps - first_step,
            global_step: of_earlier + u64::from(first_step),
        };
        let (waiting, events, encode) = (&mut self.waiting, &self.events, &mut training.encode);
        let mut keep_going = |report: &StepReport| {
            // Progress is for people: what does not fit is dropped.
            let _ = events.try_send(Event::Progress {
                round,
                step: report.step + 1,
                steps,
                loss: report.loss,
            });
            match inbox.try_recv() {
                // Nothing to stop for: it is done at the end.
                Ok(Command::Encode { round: of, stage }) if of == round => {
                    *encode = Some(stage);
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
            (Some(done), _) => &done.local,
            (None, Some(start)) => start,
            (None, None) => self.replica.theta(),
        };
        let report = self
            .trainer
            .train(from, &task, &mut source, &mut keep_going)?;
        let local = self.trainer.take_local();
        training.note(report, local);
        Ok(())
    }

    pub(super) fn encode(
        &mut self,
        round: RoundId,
        stage: Stage,
    ) -> Result<Option<Event>, WorkerError> {
        let made = self.pending.as_ref();
        if let Some(made) = made.filter(|own| (own.round, own.stage) == (round, stage)) {
            let summary = Box::new(made.summary.clone());
            let frames = summary.frames.iter();
            let frames = frames.map(|frame| self.own_frame(round, &frame.hash));
            return Ok(Some(Event::Update {
                round,
                frames: frames.collect::<Result<_, _>>()?,
                summary,
            }));
        }
        // Without a training of the round: it has failed, and its failure was told.
        if let Some(training) = self.training.as_mut().filter(|t| t.round == round) {
            training.encode = Some(stage);
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
            encode: Some(stage),
            ..
        }) = due
        else {
            return Ok(None);
        };
        let update = match &start {
            Some(start) => self.replica.update(start, &local, stage),
            None => self.replica.update_from_theta(&local, stage),
        };
        let update = match update {
            Ok(update) => update,
            Err(error) => {
                let reason = error.to_string();
                return Ok(Some(Event::TrainingFailed { round, reason }));
            }
        };
        drop((start, local));
        let mut frames = Vec::with_capacity(update.frames.len());
        for bytes in &update.frames {
            let hash = Hash::of_content(bytes);
            self.disk.write_frame(round, &hash, bytes)?;
            frames.push(FrameRef {
                hash,
                bytes: bytes.len() as u64,
            });
        }
        let pending = Pending {
            round,
            stage,
            summary: UpdateSummary {
                frames,
                feedback_before: update.feedback_before,
                feedback_after: update.feedback_after,
                segments_root: Hash::ZERO,
                tokens: report.tokens,
                steps: report.steps,
                loss_first_micronats: micronats(report.loss_first),
                loss_last_micronats: micronats(report.loss_last),
                build: env!("CARGO_PKG_VERSION").into(),
                device: self.device.clone(),
            },
        };
        let summary = Box::new(pending.summary.clone());
        self.pending = Some(pending);
        self.private_file.changed = true;
        Ok(Some(Event::Update {
            round,
            summary,
            frames: update.frames.into_iter().map(Bytes::from).collect(),
        }))
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

    fn fold(&mut self, training: Training) -> Result<(), WorkerError> {
        let Some(Done { local, .. }) = training.done else {
            return Ok(());
        };
        let start = training.start;
        let start = start.unwrap_or_else(|| self.replica.theta().to_vec());
        self.replica.fold(&start, &local)?;
        self.private_file.changed = true;
        Ok(())
    }

    /// A frame of an own update, from disk.
    pub(super) fn own_frame(&self, round: RoundId, hash: &Hash) -> Result<Bytes, WorkerError> {
        let frame = self.disk.read_frame(round, hash);
        frame.ok_or_else(|| {
            WorkerError::from(DiskError::Damaged {
                path: self.disk.frame_path(round, hash),
                reason: "an own frame is missing or was changed".into(),
            })
        })
    }
}
