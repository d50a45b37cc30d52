//! Models, training data, checkpoints and the replicated state of a run.
//!
//! One trait, [`Trainer`], stands for "H local steps from theta on these batches". Three things implement it:
//! [`mod@reference`], a small model in plain Rust that gives the same bits on every machine; behind the feature `torch`,
//! the libtorch decoder; and [`synthetic`], which learns nothing and serves to measure an exchange alone. A run's config
//! names an [`Architecture`]. Nothing above this crate names tch.
//!
//! Opens no socket, reads no clock, draws no entropy: randomness comes in as a seed, time is measured by the caller.

pub mod adversary;
mod architecture;
pub mod audit;
pub mod checkpoint;
pub mod data;
pub mod model;
pub mod optimizer;
pub mod reference;
pub mod replica;
pub mod synthetic;
#[cfg(feature = "torch")]
pub mod torch;
mod training;
pub mod work;
pub mod workers;

pub use architecture::Architecture;
pub use model::{ModelConfig, ParameterSpec};
pub use optimizer::{InnerOptimizer, Schedule};
pub use training::{
    Batch, BatchError, BatchSource, StateError, StepReport, TrainError, TrainReport, TrainTask,
    Trainer,
};
