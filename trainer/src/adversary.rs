//! Peers that cheat, for simulations, demos and tests: what stands between them and an honest trainer.
//!
//! A cheat is a [`Trainer`] around another one. Whoever uses it is the honest program: it records, commits, compresses and
//! serves what the trainer says it did. So honest code has no branch for any of them, and each trick is a file of its own:
//!
//! | kind | what it does |
//! |---|---|
//! | `none` | trains |
//! | `idle` | nothing, and claims all of it |
//! | `half` | the first half of a round's steps, and claims the rest |
//! | `copy` | another peer's update of the round before, as its own |
//! | `noise` | Gaussian noise of the size of an update |
//! | `stale` | trains from the shared parameters of the round before |
//! | `sign` | trains, and turns its update round |
//! | `scale` | trains, and sends three times its update |
//! | `hijack` | trains, and sets one parameter to what it likes |
//! | `withhold` | trains; its caller withholds what audits need |
//!
//! [`partial()`] skips a part of the segments at random, for curves of detection.

mod copy;
mod half;
mod hijack;
mod idle;
mod noise;
mod partial;
mod scale;
mod sign;
mod stale;

use std::fmt;
use std::str::FromStr;

use gradmesh_protocol::hash::Hash;

use crate::model::{ParameterSpec, elements};
use crate::training::{
    Batch, BatchSource, StateError, StepReport, TrainError, TrainReport, TrainTask, Trainer,
    check_length,
};

/// How a peer cheats (module documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    None,
    Idle,
    Half,
    Copy,
    Noise,
    Stale,
    Sign,
    Scale,
    Hijack,
    Withhold,
}

impl Kind {
    /// All kinds, the honest one first.
    pub const ALL: [Kind; 10] = [
        Kind::None,
        Kind::Idle,
        Kind::Half,
        Kind::Copy,
        Kind::Noise,
        Kind::Stale,
        Kind::Sign,
        Kind::Scale,
        Kind::Hijack,
        Kind::Withhold,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Idle => "idle",
            Kind::Half => "half",
            Kind::Copy => "copy",
            Kind::Noise => "noise",
            Kind::Stale => "stale",
            Kind::Sign => "sign",
            Kind::Scale => "scale",
            Kind::Hijack => "hijack",
            Kind::Withhold => "withhold",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of {names}", names = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word);
        kind.ok_or_else(|| UnknownKind(word.to_owned()))
    }
}

/// Another peer's newest decided update, flat, if there is one at hand.
pub type Others = Box<dyn FnMut() -> Option<Vec<f32>> + Send>;

/// `trainer` in the guise of `kind`.
///
/// `steps_per_round`: inner steps of a round. `seed`: from which whatever is drawn is drawn.
pub fn wrap(
    kind: Kind,
    trainer: Box<dyn Trainer>,
    steps_per_round: u32,
    seed: Hash,
    others: Others,
) -> Box<dyn Trainer> {
    let trick: Box<dyn Trick> = match kind {
        Kind::None | Kind::Withhold => return trainer,
        Kind::Idle => Box::new(idle::Idle),
        Kind::Half => Box::new(half::Half { steps_per_round }),
        Kind::Copy => Box::new(copy::Copy::new(steps_per_round, others)),
        Kind::Noise => Box::new(noise::Noise { seed }),
        Kind::Stale => Box::new(stale::Stale::default()),
        Kind::Sign => Box::new(sign::Sign),
        Kind::Scale => Box::new(scale::Scale),
        Kind::Hijack => Box::new(hijack::Hijack {
            steps_per_round,
            seed,
        }),
    };
    Box::new(Adversary::new(trainer, trick))
}

/// `trainer`, but each call of [`Trainer::train`] is skipped with a chance of `skipped_ppm` parts per million.
pub fn partial(trainer: Box<dyn Trainer>, skipped_ppm: u32, seed: Hash) -> Box<dyn Trainer> {
    Box::new(Adversary::new(
        trainer,
        Box::new(partial::Partial { skipped_ppm, seed }),
    ))
}

/// One way to cheat.
trait Trick: Send {
    /// What is said of a call of [`Trainer::train`], and the local parameters after it.
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError>;
}

