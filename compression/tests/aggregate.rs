//! The aggregate against f64, and what its bits depend on.

mod common;

use common::{DENSE_BF16, DENSE_F32, Rng, sparse, tiles};
use gradmesh_compression::{
    Codec, Contribution, FrameNorm, TILE_ELEMENTS, TensorMode, Tile, VALUE_ABS_MAX, ValueBits,
    decode, encode, sum_by_tile, weights,
};

const ELEMENTS: usize = 4 * TILE_ELEMENTS + 100;

fn shard() -> Vec<Tile> {
    tiles(&[
        (4 * TILE_ELEMENTS, TensorMode::Sparse),
        (100, TensorMode::Dense),
    ])
}

fn frame(values: &[f32], tiles: &[Tile], codec: Codec) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(values, tiles, codec, &mut bytes).unwrap();
    bytes
}

fn frames(count: usize, codec: Codec, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng(seed);
    (0..count)
        .map(|member| {
            let scale = 1.0 + member as f32;
            let values: Vec<f32> = (0..ELEMENTS).map(|_| rng.laplace() * scale).collect();
            frame(&values, &shard(), codec)
        })
        .collect()
}

/// The aggregate of `frames`, in `out`.
fn add_up(frames: &[Vec<u8>], tiles: &[Tile], codec: Codec, tokens: &[u64], out: &mut [f32]) {
    let read = |bytes| Contribution::read(bytes, tiles, codec).unwrap();
    let contributions: Vec<_> = frames.iter().map(|frame| read(frame)).collect();
    let norms: Vec<FrameNorm> = contributions.iter().map(Contribution::norm).collect();
    let weights = weights(tokens, &norms).unwrap();
    let members: Vec<_> = contributions.into_iter().zip(weights).collect();
    sum_by_tile(&members, |tile, sum| out[tile].copy_from_slice(sum));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn aggregate_is_the_weighted_clipped_mean_over_all_members() {
    for codec in [
        sparse(64, ValueBits::One),
        sparse(1024, ValueBits::Two),
        sparse(1024, ValueBits::Four),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let frames = frames(7, codec, 11);
        let tokens = [1000, 3, 0, 70_000, 1 << 60, 5, 1 << 59];
        let mut out = vec![0.0; ELEMENTS];
        add_up(&frames, &shard(), codec, &tokens, &mut out);

        // By the formula, in f64 and element by element.
        let values: Vec<Vec<f32>> = frames
            .iter()
            .map(|frame| {
                let mut values = vec![0.0; ELEMENTS];
                let frame = decode(frame, &shard(), codec).unwrap();
                frame.dequantise_into(&mut values);
                values
            })
            .collect();
        let norms: Vec<f64> = values
            .iter()
            .map(|values| {
                values
                    .iter()
                    .map(|v| f64::from(*v).powi(2))
                    .sum::<f64>()
                    .sqrt()
            })
            .collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let total: f64 = tokens.iter().map(|&tokens| tokens as f64).sum();
        for element in 0..ELEMENTS {
            let (mut exact, mut magnitudes) = (0.0, 0.0);
            for member in 0..7 {
                let clip = (sorted[3] / norms[member]).min(1.0);
                let part =
                    tokens[member] as f64 * clip * f64::from(values[member][element]) / total;
                exact += part;
                magnitudes += part.abs();
            }
            // (N + 3) u M as derived in aggregate.rs; u M more for the f64 sums here (2^-53 each,
            // 16484 in a norm) and for M itself, which the derivation takes after
            // rounding; 2^-149 per member for subnormals.
            let bound = 11.0 * 2.0_f64.powi(-24) * magnitudes + 7.0 * 2.0_f64.powi(-149);
            let error = (f64::from(out[element]) - exact).abs();
            assert!(error <= bound, "{codec:?}, {element}: {error} > {bound}");
        }
    }
}

#[test]
fn lone_sender_moves_an_element_by_its_share_only() {
    let tiles = tiles(&[(64, TensorMode::Sparse)]);
    let codec = sparse(64, ValueBits::One);
    let mut frames = Vec::new();
    for index in 0..4 {
        let mut values = vec![0.0; 64];
        values[index] = 1.0;
        frames.push(frame(&values, &tiles, codec));
    }
    let mut out = vec![0.0; 64];
    add_up(&frames, &tiles, codec, &[1; 4], &mut out);
    assert_eq!(out[..5], [0.25, 0.25, 0.25, 0.25, 0.0]);
}

#[test]
fn same_order_gives_same_bits() {
    // The order of the members is part of the input: f32 sums depend on it.
    for codec in [
        sparse(1024, ValueBits::Two),
        sparse(1024, ValueBits::Four),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let mut frames = frames(9, codec, 3);
        let sum = |frames: &[Vec<u8>]| {
            let mut out = vec![0.0; ELEMENTS];
            add_up(frames, &shard(), codec, &[1; 9], &mut out);
            bits(&out)
        };
        let once = sum(&frames);
        assert_eq!(once, sum(&frames));
        frames.reverse();
        assert_ne!(once, sum(&frames));
    }
}

#[test]
fn largest_values_do_not_overflow() {
    let tiles = tiles(&[(8, TensorMode::Dense)]);
    let frames = vec![frame(&[-VALUE_ABS_MAX; 8], &tiles, DENSE_F32); 1000];
    let mut out = vec![0.0; 8];
    add_up(
        &frames,
        &tiles,
        DENSE_F32,
        &[u64::MAX / 1000; 1000],
        &mut out,
    );
    // 1003 u relative, as derived in aggregate.rs.
    let bound = 1003.0 * 2.0_f32.powi(-24) * VALUE_ABS_MAX;
    assert!(
        out.iter()
            .all(|value| (value + VALUE_ABS_MAX).abs() <= bound),
        "{out:?}"
    );
}
