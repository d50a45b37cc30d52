//! The frame of values that lie on a device: selection runs there, and only what was chosen crosses the bus.
//!
//! The bytes are those of [`gradmesh_compression::encode`] for the same values. Selection compares the bits of the
//! magnitudes as integers, whose order is that of finite magnitudes, so that no mode of the device for small numbers
//! matters. `topk` tells the k-th largest magnitude of each tile and nothing else, because which of several equal
//! elements it returns depends on the device; everything above that magnitude is chosen, and of what equals it the lowest
//! indices, counted by `cumsum`. Levels are computed on the host, from the chosen values, by the same code as ever.
//!
//! What crosses the bus: of a sparse tile 4 bytes of index and 4 of value for each entry, of a dense tile all elements.
//! Memory on the device: some 24 bytes for each element of the longest tensor in the shard.

use gradmesh_compression::{
    Codec, EncodeError, EncodeStats, Frame, Selection, TensorMode, Tile, VALUE_ABS_MAX,
};
use tch::{Kind, TchError, Tensor, no_grad_guard};

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// As [`gradmesh_compression::encode`] says.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("values of kind {0:?} in {1} dimensions, not flat f32")]
    NotFlat(Kind, usize),
    #[error("selection on the device: {0}")]
    Backend(#[from] TchError),
}

/// Appends to `out` the frame of `values`, flat f32 on any device: the elements of `tiles` one after the other.
///
/// # Errors
/// [`SelectError`], with `out` unchanged.
pub fn encode(
    values: &Tensor,
    tiles: &[Tile],
    codec: Codec,
    out: &mut Vec<u8>,
) -> Result<EncodeStats, SelectError> {
    if values.kind() != Kind::Float || values.dim() != 1 {
        return Err(SelectError::NotFlat(values.kind(), values.dim()));
    }
    let expected = tiles.iter().map(Tile::len).sum();
    if values.numel() != expected {
        return Err(EncodeError::LengthMismatch {
            values: values.numel(),
            expected,
        }
        .into());
    }
    let _guard = no_grad_guard();
    let values = values.f_contiguous()?;
    let mut chosen = Vec::new();
    let mut start = 0;
    for tiles in tiles.chunk_by(|a, b| a.len() == b.len() && a.mode() == b.mode()) {
        chosen.push(choose(&values, start, tiles, codec)?);
        start += tiles.len() * tiles[0].len();
    }
    let selections: Vec<_> = chosen.iter().flat_map(Chosen::selections).collect();
    let frame = Frame::from_selections(selections.into_iter(), tiles, codec)?;
    Ok(frame.write(out))
}

/// What came back from the device for tiles of one length and mode.
enum Chosen {
    /// Index inside its tile and value of each entry; entries of each tile.
    Sparse {
        indices: Vec<u16>,
        values: Vec<f32>,
        counts: Vec<usize>,
    },
    Dense {
        values: Vec<f32>,
        tile_len: usize,
    },
}

impl Chosen {
    fn selections(&self) -> Vec<Selection<'_>> {
        match self {
            Self::Sparse {
                indices,
                values,
                counts,
            } => {
                let mut end = 0;
                let of_tile = |&count: &usize| {
                    let own = end..end + count;
                    end = own.end;
                    Selection::Sparse {
                        indices: &indices[own.clone()],
                        values: &values[own],
                    }
                };
                counts.iter().map(of_tile).collect()
            }
            Self::Dense { values, tile_len } => {
                values.chunks(*tile_len).map(Selection::Dense).collect()
            }
        }
    }
}

/// `tiles`: neighbours of one length and mode, at least one, the first of which begins at element `start` of `values`.
fn choose(
    values: &Tensor,
    start: usize,
    tiles: &[Tile],
    codec: Codec,
) -> Result<Chosen, SelectError> {
    let tile_len = tiles[0].len();
    let elements = tiles.len() * tile_len;
    let values = values.f_narrow(0, start as i64, elements as i64)?;
    let (Codec::Sparse { k, .. }, TensorMode::Sparse) = (codec, tiles[0].mode()) else {
        let values = host_f32(&values)?;
        return Ok(Chosen::Dense { values, tile_len });
    };
    let magnitudes = values
        .f_view_dtype(Kind::Int)?
        .f_bitwise_and(i64::from(i32::MAX))?;
    check_range(&values, &magnitudes, start)?;

    let magnitudes = magnitudes.f_view([tiles.len() as i64, tile_len as i64])?;
    let entries_max = i64::from(k.for_tile(&tiles[0]));
    let (largest, _) = magnitudes.f_topk(entries_max, 1, true, true)?;
    let least = largest.f_narrow(1, entries_max - 1, 1)?;
    let above = magnitudes.f_gt_tensor(&least)?;
    let free = above
        .f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Int)?
        .f_neg()?
        .f_add_scalar(entries_max)?;
    // Zeros are never chosen.
    let equal = magnitudes
        .f_eq_tensor(&least)?
        .f_logical_and(&magnitudes.f_gt(0)?)?;
    let first_equal = equal.f_cumsum(1, Kind::Int)?.f_le_tensor(&free)?;
    let chosen = above
        .f_logical_or(&equal.f_logical_and(&first_equal)?)?
        .f_view([elements as i64])?;
    // In ascending order.
    let places = chosen.f_nonzero()?.f_view([-1])?;
    let values = host_f32(&values.f_index_select(0, &places)?)?;
    let places = places.f_to_kind(Kind::Int)?.f_to(tch::Device::Cpu)?;
    let places = Vec::<i32>::try_from(&places)?;

    let mut counts = vec![0; tiles.len()];
    let mut indices = Vec::with_capacity(places.len());
    for place in places {
        // Below `elements`, as places in a tensor are.
        let place = place as usize;
        counts[place / tile_len] += 1;
        indices.push((place % tile_len) as u16);
    }
    Ok(Chosen::Sparse {
        indices,
        values,
        counts,
    })
}

