//! Device classes, and how far honest machines of two of them are apart.

use super::device::Device;
use super::{TorchSettings, set_threads};
use crate::architecture::Architecture;
use crate::audit::{RedoError, redo, relative_error_ppb};
use crate::model::{ConfigError, Precision};
use crate::training::{BatchSource, TrainError, Trainer};
use crate::work::{WorkState, zero_inner};

/// What equal bits depend on, beside the program and the model: kind of device and its instructions, threads, number format
/// and micro-batch. Two peers of one class, with the same program, are expected to compute the same bits.
///
/// For example `cpu x86_64 avx2 t1 f32 mb64`; at most 128 bytes.
pub fn device_class(settings: &TorchSettings, threads: u16) -> String {
    let precision = match settings.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let micro_batch = settings.micro_batch;
    // As `set_threads` takes it.
    let threads = threads.max(1);
    match settings.device {
        Device::Cpu => format!(
            "cpu {} {} t{threads} {precision} mb{micro_batch}",
            std::env::consts::ARCH,
            instructions(settings.precision)
        ),
        Device::Cuda(_) => format!("cuda {precision} mb{micro_batch}"),
    }
}

/// The widest instructions that libtorch has kernels for, on this processor; for bf16 also whether it computes in bf16. By the
/// features that libtorch itself asks for (ATen, `DispatchStub.cpp`, `compute_cpu_capability`), which does not tell its answer.
#[cfg(target_arch = "x86_64")]
fn instructions(precision: Precision) -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let avx512 = has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq");
    match (has!("fma") && has!("avx2"), avx512, precision) {
        (true, true, Precision::Bf16) if has!("avx512bf16") => "avx512bf16",
        (true, true, _) => "avx512",
        (true, false, _) => "avx2",
        (false, _, _) => "sse",
    }
}

/// One class for each other architecture.
#[cfg(not(target_arch = "x86_64"))]
fn instructions(_: Precision) -> &'static str {
    "base"
}

/// A machine in a calibration: one way in which this one can compute.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    pub settings: TorchSettings,
    /// As [`set_threads`] takes them.
    pub threads: u16,
}

impl Setup {
    /// Its [`device_class`].
    pub fn class(&self) -> String {
        device_class(&self.settings, self.threads)
    }
}

/// How far two classes were apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// Class of the setup that worked.
    pub first: String,
    /// Class of the setup that audited.
    pub second: String,
    /// The largest error of a segment, as [`relative_error_ppb`] has it.
    pub largest_ppb: u64,
    /// The largest error of a segment that carried the inner state of the one before on, as most of a run's do.
    pub largest_carried_ppb: u64,
    /// Segments that were measured.
    pub segments: u32,
}

/// A segment of a calibration that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Place of the pair, from 0.
    pub pair: usize,
    /// Segment of this pair, from 0.
    pub segment: u32,
    /// Whether it began with an inner state of zero.
    pub restart: bool,
    pub error_ppb: u64,
}

/// Why a calibration ended.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Redo(#[from] RedoError),
}

/// One in this many segments begins with an inner state of zero, as after a restart: the first step of AdamW moves each element
/// by the learning rate, however small its gradient, so that rounding shows most. On the demo's model and 128 tokens a step it
/// showed about five times as much in f32 and in bf16 (tests/calibration.rs).
const SEGMENTS_PER_RESTART: u32 = 4;

/// Measures audits among honest machines: in each of `pairs` the first setup trains `segments` segments of `steps` steps, from
/// parameters drawn from `seed`, and the second one does each again from the state before it.
///
/// `batches`: step i of each pair's training gets batch i, in `0..segments * steps`. Leaves libtorch with the threads of the
/// last setup ([`set_threads`]; nothing else may use libtorch meanwhile).
///
/// Cost: for each pair twice the training of its segments. Memory: two trainers, and four states of 12 bytes per parameter.
///
/// # Errors
/// [`CalibrateError`].
pub fn calibrate(
    model: &Architecture,
    seed: [u8; 32],
    batches: &mut dyn BatchSource,
    pairs: &[(Setup, Setup)],
    segments: u32,
    steps: u32,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Measured>, CalibrateError> {
    let mut measured = Vec::with_capacity(pairs.len());
    for (pair, (first, second)) in pairs.iter().enumerate() {
        let mut worker = model.trainer(first.settings.clone())?;
        let mut auditor = model.trainer(second.settings.clone())?;
        let theta = model.init(seed)?;
        let zero = zero_inner(theta.len());
        let mut state = WorkState {
            theta,
            inner: zero.clone(),
        };
        let mut row = Measured {
            first: first.class(),
            second: second.class(),
            largest_ppb: 0,
            largest_carried_ppb: 0,
            segments,
        };
        for segment in 0..segments {
            let restart = segment % SEGMENTS_PER_RESTART == 0;
            if restart {
                state.inner.clone_from(&zero);
            }
            let from = segment.saturating_mul(steps);
            let mut work = |setup: &Setup, trainer: &mut dyn Trainer| {
                set_threads(setup.threads);
                let steps = from..from.saturating_add(steps);
                redo(trainer, &state, steps, from.into(), batches)
            };
            let claimed = work(first, worker.as_mut())?.state;
            let redone = work(second, auditor.as_mut())?.state;
            let error_ppb = relative_error_ppb(&state.theta, &claimed.theta, &redone.theta);
            row.largest_ppb = error_ppb.max(row.largest_ppb);
            if !restart {
                row.largest_carried_ppb = error_ppb.max(row.largest_carried_ppb);
            }
            progress(Progress {
                pair,
                segment,
                restart,
                error_ppb,
            });
            state = claimed;
        }
        measured.push(row);
    }
    Ok(measured)
}
