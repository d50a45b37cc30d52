//! From the manifest's integers to the settings of codec, replica and trainer.

use std::num::NonZeroUsize;

use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::manifest::{Audit, CodecKind, LocalFormat, Manifest, ModelDtype, OuterRule};
use gradmesh_trainer::Architecture;
use gradmesh_trainer::model::{ConfigError, Precision};
use gradmesh_trainer::replica::{Outer, ReplicaConfig};
use gradmesh_trainer::{InnerOptimizer, Schedule};

/// A manifest whose figures no trainer can use. [`Manifest::validate`] excludes most of it.
#[derive(Debug, thiserror::Error)]
pub enum RunSettingsError {
    /// The model configuration.
    #[error("model.config: {0}")]
    Model(#[from] ConfigError),
    /// A figure out of range.
    #[error("{field}: {value} is out of range")]
    Range {
        /// The field, as in the run file.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// What a run's manifest means for this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSettings {
    /// The model.
    pub model: Architecture,
    /// The format that it computes in.
    pub precision: Precision,
    /// Codec, layout and outer optimizer.
    pub replica: ReplicaConfig,
    /// The inner optimizer.
    pub inner: InnerOptimizer,
    /// Sequences of one inner step.
    pub batch_sequences: usize,
    /// Tokens of a sequence.
    pub sequence_tokens: usize,
    /// Inner steps of a round.
    pub steps_per_round: u32,
    /// How work is audited.
    pub audit: Option<Audit>,
}

impl RunSettings {
    /// Reads `manifest`.
    ///
    /// # Errors
    /// [`RunSettingsError`]; the run cannot be trained by this build.
    pub fn of(manifest: &Manifest) -> Result<RunSettings, RunSettingsError> {
        let model = Architecture::from_json(manifest.model.config_json.as_bytes())?;
        let inner = &manifest.inner;
        Ok(RunSettings {
            model,
            precision: match manifest.model.dtype {
                ModelDtype::F32 => Precision::F32,
                ModelDtype::Bf16 => Precision::Bf16,
            },
            replica: ReplicaConfig {
                codec: codec(manifest)?,
                reduced: reduced(manifest)?,
                local: Codec::Dense(match manifest.exchange.local {
                    LocalFormat::Bf16 => DenseFormat::Bf16,
                    LocalFormat::F32 => DenseFormat::F32,
                }),
                outer: outer(manifest),
                feedback_beta: ratio(manifest.codec.feedback_beta_ppm) as f32,
                owner_beta: ratio(manifest.exchange.owner_beta_ppm) as f32,
                sparse_elements_min: sparse_elements_min(manifest)?,
                tiles_per_shard: tiles_per_shard(manifest)?,
            },
            inner: InnerOptimizer {
                learning_rate: ratio(inner.learning_rate_ppm),
                warmup_steps: inner.warmup_steps.into(),
                schedule: Schedule::Constant,
                beta1: ratio(inner.beta1_ppm),
                beta2: ratio(inner.beta2_ppm),
                weight_decay: ratio(inner.weight_decay_ppm),
                ..InnerOptimizer::default()
            },
            batch_sequences: inner.batch_sequences as usize,
            sequence_tokens: manifest.data.sequence_tokens as usize,
            steps_per_round: manifest.schedule.steps_per_round,
            audit: manifest.audit.clone(),
        })
    }
}

fn ratio(ppm: u32) -> f64 {
    f64::from(ppm) / 1e6
}

fn outer(manifest: &Manifest) -> Outer {
    let outer = &manifest.outer;
    let rate = ratio(outer.rate_ppm) as f32;
    match outer.rule {
        OuterRule::Plain => Outer::Plain { rate },
        OuterRule::Nesterov => Outer::Nesterov {
            rate,
            momentum: ratio(outer.momentum_ppm) as f32,
        },
    }
}

/// What updates travel in.
fn codec(manifest: &Manifest) -> Result<Codec, RunSettingsError> {
    let codec = &manifest.codec;
    match dense(codec.kind) {
        Some(format) => Ok(Codec::Dense(format)),
        None => sparse(("codec.k", codec.k), ("codec.value_bits", codec.value_bits)),
    }
}

/// What owners send down: dense as the updates are, or more of each tile.
fn reduced(manifest: &Manifest) -> Result<Codec, RunSettingsError> {
    let exchange = &manifest.exchange;
    match dense(manifest.codec.kind) {
        Some(format) => Ok(Codec::Dense(format)),
        None => sparse(
            ("exchange.reduced_k", exchange.reduced_k),
            ("exchange.reduced_value_bits", exchange.reduced_value_bits),
        ),
    }
}

fn dense(kind: CodecKind) -> Option<DenseFormat> {
    match kind {
        CodecKind::Sparse => None,
        CodecKind::DenseBf16 => Some(DenseFormat::Bf16),
        CodecKind::DenseF32 => Some(DenseFormat::F32),
        CodecKind::DenseInt8 => Some(DenseFormat::Int8),
        CodecKind::DenseInt4 => Some(DenseFormat::Int4),
    }
}

/// The figures come with their names in the run file.
fn sparse(k: (&'static str, u32), bits: (&'static str, u32)) -> Result<Codec, RunSettingsError> {
    let range = |(field, value): (&'static str, u32)| RunSettingsError::Range {
        field,
        value: value.into(),
    };
    let small = u16::try_from(k.1).ok();
    Ok(Codec::Sparse {
        k: small.and_then(|k| TopK::new(k).ok()).ok_or(range(k))?,
        value_bits: match bits.1 {
            1 => ValueBits::One,
            2 => ValueBits::Two,
            4 => ValueBits::Four,
            _ => return Err(range(bits)),
        },
    })
}

fn sparse_elements_min(manifest: &Manifest) -> Result<usize, RunSettingsError> {
    let value = manifest.codec.sparse_elements_min;
    usize::try_from(value).map_err(|_| RunSettingsError::Range {
        field: "codec.sparse_elements_min",
        value,
    })
}

fn tiles_per_shard(manifest: &Manifest) -> Result<NonZeroUsize, RunSettingsError> {
    let value = manifest.codec.tiles_per_shard;
    NonZeroUsize::new(value as usize).ok_or(RunSettingsError::Range {
        field: "codec.tiles_per_shard",
        value: value.into(),
    })
}