fn host_f32(values: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::<f32>::try_from(&values.f_to(tch::Device::Cpu)?)
}

/// `start`: the number of the first value, for the error.
fn check_range(values: &Tensor, magnitudes: &Tensor, start: usize) -> Result<(), SelectError> {
    let bits_max = i64::from(VALUE_ABS_MAX.to_bits());
    if magnitudes.f_max()?.f_int64_value(&[])? <= bits_max {
        return Ok(());
    }
    let bad = magnitudes.f_gt(bits_max)?.f_nonzero()?;
    let offset = bad.f_int64_value(&[0, 0])?;
    Err(EncodeError::ValueOutOfRange {
        element: start + offset as usize,
        value: values.f_double_value(&[offset])? as f32,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use gradmesh_compression::{DenseFormat, Layout, TensorSpec, TopK, ValueBits};
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    fn sparse(k: u16, value_bits: ValueBits) -> Codec {
        Codec::Sparse {
            k: TopK::new(k).unwrap(),
            value_bits,
        }
    }

    fn layout() -> Layout {
        let spec = |elements, mode| TensorSpec { elements, mode };
        Layout::new(&[
            spec(3 * 4096, TensorMode::Sparse),
            spec(2 * 4096 + 77, TensorMode::Sparse),
            spec(40, TensorMode::Dense),
            spec(1, TensorMode::Sparse),
            spec(4096, TensorMode::Sparse),
            spec(5000, TensorMode::Dense),
        ])
        .unwrap()
    }

    /// Values of one kind each: spread, few and equal, mostly zero, tiny, all equal, zeros of both signs.
    fn values(kind: usize, elements: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(kind as u64);
        let mut value = || {
            let bits = rng.next_u32();
            let unit = f64::from(bits) / 2.0_f64.powi(31) - 1.0;
            match kind {
                0 => unit.powi(5) as f32 * 1e-3,
                1 => (bits % 5) as f32 - 2.0,
                2 if !bits.is_multiple_of(100) => 0.0,
                2 => unit as f32,
                3 => f32::from_bits(bits & 0x8000_ffff),
                4 => 0.25 * if bits % 2 == 0 { 1.0 } else { -1.0 },
                _ => f32::from_bits(bits & 0x8000_0000),
            }
        };
        (0..elements).map(|_| value()).collect()
    }

    #[test]
    fn the_bytes_are_those_of_the_host() {
        let layout = layout();
        for kind in 0..6 {
            let values = values(kind, layout.elements());
            let on_device = Tensor::from_slice(&values);
            for codec in [
                sparse(1, ValueBits::One),
                sparse(64, ValueBits::One),
                sparse(64, ValueBits::Two),
                sparse(700, ValueBits::Two),
                sparse(256, ValueBits::Four),
                sparse(4096, ValueBits::One),
                Codec::Dense(DenseFormat::F32),
                Codec::Dense(DenseFormat::Int8),
            ] {
                let (mut expected, mut found) = (Vec::new(), vec![7]);
                let stats =
                    gradmesh_compression::encode(&values, layout.tiles(), codec, &mut expected)
                        .unwrap();
                let of_device = encode(&on_device, layout.tiles(), codec, &mut found).unwrap();
                assert!(found[1..] == expected, "values {kind}, {codec:?}");
                assert_eq!(of_device.frame_bytes, stats.frame_bytes);
            }
        }
    }

    #[test]
    fn values_out_of_range_are_refused_like_on_the_host() {
        let layout = layout();
        for (element, bad) in [
            (5, f32::NAN),
            (3 * 4096 + 9000, f32::INFINITY),
            (5 * 4096 + 77 + 3, -40_000.0),
        ] {
            let mut values = values(0, layout.elements());
            values[element] = bad;
            let mut out = Vec::new();
            let on_device = Tensor::from_slice(&values);
            let codec = sparse(64, ValueBits::Two);
            let error = encode(&on_device, layout.tiles(), codec, &mut out).unwrap_err();
            assert!(
                matches!(
                    error,
                    SelectError::Encode(EncodeError::ValueOutOfRange { element: e, .. }) if e == element
                ),
                "{error}"
            );
            assert!(out.is_empty());
        }
    }

    #[test]
    fn tensors_that_are_no_flat_f32_of_the_tiles_are_refused() {
        let layout = layout();
        let mut out = Vec::new();
        let codec = sparse(64, ValueBits::One);
        let mut refused = |tensor: &Tensor| encode(tensor, layout.tiles(), codec, &mut out);
        let n = layout.elements() as i64;
        let cpu = |kind| (kind, tch::Device::Cpu);
        assert!(matches!(
            refused(&Tensor::zeros([n], cpu(Kind::Double))),
            Err(SelectError::NotFlat(Kind::Double, 1))
        ));
        assert!(matches!(
            refused(&Tensor::zeros([1, n], cpu(Kind::Float))),
            Err(SelectError::NotFlat(Kind::Float, 2))
        ));
        assert!(matches!(
            refused(&Tensor::zeros([n - 1], cpu(Kind::Float))),
            Err(SelectError::Encode(EncodeError::LengthMismatch { .. }))
        ));
    }
}
