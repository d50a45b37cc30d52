//! How many bytes a frame has, measured: the codec encodes noise, and sums of frames of noise.

use anyhow::Context;
use gradmesh_compression::{
    Codec, DenseFormat, Layout, TILE_ELEMENTS, TensorMode, TensorSpec, TopK, ValueBits, decode,
    encode, frame_bytes_max,
};
use gradmesh_protocol::header::PerStage;
use gradmesh_protocol::manifest::{self, CodecKind, Exchange};

use crate::harness::CodecName;
use crate::harness::choice::Dense;
use crate::noise::{Distribution, Noise};

/// Tiles that are encoded to learn what a tile takes; more give the same to a tenth of a percent.
const SAMPLE_TILES: usize = 64;
/// Members whose frames are summed to learn what a sum takes, at most.
const SUMMED_MAX: usize = 16;
const SEED: u64 = 1;

/// Of one frame of a full shard, at each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameBytes {
    /// As it is.
    pub(super) usual: PerStage,
    /// As long as it may be at most, which is what the planner goes by.
    pub(super) most: PerStage,
}

impl FrameBytes {
    /// Of a frame of `tiles` tiles, in a round of `members` members.
    ///
    /// # Errors
    /// A codec that does not exist.
    pub(super) fn measure(
        codec: CodecName,
        tiles: u64,
        members: usize,
    ) -> anyhow::Result<FrameBytes> {
        let update = codec_of(codec)?;
        let exchange = Exchange::default();
        let reduced = match codec {
            CodecName::Dense(_) => update,
            CodecName::Sparse { k, .. } => {
                // A sum has no more entries than its parts together.
                let k = (usize::from(k) * members).min(exchange.reduced_k as usize);
                sparse(u16::try_from(k)?, exchange.reduced_value_bits)?
            }
        };
        let summed = Some((update, members.min(SUMMED_MAX)));
        let local = frame_bytes(Codec::Dense(DenseFormat::Bf16), tiles, None)?;
        let reduced = frame_bytes(reduced, tiles, summed)?;
        let update = frame_bytes(update, tiles, None)?;
        Ok(FrameBytes {
            usual: PerStage {
                local: local.0,
                update: update.0,
                reduced: reduced.0,
            },
            most: PerStage {
                local: local.1,
                update: update.1,
                reduced: reduced.1,
            },
        })
    }
}

fn sparse(k: u16, value_bits: u32) -> anyhow::Result<Codec> {
    Ok(Codec::Sparse {
        k: TopK::new(k)?,
        value_bits: match value_bits {
            1 => ValueBits::One,
            2 => ValueBits::Two,
            _ => ValueBits::Four,
        },
    })
}

fn codec_of(codec: CodecName) -> anyhow::Result<Codec> {
    match codec {
        CodecName::Sparse { k, value_bits } => sparse(k, value_bits.into()),
        CodecName::Dense(format) => Ok(Codec::Dense(match format {
            Dense::F32 => DenseFormat::F32,
            Dense::Bf16 => DenseFormat::Bf16,
            Dense::Int8 => DenseFormat::Int8,
            Dense::Int4 => DenseFormat::Int4,
        })),
    }
}

/// What a run's manifest says of `codec`, with a tile in each shard.
pub(super) fn manifest_codec(codec: CodecName) -> manifest::Codec {
    let (kind, k, value_bits) = match codec {
        CodecName::Sparse { k, value_bits } => (CodecKind::Sparse, k.into(), value_bits.into()),
        CodecName::Dense(Dense::F32) => (CodecKind::DenseF32, 64, 1),
        CodecName::Dense(Dense::Bf16) => (CodecKind::DenseBf16, 64, 1),
        CodecName::Dense(Dense::Int8) => (CodecKind::DenseInt8, 64, 1),
        CodecName::Dense(Dense::Int4) => (CodecKind::DenseInt4, 64, 1),
    };
    manifest::Codec {
        kind,
        k,
        value_bits,
        feedback_beta_ppm: 950_000,
        sparse_elements_min: TILE_ELEMENTS as u64,
        tiles_per_shard: 1,
    }
}

/// Of a frame of `tiles` full tiles: usual and at most. What a tile adds is measured on a sample.
///
/// `summed`: it is of a sum of so many members' frames in this codec; of one member's own values if absent.
fn frame_bytes(
    codec: Codec,
    tiles: u64,
    summed: Option<(Codec, usize)>,
) -> anyhow::Result<(u64, u64)> {
    let sample = SAMPLE_TILES.min(usize::try_from(tiles)?).max(1);
    let spec = TensorSpec {
        elements: sample * TILE_ELEMENTS,
        mode: TensorMode::Sparse,
    };
    let layout = Layout::new(&[spec])?;
    let mut noise = Noise::new(SEED);
    let mut values = vec![0.0; layout.elements()];
    match summed {
        None => noise.fill(Distribution::Normal, &mut values),
        Some((of, members)) => {
            let mut own = vec![0.0; layout.elements()];
            for _ in 0..members {
                noise.fill(Distribution::Normal, &mut own);
                let frame = encoded(&own, &layout, of)?;
                decode(&frame, layout.tiles(), of)?.dequantise_into(&mut own);
                for (sum, value) in values.iter_mut().zip(&own) {
                    *sum += value;
                }
            }
        }
    }
    let frame = encoded(&values, &layout, codec)?;
    let most = frame_bytes_max(layout.tiles(), codec);
    let scaled = |bytes: usize| (bytes as u128 * u128::from(tiles)).div_ceil(sample as u128);
    let scaled = |bytes: usize| u64::try_from(scaled(bytes));
    Ok((scaled(frame.len())?, scaled(most)?))
}

fn encoded(values: &[f32], layout: &Layout, codec: Codec) -> anyhow::Result<Vec<u8>> {
    let mut frame = Vec::new();
    encode(values, layout.tiles(), codec, &mut frame).context("noise is encoded")?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_bits_that_the_codec_bench_measures() {
        let bytes = FrameBytes::measure("sparse-1bit".parse().unwrap(), 1000, 16).unwrap();
        let elements = 1000.0 * TILE_ELEMENTS as f64;
        let bits = |bytes: u64| bytes as f64 * 8.0 / elements;
        // 8.8 bits for each of 64 in 4096, and 10.1 at most for each of 256; bf16 inside a site.
        assert!((0.136..0.139).contains(&bits(bytes.usual.update)));
        assert!((0.45..0.64).contains(&bits(bytes.usual.reduced)));
        assert!((16.0..16.01).contains(&bits(bytes.usual.local)));
        assert!(bytes.most.update > bytes.usual.update);
    }

    #[test]
    fn a_sum_of_few_members_has_few_entries() {
        let of = |members| FrameBytes::measure("sparse-1bit".parse().unwrap(), 64, members);
        let (two, many) = (of(2).unwrap(), of(64).unwrap());
        assert!(two.usual.reduced < many.usual.reduced);
        assert_eq!(two.usual.update, many.usual.update);
    }
}
