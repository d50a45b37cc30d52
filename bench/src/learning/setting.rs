//! The exchange settings that are compared.

use std::fmt;
use std::num::NonZeroUsize;

use anyhow::Context;
use clap::ValueEnum;
use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::replica::{Outer, ReplicaConfig};

/// Sites of `hier`.
pub(super) const SITES: usize = 2;

/// Tensors with fewer elements travel dense: the default of run files.
const SPARSE_ELEMENTS_MIN: usize = 4096;
/// Four shards of the demo's 240 tiles.
const TILES_PER_SHARD: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// What all settings share.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Parameters {
    /// Outer rate of the sparse settings
    #[arg(long, default_value_t = 2.0)]
    pub(super) alpha: f32,

    /// Elements kept of each tile of 4096 on the way up
    #[arg(long, default_value_t = 64)]
    pub(super) k: u16,

    /// Decay of the error feedback
    #[arg(long, default_value_t = 0.95)]
    pub(super) feedback_beta: f32,

    /// Elements kept of each tile on the way down from an owner
    #[arg(long, default_value_t = 512)]
    pub(super) reduced_k: u16,

    /// Bits of a value on the way down: 1, 2 or 4
    #[arg(long, default_value_t = 4, value_parser = value_bits)]
    pub(super) reduced_value_bits: u8,

    /// Decay of an owner's residual
    #[arg(long, default_value_t = 0.9)]
    pub(super) owner_beta: f32,

    /// With fragments: how many, a divisor of the steps. A round has as many times fewer steps, and there are as many times
    /// more rounds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) fragments: u32,

    /// With overlap: steps of a round that are done when the round before it is applied; the exchange takes so long
    #[arg(long, default_value_t = 2)]
    pub(super) land_after: u32,
}

fn value_bits(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        "4" => Ok(4),
        _ => Err("not 1, 2 or 4".to_owned()),
    }
}

/// The name by which the command line knows `value`.
fn fmt_name(value: impl ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let value = value.to_possible_value();
    f.write_str(value.as_ref().map_or("", |value| value.get_name()))
}

/// One way to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Setting {
    /// f32, Nesterov's outer step with rate 0.7 and momentum 0.9 (DiLoCo)
    DenseNesterov,
    /// f32, plain average
    DenseAverage,
    /// Top-k with 1 bit per value, gather
    Sparse,
    /// Top-k with 2 bits per value, gather
    Sparse2Bit,
    /// Sparse up, reduced and selected again by owners
    Reduce,
    /// Two sites: bf16 inside, sparse between them
    Hier,
    /// Sparse, one round of overlap
    SparseOverlap,
    /// Dense with Nesterov's step, one round of overlap
    DenseOverlap,
    /// Sparse, a fragment of the model in each round
    SparseFragments,
    /// Dense with Nesterov's step, a fragment of the model in each round
    DenseFragments,
}

/// Who sums what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Gather,
    Reduce,
    Hier,
}

impl Plan {
    /// At which the members encode.
    pub(super) fn stage(self) -> Stage {
        match self {
            Self::Gather | Self::Reduce => Stage::Update,
            Self::Hier => Stage::Local,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_name(*self, f)
    }
}

impl Setting {
    pub(super) const ALL: [Self; 10] = [
        Self::DenseNesterov,
        Self::Sparse,
        Self::Reduce,
        Self::SparseOverlap,
        Self::DenseOverlap,
        Self::Hier,
        Self::Sparse2Bit,
        Self::DenseAverage,
        Self::SparseFragments,
        Self::DenseFragments,
    ];

    /// What it is compared with: the same without what it adds.
    pub(super) fn reference(self) -> Option<Self> {
        match self {
            Self::DenseNesterov => None,
            Self::DenseAverage | Self::Sparse | Self::DenseOverlap | Self::DenseFragments => {
                Some(Self::DenseNesterov)
            }
            Self::Sparse2Bit
            | Self::Reduce
            | Self::Hier
            | Self::SparseOverlap
            | Self::SparseFragments => Some(Self::Sparse),
        }
    }

    pub(super) fn plan(self) -> Plan {
        match self {
            Self::Reduce => Plan::Reduce,
            Self::Hier => Plan::Hier,
            Self::DenseNesterov
            | Self::DenseAverage
            | Self::Sparse
            | Self::Sparse2Bit
            | Self::SparseOverlap
            | Self::DenseOverlap
            | Self::SparseFragments
            | Self::DenseFragments => Plan::Gather,
        }
    }

    pub(super) fn overlaps(self) -> bool {
        matches!(self, Self::SparseOverlap | Self::DenseOverlap)
    }

    /// Fragments of a run of this setting.
    pub(super) fn fragments(self, parameters: &Parameters) -> u32 {
        match self {
            Self::SparseFragments | Self::DenseFragments => parameters.fragments,
            _ => 1,
        }
    }

    /// # Errors
    /// A k out of range.
    pub(super) fn replica(self, parameters: &Parameters) -> anyhow::Result<ReplicaConfig> {
        let sparse = |k: u16, value_bits| {
            let k = TopK::new(k).context("k")?;
            anyhow::Ok(Codec::Sparse { k, value_bits })
        };
        let (codec, outer) = match self {
            Self::DenseNesterov | Self::DenseOverlap | Self::DenseFragments => (
                Codec::Dense(DenseFormat::F32),
                Outer::Nesterov {
                    rate: 0.7,
                    momentum: 0.9,
                },
            ),
            Self::DenseAverage => (Codec::Dense(DenseFormat::F32), Outer::Plain { rate: 1.0 }),
            Self::Sparse
            | Self::Reduce
            | Self::Hier
            | Self::SparseOverlap
            | Self::SparseFragments
            | Self::Sparse2Bit => {
                let value_bits = match self {
                    Self::Sparse2Bit => ValueBits::Two,
                    _ => ValueBits::One,
                };
                (
                    sparse(parameters.k, value_bits)?,
                    Outer::Plain {
                        rate: parameters.alpha,
                    },
                )
            }
        };
        let reduced_bits = match parameters.reduced_value_bits {
            1 => ValueBits::One,
            2 => ValueBits::Two,
            _ => ValueBits::Four,
        };
        Ok(ReplicaConfig {
            codec,
            reduced: sparse(parameters.reduced_k, reduced_bits)?,
            local: Codec::Dense(DenseFormat::Bf16),
            outer,
            feedback_beta: parameters.feedback_beta,
            owner_beta: parameters.owner_beta,
            sparse_elements_min: SPARSE_ELEMENTS_MIN,
            tiles_per_shard: TILES_PER_SHARD,
        })
    }
}
