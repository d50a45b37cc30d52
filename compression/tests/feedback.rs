//! Error feedback loses nothing, and says so in exact terms.

mod common;

use common::{DENSE_BF16, DENSE_F32, Rng, small_shard, sparse, tiles};
use gradmesh_compression::{
    ErrorFeedback, FeedbackError, TILE_ELEMENTS, TensorMode, VALUE_ABS_MAX, ValueBits, decode,
};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn residual_and_frame_are_the_update_exactly_as_computed() {
    let (tiles, values) = small_shard();
    for codec in [
        sparse(64, ValueBits::One),
        sparse(700, ValueBits::Two),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let mut feedback = ErrorFeedback::new(values.len(), 0.95).unwrap();
        let mut expected = vec![0.0_f32; values.len()];
        for round in 0..5 {
            let delta: Vec<f32> = values
                .iter()
                .map(|value| value * (0.3 + round as f32))
                .collect();
            feedback.accumulate(&delta).unwrap();
            for (expected, delta) in expected.iter_mut().zip(&delta) {
                *expected = 0.95 * *expected + delta;
            }
            assert_eq!(bits(feedback.residual()), bits(&expected));

            let mut bytes = Vec::new();
            let stats = feedback.take(0, &tiles, codec, &mut bytes).unwrap();
            assert_eq!(stats.frame_bytes, bytes.len());
            let frame = decode(&bytes, &tiles, codec).unwrap();
            let mut sent = vec![0.0; values.len()];
            frame.dequantise_into(&mut sent);
            for (expected, sent) in expected.iter_mut().zip(&sent) {
                *expected -= sent;
            }
            assert_eq!(bits(feedback.residual()), bits(&expected));
        }
    }
}

#[test]
fn mass_given_back_returns_within_the_rounding_of_two_operations() {
    let tiles = tiles(&[
        (3 * TILE_ELEMENTS, TensorMode::Sparse),
        (100, TensorMode::Dense),
    ]);
    let elements = 3 * TILE_ELEMENTS + 100;
    let mut rng = Rng(5);
    let delta: Vec<f32> = (0..elements).map(|_| rng.laplace()).collect();
    for codec in [sparse(64, ValueBits::One), sparse(256, ValueBits::Two)] {
        let mut feedback = ErrorFeedback::new(elements, 0.95).unwrap();
        feedback.accumulate(&delta).unwrap();
        let mut bytes = Vec::new();
        feedback.take(0, &tiles, codec, &mut bytes).unwrap();
        let residual = feedback.residual().to_vec();
        feedback
            .give_back(0, &decode(&bytes, &tiles, codec).unwrap())
            .unwrap();
        for (element, (&back, &delta)) in feedback.residual().iter().zip(&delta).enumerate() {
            // Each of the two operations rounds its result with a relative error of at most 2^-24.
            let bound =
                (f64::from(residual[element].abs()) + f64::from(back.abs())) * 2.0_f64.powi(-24);
            assert!((f64::from(back) - f64::from(delta)).abs() <= bound);
        }
    }
}

#[test]
fn element_that_is_never_the_largest_is_sent_in_the_end() {
    let tiles = tiles(&[(64, TensorMode::Sparse)]);
    let codec = sparse(64, ValueBits::One);
    let mut feedback = ErrorFeedback::new(64, 1.0).unwrap();
    let mut delta = vec![0.0; 64];
    delta[7] = 1.0;
    delta[40] = -0.4;
    let mut sent = vec![0.0; 64];
    for _ in 0..4 {
        feedback.accumulate(&delta).unwrap();
        let mut bytes = Vec::new();
        feedback.take(0, &tiles, codec, &mut bytes).unwrap();
        let mut values = vec![0.0; 64];
        decode(&bytes, &tiles, codec)
            .unwrap()
            .dequantise_into(&mut values);
        sent.iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum += value);
    }
    // Rounds 1 and 2 send element 7; round 3 meets -1.2 against 1 and sends element 40.
    assert!((sent[40] + 1.2).abs() < 1e-3, "{}", sent[40]);
}

#[test]
fn shard_is_taken_where_it_starts() {
    let (tiles, values) = small_shard();
    let mut padded = vec![9.0; 10];
    padded.extend(&values);
    let mut feedback = ErrorFeedback::new(padded.len(), 0.95).unwrap();
    feedback.accumulate(&padded).unwrap();
    let mut bytes = Vec::new();
    feedback.take(10, &tiles, DENSE_F32, &mut bytes).unwrap();
    assert_eq!(feedback.residual()[..10], [9.0; 10]);
    assert_eq!(feedback.residual()[10..], [0.0; 127]);

    let error = FeedbackError::OutsideResidual {
        start: 11,
        elements: 127,
        residual: 137,
    };
    assert_eq!(
        feedback.take(11, &tiles, DENSE_F32, &mut bytes),
        Err(error.clone())
    );
    let frame = decode(&bytes, &tiles, DENSE_F32).unwrap();
    assert_eq!(feedback.give_back(11, &frame), Err(error));
    assert!(feedback.give_back(usize::MAX, &frame).is_err());
}

#[test]
fn diverged_update_leaves_the_residual_as_it_was() {
    let mut feedback = ErrorFeedback::new(3, 0.5).unwrap();
    feedback.accumulate(&[1.0, 2.0, VALUE_ABS_MAX]).unwrap();
    let before = feedback.clone();
    for bad in [f32::NAN, f32::INFINITY, f32::MIN, VALUE_ABS_MAX] {
        let error = feedback.accumulate(&[0.0, 0.0, bad]).unwrap_err();
        assert!(
            matches!(error, FeedbackError::Diverged { element: 2, .. }),
            "{error}"
        );
        assert_eq!(feedback, before);
    }
    assert_eq!(
        feedback.accumulate(&[0.0; 2]),
        Err(FeedbackError::LengthMismatch {
            found: 2,
            expected: 3
        })
    );
}

#[test]
fn bad_checkpoint_is_refused() {
    assert!(matches!(
        ErrorFeedback::restore(vec![0.0, f32::NAN], 0.9),
        Err(FeedbackError::Residual { element: 1, .. })
    ));
    for beta in [f32::NAN, -0.1, 1.1] {
        assert!(matches!(
            ErrorFeedback::new(1, beta),
            Err(FeedbackError::Beta { .. })
        ));
    }
    let kept = ErrorFeedback::restore(vec![0.5, -1.5], 0.9).unwrap();
    assert_eq!(kept.residual(), [0.5, -1.5]);
}
