//! The aggregate against f64, and what its bits depend on.

mod common;

use common::{DENSE_BF16, DENSE_F32, Rng, sparse, tiles};
use gradmesh_compression::{
    AggregateError, Codec, Frame, Layout, Member, TILE_ELEMENTS, TensorMode, TensorSpec, Tile,
    UpdateNorm, VALUE_ABS_MAX, ValueBits, Weight, aggregate, weights,
};

const ELEMENTS: usize = 4 * TILE_ELEMENTS + 100;

fn shard() -> Vec<Tile> {
    tiles(&[
        (4 * TILE_ELEMENTS, TensorMode::Sparse),
        (100, TensorMode::Dense),
    ])
}

fn frames(count: usize, codec: Codec, seed: u64) -> Vec<Frame> {
    let mut rng = Rng(seed);
    let mut update = |scale: f32| {
        (0..ELEMENTS)
            .map(|_| rng.laplace() * scale)
            .collect::<Vec<_>>()
    };
    (0..count)
        .map(|member| Frame::quantise(&update(1.0 + member as f32), &shard(), codec).unwrap())
        .collect()
}

fn norm(frame: &Frame) -> UpdateNorm {
    let mut norm = UpdateNorm::default();
    norm.add(frame);
    norm
}

fn members<'a>(frames: &'a [Frame], weights: &[Weight]) -> Vec<Member<'a>> {
    let member = |(frame, &weight)| Member { frame, weight };
    frames.iter().zip(weights).map(member).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn aggregate_is_the_weighted_clipped_mean_over_all_members() {
    for codec in [
        sparse(64, ValueBits::One),
        sparse(1024, ValueBits::Two),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let frames = frames(7, codec, 11);
        let tokens = [1000, 3, 0, 70_000, 1 << 60, 5, 1 << 59];
        let norms: Vec<_> = frames.iter().map(norm).collect();
        let weights = weights(&tokens, &norms).unwrap();
        let mut out = vec![f32::NAN; ELEMENTS];
        aggregate(&members(&frames, &weights), &mut out).unwrap();

        // By the formula, in f64 and element by element.
        let values: Vec<Vec<f32>> = frames
            .iter()
            .map(|frame| {
                let mut values = vec![0.0; ELEMENTS];
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
    let mut frames = Vec::new();
    for index in 0..4 {
        let mut values = vec![0.0; 64];
        values[index] = 1.0;
        frames.push(Frame::quantise(&values, &tiles, sparse(64, ValueBits::One)).unwrap());
    }
    let norms: Vec<_> = frames.iter().map(norm).collect();
    let weights = weights(&[1; 4], &norms).unwrap();
    let mut out = vec![0.0; 64];
    aggregate(&members(&frames, &weights), &mut out).unwrap();
    assert_eq!(out[..5], [0.25, 0.25, 0.25, 0.25, 0.0]);
}

#[test]
fn same_order_gives_same_bits_and_shards_are_independent() {
    // The order of the members is part of the input: f32 sums depend on it. The cut in shards is
    // not.
    let codec = sparse(1024, ValueBits::Two);
    let mut rng = Rng(3);
    let tiles = shard();
    let updates: Vec<Vec<f32>> = (0..9)
        .map(|_| (0..ELEMENTS).map(|_| rng.normal()).collect())
        .collect();
    let whole: Vec<Frame> = updates
        .iter()
        .map(|values| Frame::quantise(values, &tiles, codec).unwrap())
        .collect();
    let norms: Vec<_> = whole.iter().map(norm).collect();
    let weights = weights(&[3, 1, 4, 1, 5, 9, 2, 6, 5], &norms).unwrap();
    let mut once = vec![0.0; ELEMENTS];
    aggregate(&members(&whole, &weights), &mut once).unwrap();
    let mut again = vec![1.0; ELEMENTS];
    aggregate(&members(&whole, &weights), &mut again).unwrap();
    assert_eq!(bits(&once), bits(&again));

    let layout = Layout::new(&[
        TensorSpec {
            elements: 4 * TILE_ELEMENTS,
            mode: TensorMode::Sparse,
        },
        TensorSpec {
            elements: 100,
            mode: TensorMode::Dense,
        },
    ])
    .unwrap();
    let mut by_shard = vec![0.0; ELEMENTS];
    let mut shard_norms = vec![UpdateNorm::default(); 9];
    for shard in layout.shards(2.try_into().unwrap()) {
        let range = layout.shard_elements(shard.clone()).unwrap();
        let frames: Vec<Frame> = updates
            .iter()
            .map(|values| {
                Frame::quantise(
                    &values[range.clone()],
                    &layout.tiles()[shard.clone()],
                    codec,
                )
                .unwrap()
            })
            .collect();
        for (norm, frame) in shard_norms.iter_mut().zip(&frames) {
            norm.add(frame);
        }
        aggregate(&members(&frames, &weights), &mut by_shard[range]).unwrap();
    }
    assert_eq!(bits(&once), bits(&by_shard));
    assert_eq!(norms, shard_norms);
}

#[test]
fn largest_values_do_not_overflow() {
    let tiles = tiles(&[(8, TensorMode::Dense)]);
    let frame = Frame::quantise(&[-VALUE_ABS_MAX; 8], &tiles, DENSE_F32).unwrap();
    let frames = vec![frame; 1000];
    let norms: Vec<_> = frames.iter().map(norm).collect();
    let weights = weights(&[u64::MAX / 1000; 1000], &norms).unwrap();
    let mut out = vec![0.0; 8];
    aggregate(&members(&frames, &weights), &mut out).unwrap();
    // 1003 u relative, as derived in aggregate.rs.
    let bound = 1003.0 * 2.0_f32.powi(-24) * VALUE_ABS_MAX;
    assert!(
        out.iter()
            .all(|value| (value + VALUE_ABS_MAX).abs() <= bound),
        "{out:?}"
    );
}

#[test]
fn frame_of_another_shard_is_refused_before_anything_is_written() {
    let frames = frames(2, DENSE_F32, 1);
    let weights = weights(&[1, 1], &[norm(&frames[0]), norm(&frames[1])]).unwrap();
    let mut out = vec![5.0; ELEMENTS - 1];
    assert_eq!(
        aggregate(&members(&frames, &weights), &mut out),
        Err(AggregateError::ElementsMismatch {
            member: 0,
            found: ELEMENTS,
            expected: ELEMENTS - 1
        })
    );
    assert!(out.iter().all(|value| *value == 5.0));
}