/// A call of [`Trainer::train`].
struct Call<'a> {
    theta: &'a [f32],
    task: TrainTask,
    batches: &'a mut dyn BatchSource,
    keep_going: &'a mut dyn FnMut(&StepReport) -> bool,
}

/// The trainer that an adversary could use, and what it was seen to do.
struct Honest<'a> {
    trainer: &'a mut dyn Trainer,
    /// The last loss that was measured, for claims.
    loss: &'a mut f32,
}

impl Honest<'_> {
    /// Does what was asked for, from `theta`.
    fn train(
        &mut self,
        theta: &[f32],
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let report = self
            .trainer
            .train(theta, &call.task, call.batches, call.keep_going)?;
        *self.loss = report.loss_last;
        Ok((report, self.trainer.take_local()))
    }

    /// Claims what was asked for, with losses that fall a little from the last one that was measured.
    fn claim(&mut self, call: &mut Call<'_>) -> Result<TrainReport, TrainError> {
        const FALL: f32 = 0.9995;
        let mut report = TrainReport {
            steps: 0,
            tokens: 0,
            loss_first: *self.loss,
            loss_last: *self.loss,
        };
        for offset in 0..call.task.steps {
            let step = call.task.first_step.saturating_add(offset);
            let batch = call.batches.batch(step);
            let batch = batch.map_err(|reason| TrainError::Source { step, reason })?;
            *self.loss *= FALL;
            report.steps += 1;
            report.tokens += batch.predictions();
            report.loss_last = *self.loss;
            let claimed = StepReport {
                step,
                loss: *self.loss,
                gradient_norm: 1.0,
                learning_rate: 0.0,
                tokens: report.tokens,
            };
            if !(call.keep_going)(&claimed) {
                break;
            }
        }
        Ok(report)
    }
}

/// A trainer with a trick.
struct Adversary {
    trainer: Box<dyn Trainer>,
    trick: Box<dyn Trick>,
    local: Vec<f32>,
    loss: f32,
}

impl Adversary {
    fn new(trainer: Box<dyn Trainer>, trick: Box<dyn Trick>) -> Self {
        Self {
            local: trainer.local(),
            // Of a model that has learnt nothing.
            loss: libm::logf(trainer.vocab() as f32),
            trainer,
            trick,
        }
    }
}

impl Trainer for Adversary {
    fn parameters(&self) -> &[ParameterSpec] {
        self.trainer.parameters()
    }

    fn vocab(&self) -> usize {
        self.trainer.vocab()
    }

    fn train(
        &mut self,
        theta: &[f32],
        task: &TrainTask,
        batches: &mut dyn BatchSource,
        keep_going: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<TrainReport, TrainError> {
        // A trick that trains nothing owes its caller these errors all the same.
        check_length("theta", theta.len(), elements(self.parameters()))?;
        if task.steps == 0 {
            return Err(TrainError::NoSteps);
        }
        let mut honest = Honest {
            trainer: self.trainer.as_mut(),
            loss: &mut self.loss,
        };
        let mut call = Call {
            theta,
            task: *task,
            batches,
            keep_going,
        };
        let (report, local) = self.trick.train(&mut honest, &mut call)?;
        self.local = local;
        Ok(report)
    }

    fn local(&self) -> Vec<f32> {
        self.local.clone()
    }

    fn loss(&mut self, theta: &[f32], batch: &Batch) -> Result<f32, TrainError> {
        self.trainer.loss(theta, batch)
    }

    fn logits(&mut self, theta: &[f32], tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        self.trainer.logits(theta, tokens)
    }

    fn inner_state(&self) -> Result<Vec<u8>, TrainError> {
        self.trainer.inner_state()
    }

    fn set_inner_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.trainer.set_inner_state(bytes)
    }
}

/// `start + factor * (end - start)`, element by element.
fn stretched(start: &[f32], end: &[f32], factor: f32) -> Vec<f32> {
    let pairs = start.iter().zip(end);
    pairs
        .map(|(start, end)| start + factor * (end - start))
        .collect()
}

#[cfg(test)]
mod tests;
