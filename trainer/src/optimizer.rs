//! The inner optimizer: AdamW (Loshchilov and Hutter, 2017), its schedule and its state.
//!
//! Both trainers compute, per step `t` (from 1) and element, with gradient `g` already clipped:
//!
//! ```text
//! m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//! p = p (1 - lr decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//! ```
//!
//! Decay touches matrices only (tensors with two dimensions), never norms and biases. The state (`m`, `v`, `t`) is
//! carried from round to round: a reset each round costs 1 to 2% of loss.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::training::StateError;

/// Settings of the inner optimizer; part of the manifest, so that an auditor computes the same steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InnerOptimizer {
    /// Peak learning rate. Default 1e-3: right for models of a few million parameters; larger ones want less.
    pub learning_rate: f64,
    /// Inner steps of linear warm-up from zero, counted over the whole run. Default 100.
    pub warmup_steps: u64,
    /// What follows the warm-up. Default constant.
    pub schedule: Schedule,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.95, as published Llama recipes use.
    pub beta2: f64,
    /// Default 1e-8.
    pub epsilon: f64,
    /// Decoupled, on matrices only. Default 0.1.
    pub weight_decay: f64,
    /// The gradient's global L2 norm is scaled down to this. Default 1.
    pub clip_norm: f64,
}

/// Learning rate after the warm-up, as a function of the global inner step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    Constant,
    /// Half a cosine from the peak at the end of the warm-up to `floor` times the peak at `total_steps`, then flat.
    Cosine {
        total_steps: u64,
        floor: f64,
    },
}

impl Default for InnerOptimizer {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            warmup_steps: 100,
            schedule: Schedule::Constant,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

impl InnerOptimizer {
    /// Every fault of these settings, empty when there is none.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |name: &str, value: f64, ok: bool, range: &str| {
            if !ok {
                faults.push(format!("{name} is {value}, must be {range}"));
            }
        };
        let unit = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        check(
            "learning_rate",
            self.learning_rate,
            positive(self.learning_rate),
            "finite and above zero",
        );
        check("beta1", self.beta1, unit(self.beta1), "in 0..1");
        check("beta2", self.beta2, unit(self.beta2), "in 0..1");
        check(
            "epsilon",
            self.epsilon,
            positive(self.epsilon),
            "finite and above zero",
        );
        check(
            "weight_decay",
            self.weight_decay,
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "finite and not negative",
        );
        check(
            "clip_norm",
            self.clip_norm,
            positive(self.clip_norm),
            "finite and above zero",
        );
        if let Schedule::Cosine { total_steps, floor } = self.schedule {
            check(
                "schedule floor",
                floor,
                (0.0..=1.0).contains(&floor),
                "in 0..=1",
            );
            if total_steps <= self.warmup_steps {
                faults.push(format!(
                    "schedule total_steps is {total_steps}, must exceed warmup_steps {}",
                    self.warmup_steps
                ));
            }
        }
        faults
    }

    /// Learning rate of global inner step `step` (from 0). Computed in f64 with `libm`: the same on every machine.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine { total_steps, floor } => {
                let span = total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
                let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
                self.learning_rate * (floor + (1.0 - floor) * cosine)
            }
        }
    }

    /// `1 - beta^t` for both betas.
    pub(crate) fn bias_corrections(&self, t: u64) -> (f64, f64) {
        let t = t as f64;
        (
            1.0 - libm::pow(self.beta1, t),
            1.0 - libm::pow(self.beta2, t),
        )
    }
}

/// State of AdamW over the flat parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InnerState {
    /// Steps taken since the state was zero.
    pub(crate) steps: u64,
    /// Mean of gradients, flat.
    pub(crate) first: Vec<f32>,
    /// Mean of squared gradients, flat, not negative.
    pub(crate) second: Vec<f32>,
}

const FIRST: &str = "adamw.first";
const SECOND: &str = "adamw.second";
const STEPS: &str = "adamw.steps";

/// Room for the safetensors header of three tensors: measured 220 bytes, doubled with a margin for longer numbers.
const HEADER_BYTES_MAX: usize = 512;

impl InnerState {
    pub(crate) fn zero(elements: usize) -> Self {
        Self {
            steps: 0,
            first: vec![0.0; elements],
            second: vec![0.0; elements],
        }
    }

