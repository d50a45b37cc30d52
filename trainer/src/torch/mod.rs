//! The libtorch models.
//!
//! All parameters live in one flat f32 tensor, in the order of [`ModelConfig::parameters`]: theta goes in and the local
//! parameters come out in one copy each, the gradient is one tensor, and AdamW is a handful of operations on whole
//! buffers. The forward pass sees views of it.
//!
//! **Precision.** [`Precision::F32`] computes in f32. [`Precision::Bf16`] keeps parameters, optimizer state and loss in
//! f32 and casts the flat buffer to bf16 once per forward pass; norms compute their mean square in f32.
//!
//! **Memory.** `micro_batch` sequences go through the model at a time and gradients add up in f32. Activations are
//! kept, not recomputed: there is no activation checkpointing, so a smaller `micro_batch` is the way to less memory.
//!
//! **Reproducibility.** On a CPU the same inputs give the same bits for the same build, machine type, thread count
//! ([`set_threads`]) and `micro_batch`. On a GPU the backward pass of attention may add in another order from run to
//! run.

pub mod calibrate;
pub mod device;
mod llama;
pub mod select;
mod step;

pub use gradmesh_libtorch::{VersionError, version_check};
use tch::{Kind, Tensor, no_grad_guard};

use self::device::Device;
use self::llama::Llama;
use crate::model::{ModelConfig, ParameterSpec, Precision, elements};
use crate::optimizer::{InnerOptimizer, InnerState};
use crate::training::{
    Batch, BatchSource, StateError, StepReport, TrainError, TrainReport, TrainTask, Trainer,
    check_length, check_tokens,
};

/// Number of threads inside one libtorch operation. Call before the first tensor is made, from any thread.
pub fn set_threads(threads: u16) {
    tch::set_num_threads(i32::from(threads.max(1)));
}

/// How and where to train; local settings except `optimizer`, which is the manifest's.
#[derive(Debug, Clone, PartialEq)]
pub struct TorchSettings {
    pub optimizer: InnerOptimizer,
    pub precision: Precision,
    /// From [`device::select`].
    pub device: Device,
    /// Sequences per forward pass; a batch with more is cut up and its gradients are added.
    pub micro_batch: usize,
}

impl TorchSettings {
    /// f32 on the CPU, 64 sequences at a time.
    pub fn cpu(optimizer: InnerOptimizer) -> Self {
        Self {
            optimizer,
            precision: Precision::F32,
            device: Device::Cpu,
            micro_batch: 64,
        }
    }
}

/// The libtorch implementation of [`Trainer`].
#[derive(Debug)]
pub struct TorchTrainer {
    model: Llama,
    settings: TorchSettings,
    specs: Vec<ParameterSpec>,
    /// Start and length of each run of neighbouring matrices in the flat buffer: what weight decay touches.
    decayed: Vec<(i64, i64)>,
    /// Parameters in training, f32 on the device, a leaf that wants its gradient.
    flat: Tensor,
    first: Tensor,
    second: Tensor,
    steps: u64,
    /// Copy of `flat` on the host, from the end of the last `train`.
    local: Vec<f32>,
}

fn backend(error: tch::TchError) -> TrainError {
    TrainError::Backend(error.to_string())
}

