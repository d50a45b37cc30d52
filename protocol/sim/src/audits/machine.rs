//! Machines that differ a little, and count what they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gradmesh_protocol::audit::judgement;
use gradmesh_trainer::optimizer::le_bytes;
use gradmesh_trainer::{
    Batch, BatchSource, ParameterSpec, StateError, StepReport, TrainError, TrainReport, TrainTask,
    Trainer,
};

/// A class of machine. Machines of one class compute the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// Computes what the reference model says, bit for bit.
    Reference,
    /// Steps differ as those of other f32 kernels do. The number tells classes apart.
    F32(u8),
    /// Steps differ as those of other bf16 kernels do. The number tells classes apart.
    Bf16(u8),
}

impl Machine {
    /// The norm of what a step's update has more than the reference's, relative to it: of the order of what was measured
    /// between honest machines (1.5e-6 and 4.5e-3 for a few steps).
    pub fn spread(self) -> f64 {
        match self {
            Machine::Reference => 0.0,
            Machine::F32(_) => 1e-6,
            Machine::Bf16(_) => 5e-3,
        }
    }

    /// As headers and verdicts have it.
    pub fn describe(self) -> judgement::Machine {
        judgement::Machine {
            build: "simulator".into(),
            device: match self {
                Machine::Reference => "reference".into(),
                Machine::F32(class) => format!("f32 {class}"),
                Machine::Bf16(class) => format!("bf16 {class}"),
            },
        }
    }

    /// `trainer` as it is on this machine.
    pub fn perturbed(self, trainer: Box<dyn Trainer>) -> Box<dyn Trainer> {
        match self {
            Machine::Reference => trainer,
            Machine::F32(_) | Machine::Bf16(_) => Box::new(Perturbed {
                key: *blake3::hash(self.describe().device.as_bytes()).as_bytes(),
                spread: self.spread(),
                local: trainer.local(),
                trainer,
            }),
        }
    }
}

/// Adds noise to each step's update.
///
/// The noise of a step follows from the class of the machine and the parameters after the step, so that the same step has the
/// same bits whenever a machine of the class does it. It has a direction that is all but orthogonal to everything else, and
/// exactly the norm of [`Machine::spread`] times the update's, before it is rounded into the parameters.
///
/// A loss is off by that spread in each prediction, independently, so that their mean is off by it over the root of their
/// number.
struct Perturbed {
    trainer: Box<dyn Trainer>,
    key: [u8; 32],
    spread: f64,
    local: Vec<f32>,
}

impl Perturbed {
    /// Numbers in [-1, 1) that follow from `values`.
    fn noise(&self, values: &[f32], count: usize) -> Vec<f64> {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&le_bytes(values));
        let mut words = vec![0; 4 * count];
        hasher.finalize_xof().fill(&mut words);
        let (words, _) = words.as_chunks::<4>();
        let number = |word: &[u8; 4]| f64::from(i32::from_le_bytes(*word)) / 2f64.powi(31);
        words.iter().map(number).collect()
    }

    fn perturb(&self, start: &[f32], local: &mut [f32]) {
        let noise = self.noise(local, local.len());
        let update: f64 = start
            .iter()
            .zip(&*local)
            .map(|(start, local)| (f64::from(*local) - f64::from(*start)).powi(2))
            .sum();
        let length: f64 = noise.iter().map(|noise| noise * noise).sum();
        let factor = self.spread * (update / length).sqrt();
        for (local, noise) in local.iter_mut().zip(noise) {
            *local = (f64::from(*local) + factor * noise) as f32;
        }
    }
}

impl Trainer for Perturbed {
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
        let mut whole: Option<TrainReport> = None;
        let mut start = theta.to_vec();
        for offset in 0..task.steps {
            let one = TrainTask {
                first_step: task.first_step + offset,
                steps: 1,
                global_step: task.global_step + u64::from(offset),
            };
            let before = whole.map_or(0, |report| report.tokens);
            let mut goes_on = true;
            let report = self.trainer.train(&start, &one, batches, &mut |report| {
                let tokens = before + report.tokens;
                goes_on = keep_going(&StepReport { tokens, ..*report });
                goes_on
            })?;
            let mut local = self.trainer.take_local();
            self.perturb(&start, &mut local);
            start = local;
            whole = Some(match whole {
                None => report,
                Some(earlier) => TrainReport {
                    steps: earlier.steps + report.steps,
                    tokens: earlier.tokens + report.tokens,
                    loss_first: earlier.loss_first,
                    loss_last: report.loss_last,
                },
            });
            if !goes_on {
                break;
            }
        }
        self.local = start;
        whole.ok_or(TrainError::NoSteps)
    }

    fn local(&self) -> Vec<f32> {
        self.local.clone()
    }

    fn loss(&mut self, theta: &[f32], batch: &Batch) -> Result<f32, TrainError> {
        let loss = f64::from(self.trainer.loss(theta, batch)?);
        let off = self.noise(theta, 1)[0] * self.spread / (batch.predictions() as f64).sqrt();
        Ok((loss * (1.0 + off)) as f32)
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

/// Counts the inner steps that are really done: what work costs.
pub(super) struct Counted {
    pub(super) trainer: Box<dyn Trainer>,
    pub(super) steps: Arc<AtomicU64>,
}

impl Trainer for Counted {
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
        let report = self.trainer.train(theta, task, batches, keep_going)?;
        self.steps.fetch_add(report.steps.into(), Ordering::Relaxed);
        Ok(report)
    }

    fn local(&self) -> Vec<f32> {
        self.trainer.local()
    }

    fn take_local(&mut self) -> Vec<f32> {
        self.trainer.take_local()
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