    /// Safetensors bytes: `adamw.first` and `adamw.second` (F32, flat), `adamw.steps` (U64, one element). The same
    /// state always gives the same bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let first = le_bytes(&self.first);
        let second = le_bytes(&self.second);
        let steps = self.steps.to_le_bytes();
        let shape = vec![self.first.len()];
        let view = |dtype, shape: &[usize], bytes| {
            TensorView::new(dtype, shape.to_vec(), bytes).expect("length follows from the shape")
        };
        let tensors = [
            (FIRST, view(Dtype::F32, &shape, &first)),
            (SECOND, view(Dtype::F32, &shape, &second)),
            (STEPS, view(Dtype::U64, &[1], &steps)),
        ];
        let none: Option<HashMap<String, String>> = None;
        safetensors::serialize(tensors, none).expect("three valid tensors serialise")
    }

    /// Reads what [`Self::to_bytes`] wrote for a model of `elements` parameters.
    pub(crate) fn from_bytes(bytes: &[u8], elements: usize) -> Result<Self, StateError> {
        let limit = elements * 8 + HEADER_BYTES_MAX;
        if bytes.len() > limit {
            return Err(StateError::TooLong {
                got: bytes.len(),
                limit,
            });
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| StateError::Format(error.to_string()))?;
        if file.len() != 3 {
            return Err(StateError::Format(format!(
                "{} tensors where 3 belong",
                file.len()
            )));
        }
        let read = |name: &'static str, dtype: Dtype, shape: [usize; 1]| {
            let view = file
                .tensor(name)
                .map_err(|error| StateError::Format(error.to_string()))?;
            if view.dtype() != dtype || view.shape() != shape {
                return Err(StateError::Format(format!(
                    "{name} is {} {:?}, must be {dtype} {shape:?}",
                    view.dtype(),
                    view.shape()
                )));
            }
            Ok(view.data())
        };
        let first = f32_values(read(FIRST, Dtype::F32, [elements])?);
        let second = f32_values(read(SECOND, Dtype::F32, [elements])?);
        let steps: [u8; 8] = read(STEPS, Dtype::U64, [1])?
            .try_into()
            .map_err(|_| StateError::Format(format!("{STEPS} is not eight bytes")))?;
        if let Some(index) = first.iter().position(|value| !value.is_finite()) {
            return Err(StateError::Value { name: FIRST, index });
        }
        if let Some(index) = second
            .iter()
            .position(|value| !(value.is_finite() && *value >= 0.0))
        {
            return Err(StateError::Value {
                name: SECOND,
                index,
            });
        }
        Ok(Self {
            steps: u64::from_le_bytes(steps),
            first,
            second,
        })
    }
}

/// The little-endian bytes of `values`: where they lie, on a machine that keeps them so.
pub fn le_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }
}

/// Little-endian f32 values; a trailing part of fewer than four bytes is left out.
pub fn f32_values(bytes: &[u8]) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<4>();
    chunks
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_warms_up_then_follows_the_cosine() {
        let optimizer = InnerOptimizer {
            learning_rate: 2.0,
            warmup_steps: 4,
            schedule: Schedule::Cosine {
                total_steps: 14,
                floor: 0.1,
            },
            ..InnerOptimizer::default()
        };
        assert_eq!(optimizer.learning_rate_at(0), 0.5);
        assert_eq!(optimizer.learning_rate_at(3), 2.0);
        assert_eq!(optimizer.learning_rate_at(4), 2.0);
        // Half way the cosine is one half: 2 (0.1 + 0.9/2); f64 rounding only.
        assert!((optimizer.learning_rate_at(9) - 1.1).abs() < 1e-12);
        assert!((optimizer.learning_rate_at(14) - 0.2).abs() < 1e-12);
        assert_eq!(
            optimizer.learning_rate_at(14),
            optimizer.learning_rate_at(u64::MAX)
        );
    }

    #[test]
    fn faults_are_listed_together() {
        let optimizer = InnerOptimizer {
            learning_rate: f64::NAN,
            beta2: 1.0,
            schedule: Schedule::Cosine {
                total_steps: 1,
                floor: 2.0,
            },
            ..InnerOptimizer::default()
        };
        assert_eq!(optimizer.faults().len(), 4, "{:?}", optimizer.faults());
        assert!(InnerOptimizer::default().faults().is_empty());
    }

    #[test]
    fn inner_state_survives_bytes_and_refuses_bad_ones() {
        let state = InnerState {
            steps: 9,
            first: vec![1.0, -2.0],
            second: vec![0.5, 0.0],
        };
        let bytes = state.to_bytes();
        assert_eq!(InnerState::from_bytes(&bytes, 2), Ok(state.clone()));
        assert!(matches!(
            InnerState::from_bytes(&bytes, 3),
            Err(StateError::Format(_))
        ));
        for cut in 0..bytes.len() {
            assert!(
                InnerState::from_bytes(&bytes[..cut], 2).is_err(),
                "cut at {cut}"
            );
        }
        let negative = InnerState {
            second: vec![0.0, -1.0],
            ..state
        };
        assert_eq!(
            InnerState::from_bytes(&negative.to_bytes(), 2),
            Err(StateError::Value {
                name: SECOND,
                index: 1
            })
        );
        assert!(matches!(
            InnerState::from_bytes(&vec![0; 10_000], 2),
            Err(StateError::TooLong { .. })
        ));
    }
}