impl TorchTrainer {
    /// Reserves four flat f32 buffers on the device (parameters, gradient, two of AdamW) and one on the host.
    ///
    /// # Errors
    /// [`TrainError::Settings`] with every fault; [`TrainError::Backend`] when the device cannot hold the buffers.
    pub fn new(config: ModelConfig, settings: TorchSettings) -> Result<Self, TrainError> {
        let mut faults = settings.optimizer.faults();
        if let Err(error) = config.validate() {
            faults.push(error.to_string());
        }
        if settings.micro_batch == 0 {
            faults.push("micro_batch is 0, must be at least 1".to_owned());
        }
        if !faults.is_empty() {
            return Err(TrainError::Settings(faults));
        }
        let specs = config.parameters();
        let n = elements(&specs);
        let options = (Kind::Float, settings.device.to_tch());
        let zeros = || Tensor::f_zeros([n as i64], options).map_err(backend);
        let flat = zeros()?.f_set_requires_grad(true).map_err(backend)?;
        Ok(Self {
            model: Llama::new(config, settings.device.to_tch(), settings.precision)
                .map_err(backend)?,
            decayed: decayed_ranges(&specs),
            flat,
            first: zeros()?,
            second: zeros()?,
            steps: 0,
            local: vec![0.0; n],
            specs,
            settings,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Checks `batch` and makes room for sequences of its length.
    fn admit(&mut self, batch: &Batch) -> Result<(), TrainError> {
        let config = self.model.config();
        batch.check(config.vocab_size, config.max_position_embeddings)?;
        self.model.reserve(batch.seq_len()).map_err(backend)
    }

    fn upload(&self, theta: &[f32]) -> Result<Tensor, TrainError> {
        Tensor::f_from_slice(theta)
            .and_then(|host| host.f_to(self.settings.device.to_tch()))
            .map_err(backend)
    }

    /// Rows of `batch` in pieces of `micro_batch` rows: inputs and targets, i64 `[rows, seq_len]` on the device.
    fn pieces(&self, batch: &Batch) -> Result<Vec<(Tensor, Tensor)>, tch::TchError> {
        let ids: Vec<i64> = batch
            .tokens()
            .iter()
            .map(|token| i64::from(*token))
            .collect();
        let seq_len = batch.seq_len() as i64;
        let all = Tensor::f_from_slice(&ids)?
            .f_view([batch.sequences() as i64, seq_len + 1])?
            .f_to(self.settings.device.to_tch())?;
        all.f_split(self.settings.micro_batch as i64, 0)?
            .into_iter()
            .map(|rows| {
                let inputs = rows.f_narrow(1, 0, seq_len)?.f_contiguous()?;
                let targets = rows.f_narrow(1, 1, seq_len)?.f_contiguous()?;
                Ok((inputs, targets))
            })
            .collect()
    }
}

/// Merges neighbouring tensors of two dimensions into ranges of the flat buffer.
fn decayed_ranges(specs: &[ParameterSpec]) -> Vec<(i64, i64)> {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    let mut start = 0i64;
    for spec in specs {
        let length = spec.elements() as i64;
        if spec.shape.len() >= 2 {
            match ranges.last_mut() {
                Some((first, run)) if *first + *run == start => *run += length,
                _ => ranges.push((start, length)),
            }
        }
        start += length;
    }
    ranges
}

fn host_values(tensor: &Tensor) -> Result<Vec<f32>, TrainError> {
    let flat = tensor.f_detach().and_then(|tensor| tensor.f_reshape([-1]));
    Vec::try_from(&flat.map_err(backend)?).map_err(backend)
}

impl Trainer for TorchTrainer {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }

    fn train(
        &mut self,
        theta: &[f32],
        task: &TrainTask,
        batches: &mut dyn BatchSource,
        keep_going: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<TrainReport, TrainError> {
        if task.steps == 0 {
            return Err(TrainError::NoSteps);
        }
        self.set_parameters(theta)?;
        let mut report = TrainReport {
            steps: 0,
            tokens: 0,
            loss_first: 0.0,
            loss_last: 0.0,
        };
        for offset in 0..task.steps {
            let step = task.first_step.saturating_add(offset);
            let batch = batches
                .batch(step)
                .map_err(|reason| TrainError::Source { step, reason })?;
            self.admit(&batch)?;
            let (loss, gradient) = self.backward(&batch).map_err(backend)?;
            // The only wait for the device in a step: both numbers cross in one copy.
            let numbers = gradient
                .f_norm()
                .and_then(|norm| Tensor::f_stack(&[loss, norm], 0))
                .map_err(backend)?;
            let [loss, gradient_norm]: [f32; 2] = host_values(&numbers)?
                .try_into()
                .map_err(|_| TrainError::Backend("two stacked scalars are not two".to_owned()))?;
            if !(loss.is_finite() && gradient_norm.is_finite()) {
                return Err(TrainError::NotFinite {
                    step,
                    loss,
                    gradient_norm,
                });
            }
            let learning_rate = self
                .settings
                .optimizer
                .learning_rate_at(task.global_step.saturating_add(u64::from(offset)));
            self.descend(gradient, gradient_norm, learning_rate)
                .map_err(backend)?;
            report.steps += 1;
            report.tokens += batch.predictions();
            if offset == 0 {
                report.loss_first = loss;
            }
            report.loss_last = loss;
            let more = keep_going(&StepReport {
                step,
                loss,
                gradient_norm,
                learning_rate,
                tokens: report.tokens,
            });
            if !more {
                break;
            }
        }
        self.local = host_values(&self.flat)?;
        Ok(report)
    }

    fn local(&self) -> Vec<f32> {
        self.local.clone()
    }

    fn loss(&mut self, theta: &[f32], batch: &Batch) -> Result<f32, TrainError> {
        check_length("theta", theta.len(), self.local.len())?;
        self.admit(batch)?;
        let _guard = no_grad_guard();
        let flat = self.upload(theta)?;
        let mut total = 0.0;
        for (inputs, targets) in self.pieces(batch).map_err(backend)? {
            let sum = self
                .model
                .loss_sum(&flat, &inputs, &targets)
                .and_then(|sum| sum.f_double_value(&[]))
                .map_err(backend)?;
            total += sum;
        }
        let loss = (total / batch.predictions() as f64) as f32;
        if loss.is_finite() {
            Ok(loss)
        } else {
            Err(TrainError::LossNotFinite(loss))
        }
    }

    fn logits(&mut self, theta: &[f32], tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        check_length("theta", theta.len(), self.local.len())?;
        let config = self.model.config();
        check_tokens(tokens, config.vocab_size)?;
        if tokens.len() > config.max_position_embeddings {
            return Err(TrainError::SequenceLength {
                got: tokens.len(),
                max: config.max_position_embeddings,
            });
        }
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.model.reserve(tokens.len()).map_err(backend)?;
        let _guard = no_grad_guard();
        let flat = self.upload(theta)?;
        let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        let logits = Tensor::f_from_slice(&ids)
            .and_then(|ids| ids.f_view([1, -1]))
            .and_then(|ids| ids.f_to(self.settings.device.to_tch()))
            .and_then(|ids| self.model.logits(&flat, &ids))
            .map_err(backend)?;
        host_values(&logits)
    }

    fn inner_state(&self) -> Result<Vec<u8>, TrainError> {
        let state = InnerState {
            steps: self.steps,
            first: host_values(&self.first)?,
            second: host_values(&self.second)?,
        };
        Ok(state.to_bytes())
    }

    fn set_inner_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state = InnerState::from_bytes(bytes, self.local.len())?;
        let upload = |values: &[f32]| {
            self.upload(values)
                .map_err(|error| StateError::Backend(error.to_string()))
        };
        let (first, second) = (upload(&state.first)?, upload(&state.second)?);
        self.first = first;
        self.second = second;
        self.steps = state.steps;
        Ok(())
    }
}
