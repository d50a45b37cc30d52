//! Codecs and plans, by the names that the command line and the JSON use.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};

/// How updates travel, as `codec` of a run file; written `dense-f32`, `sparse-1bit` or, with k, `sparse-1bit:128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodecName {
    Dense(Dense),
    Sparse { k: u16, value_bits: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dense {
    F32,
    Bf16,
    Int8,
    Int4,
}

/// Of a sparse codec for which none is given: the default of run files.
const K: u16 = 64;

impl Dense {
    const ALL: [Dense; 4] = [Dense::F32, Dense::Bf16, Dense::Int8, Dense::Int4];

    /// As `codec.mode` of a run file.
    const fn mode(self) -> &'static str {
        match self {
            Dense::F32 => "f32",
            Dense::Bf16 => "bf16",
            Dense::Int8 => "int8",
            Dense::Int4 => "int4",
        }
    }
}

impl CodecName {
    /// What the other systems do.
    pub(crate) const DENSE_F32: CodecName = CodecName::Dense(Dense::F32);
    /// A byte for each element, and some for scales.
    pub(crate) const DENSE_INT8: CodecName = CodecName::Dense(Dense::Int8);

    /// The section `[codec]` of a run file that asks for it, apart from the size of shards.
    pub(crate) fn to_toml(self) -> String {
        match self {
            CodecName::Dense(format) => format!("mode = \"{}\"\n", format.mode()),
            CodecName::Sparse { k, value_bits } => {
                format!("mode = \"sparse\"\nk = {k}\nvalue_bits = {value_bits}\n")
            }
        }
    }

    /// The codec that it names.
    pub(crate) fn codec(self) -> anyhow::Result<Codec> {
        let format = match self {
            CodecName::Dense(Dense::F32) => DenseFormat::F32,
            CodecName::Dense(Dense::Bf16) => DenseFormat::Bf16,
            CodecName::Dense(Dense::Int8) => DenseFormat::Int8,
            CodecName::Dense(Dense::Int4) => DenseFormat::Int4,
            CodecName::Sparse { k, value_bits } => {
                let value_bits = match value_bits {
                    1 => ValueBits::One,
                    2 => ValueBits::Two,
                    4 => ValueBits::Four,
                    _ => bail!("{value_bits} bits of a value: 1, 2 or 4 are known"),
                };
                let k = TopK::new(k).context("k")?;
                return Ok(Codec::Sparse { k, value_bits });
            }
        };
        Ok(Codec::Dense(format))
    }

    /// Bytes of an update of `parameters` elements at least: its values and, of a sparse one, log2 of the number of ways
    /// to choose k of 4096 for each tile.
    pub(crate) fn update_bytes_min(self, parameters: u64) -> f64 {
        let bits = match self {
            CodecName::Dense(Dense::F32) => 32.0,
            CodecName::Dense(Dense::Bf16) => 16.0,
            CodecName::Dense(Dense::Int8) => 8.0,
            CodecName::Dense(Dense::Int4) => 4.0,
            CodecName::Sparse { k, value_bits } => {
                let index = crate::bound::log2_choose(4096, usize::from(k));
                (index + f64::from(k) * f64::from(value_bits)) / 4096.0
            }
        };
        parameters as f64 * bits / 8.0
    }
}

impl fmt::Display for CodecName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecName::Dense(format) => write!(f, "dense-{}", format.mode()),
            CodecName::Sparse { k: K, value_bits } => write!(f, "sparse-{value_bits}bit"),
            CodecName::Sparse { k, value_bits } => write!(f, "sparse-{value_bits}bit:{k}"),
        }
    }
}

impl FromStr for CodecName {
    type Err = String;

    fn from_str(text: &str) -> Result<CodecName, String> {
        let dense = Dense::ALL.into_iter().map(CodecName::Dense);
        if let Some(codec) = dense.into_iter().find(|codec| codec.to_string() == text) {
            return Ok(codec);
        }
        let unknown = || {
            let dense = Dense::ALL.map(|format| format!("dense-{}", format.mode()));
            format!(
                "{text:?} is none of {}, sparse-1bit, sparse-2bit, sparse-4bit, each also with :K",
                dense.join(", ")
            )
        };
        let (name, k) = text.split_once(':').unwrap_or((text, ""));
        let value_bits = match name {
            "sparse-1bit" => 1,
            "sparse-2bit" => 2,
            "sparse-4bit" => 4,
            _ => return Err(unknown()),
        };
        let k = if name.len() == text.len() {
            K
        } else {
            k.parse().map_err(|_| unknown())?
        };
        if !(1..=1024).contains(&k) {
            return Err(format!("{text:?}: k is from 1 to 1024"));
        }
        Ok(CodecName::Sparse { k, value_bits })
    }
}

/// Who sends what to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Plan {
    /// What the planner chooses
    Auto,
    /// Everyone gets everyone's frames
    Gather,
    /// Two owners for each shard
    Reduce,
    /// Reduce inside sites, then between them
    Hier,
}

impl Plan {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Plan::Auto => "auto",
            Plan::Gather => "gather",
            Plan::Reduce => "reduce",
            Plan::Hier => "hier",
        }
    }

    /// What asks for it in the section `[exchange]` of a run file.
    pub(crate) fn to_toml(self) -> String {
        format!("plan = \"{}\"\n", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_are_written_as_they_are_read() {
        for text in [
            "dense-f32",
            "dense-bf16",
            "dense-int8",
            "dense-int4",
            "sparse-1bit",
            "sparse-2bit:128",
            "sparse-4bit",
        ] {
            assert_eq!(text.parse::<CodecName>().unwrap().to_string(), text);
        }
        for text in [
            "f32",
            "dense-",
            "sparse",
            "sparse-3bit",
            "sparse-1bit:",
            "sparse-1bit:0",
            "sparse-1bit:2000",
        ] {
            assert!(text.parse::<CodecName>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_update_takes_at_least_its_values_and_the_choice_of_their_places() {
        let dense: CodecName = "dense-f32".parse().unwrap();
        assert_eq!(dense.update_bytes_min(25_000_000), 1e8);
        let sparse: CodecName = "sparse-1bit".parse().unwrap();
        // 7.364 bits of index and one of value for each of 64 in 4096.
        let bits = sparse.update_bytes_min(4096) * 8.0 / 64.0;
        assert!((8.36..8.37).contains(&bits), "{bits}");
    }
}
