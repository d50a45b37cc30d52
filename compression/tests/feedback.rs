//! Error feedback loses nothing, and says so in exact terms.

mod common;

use common::{DENSE_BF16, DENSE_F32, Rng, small_shard, sparse, tiles};
use gradmesh_compression::{
    ErrorFeedback, FeedbackError, TILE_ELEMENTS, TensorMode, VALUE_ABS_MAX, ValueBits, decode,
};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// e, zeros included.
fn residual(feedback: &ErrorFeedback) -> Vec<f32> {
    let zeros = || vec![0.0; feedback.elements()];
    feedback.residual().map_or_else(zeros, <[f32]>::to_vec)
}

#[test]
fn residual_and_frame_are_the_update_exactly_as_computed() {
    let (tiles, values) = small_shard();
    for codec in [
        sparse(64, ValueBits::One),
        sparse(700, ValueBits::Two),
        sparse(700, ValueBits::Four),
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
            feedback.accumulate(0, &delta).unwrap();
            for (expected, delta) in expected.iter_mut().zip(&delta) {
                *expected = 0.95 * *expected + delta;
            }
            assert_eq!(bits(&residual(&feedback)), bits(&expected));

            let mut bytes = Vec::new();
            let stats = feedback.take(0, &tiles, codec, &mut bytes).unwrap();
            assert_eq!(stats.frame_bytes, bytes.len());
            let frame = decode(&bytes, &tiles, codec).unwrap();
            let mut sent = vec![0.0; values.len()];
            frame.dequantise_into(&mut sent);
            for (expected, sent) in expected.iter_mut().zip(&sent) {
                *expected -= sent;
            }
            assert_eq!(bits(&residual(&feedback)), bits(&expected));
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
    for codec in [
        sparse(64, ValueBits::One),
        sparse(256, ValueBits::Two),
        sparse(256, ValueBits::Four),
    ] {
        let mut feedback = ErrorFeedback::new(elements, 0.95).unwrap();
        feedback.accumulate(0, &delta).unwrap();
        let mut bytes = Vec::new();
        feedback.take(0, &tiles, codec, &mut bytes).unwrap();
        let left = residual(&feedback);
        feedback
            .give_back(0, &decode(&bytes, &tiles, codec).unwrap())
            .unwrap();
        for (element, (&back, &delta)) in residual(&feedback).iter().zip(&delta).enumerate() {
            // Each of the two operations rounds its result with a relative error of at most 2^-24.
            let bound =
                (f64::from(left[element].abs()) + f64::from(back.abs())) * 2.0_f64.powi(-24);
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
        feedback.accumulate(0, &delta).unwrap();
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
    // Rounds 1 and 2 send element 7; round 3 meets -1.2 against 1 and sends element 40, up to half a step of the grid.
    let ratio = sent[40] / -1.2;
    assert!(ratio.log2().abs() < 1.01 / 64.0, "{}", sent[40]);
}

#[test]
fn entries_that_levels_leave_out_are_sent_once_they_lead() {
    let tiles = tiles(&[(8, TensorMode::Sparse)]);
    let codec = sparse(4096, ValueBits::Two);
    let small = 2.0_f32.powi(-20);
    let mut feedback = ErrorFeedback::new(8, 1.0).unwrap();
    feedback
        .accumulate(0, &[4.0, 1.0, -1.0, small, 0.0, 0.0, 0.0, -small])
        .unwrap();
    let send = |feedback: &mut ErrorFeedback| {
        let mut bytes = Vec::new();
        feedback.take(0, &tiles, codec, &mut bytes).unwrap();
        let mut values = vec![0.0; 8];
        let frame = decode(&bytes, &tiles, codec).unwrap();
        frame.dequantise_into(&mut values);
        values
    };
    let first = [4.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let second = [0.0, 0.0, 0.0, small, 0.0, 0.0, 0.0, -small];
    assert_eq!(send(&mut feedback), first);
    assert_eq!(residual(&feedback), second);
    assert_eq!(send(&mut feedback), second);
    assert_eq!(residual(&feedback), [0.0; 8]);
}

#[test]
fn shard_is_taken_where_it_starts() {
    let (tiles, values) = small_shard();
    let mut padded = vec![9.0; 10];
    padded.extend(&values);
    let mut feedback = ErrorFeedback::new(padded.len(), 0.95).unwrap();
    feedback.accumulate(0, &padded).unwrap();
    let mut bytes = Vec::new();
    feedback.take(10, &tiles, DENSE_F32, &mut bytes).unwrap();
    assert_eq!(residual(&feedback)[..10], [9.0; 10]);
    assert_eq!(residual(&feedback)[10..], [0.0; 127]);

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
    feedback.accumulate(0, &[1.0, 2.0, VALUE_ABS_MAX]).unwrap();
    let before = feedback.clone();
    for bad in [f32::NAN, f32::INFINITY, f32::MIN, VALUE_ABS_MAX] {
        let error = feedback.accumulate(0, &[0.0, 0.0, bad]).unwrap_err();
        assert!(
            matches!(error, FeedbackError::Diverged { element: 2, .. }),
            "{error}"
        );
        assert_eq!(feedback, before);
    }
    assert_eq!(
        feedback.accumulate(2, &[0.0; 2]),
        Err(FeedbackError::OutsideResidual {
            start: 2,
            elements: 2,
            residual: 3
        })
    );
}

#[test]
fn check_tells_beforehand_what_an_update_would_do() {
    let mut feedback = ErrorFeedback::new(2, 0.5).unwrap();
    assert_eq!(feedback.check(&[1.0, VALUE_ABS_MAX], &[0.5, 0.0]), Ok(()));
    feedback.accumulate(0, &[0.0, 2.0]).unwrap();
    assert_eq!(
        feedback.check(&[1.0, VALUE_ABS_MAX], &[0.5, 0.0]),
        Err(FeedbackError::Diverged {
            element: 1,
            value: VALUE_ABS_MAX + 1.0
        })
    );
    assert_eq!(
        feedback.check(&[1.0, 1.0], &[1.0]),
        Err(FeedbackError::LengthMismatch {
            found: 1,
            expected: 2
        })
    );
}

#[test]
fn folded_update_is_kept_without_decay() {
    let mut feedback = ErrorFeedback::new(2, 0.5).unwrap();
    for _ in 0..3 {
        feedback.fold(&[1.0, 2.0], &[0.5, 3.0]).unwrap();
    }
    assert_eq!(residual(&feedback), [1.5, -3.0]);
    let before = feedback.clone();
    assert!(feedback.fold(&[1.0, f32::NAN], &[0.5, 3.0]).is_err());
    assert_eq!(feedback, before);
}

#[test]
fn sending_shard_by_shard_is_accumulating_and_taking() {
    let (tiles, values) = small_shard();
    for codec in [
        sparse(64, ValueBits::Two),
        sparse(64, ValueBits::Four),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let mut at_once = ErrorFeedback::new(values.len(), 0.95).unwrap();
        let (mut in_steps, mut in_parts) = (at_once.clone(), at_once.clone());
        for _ in 0..3 {
            let (mut sent, mut taken, mut of_part) = (Vec::new(), Vec::new(), Vec::new());
            at_once.send(0, &tiles, codec, &values, &mut sent).unwrap();
            let mut parts = in_parts.parts(0, &[values.len()], codec).unwrap();
            parts[0].send(&tiles, &values, &mut of_part).unwrap();
            assert_eq!(of_part, sent);
            assert_eq!(in_parts, at_once);
            in_steps.accumulate(0, &values).unwrap();
            in_steps.take(0, &tiles, codec, &mut taken).unwrap();
            assert_eq!(sent, taken);
            assert_eq!(bits(&residual(&at_once)), bits(&residual(&in_steps)));
        }
        assert_eq!(at_once.residual().is_none(), codec == DENSE_F32);
    }
}

#[test]
fn parts_lie_one_after_the_other_and_refuse_what_is_not_theirs() {
    let codec = DENSE_BF16;
    let mut feedback = ErrorFeedback::restore(vec![1.0, 2.0, 3.0, 4.0, 5.0], 0.5).unwrap();
    let parts = feedback.parts(1, &[1, 3], codec).unwrap();
    let of_parts: Vec<_> = parts.iter().map(|part| part.residual().unwrap()).collect();
    assert_eq!(of_parts, [&[2.0][..], &[3.0, 4.0, 5.0]]);
    assert!(matches!(
        feedback.parts(1, &[1, 4], codec),
        Err(FeedbackError::OutsideResidual { .. })
    ));

    let before = feedback.clone();
    let mut parts = feedback.parts(1, &[1, 3], codec).unwrap();
    let (tiles, mut out) = (tiles(&[(3, TensorMode::Dense)]), Vec::new());
    assert!(matches!(
        parts[1].send(&tiles, &[0.0; 2], &mut out),
        Err(FeedbackError::LengthMismatch {
            found: 2,
            expected: 3
        })
    ));
    assert!(matches!(
        parts[1].send(&tiles, &[0.0, f32::NAN, 0.0], &mut out),
        Err(FeedbackError::Diverged { element: 1, .. })
    ));
    assert_eq!((feedback, out), (before, Vec::new()));
}

#[test]
fn what_is_checked_in_parts_counts_its_elements_from_the_first_of_all() {
    let feedback = ErrorFeedback::new(4, 0.5).unwrap();
    assert_eq!(feedback.check_part(2, &[1.0, 2.0], &[0.0, 0.0]), Ok(()));
    assert!(matches!(
        feedback.check_part(2, &[1.0, f32::NAN], &[0.0, 0.0]),
        Err(FeedbackError::Diverged { element: 3, .. })
    ));
    assert!(matches!(
        feedback.check_part(3, &[1.0, 2.0], &[0.0, 0.0]),
        Err(FeedbackError::OutsideResidual { .. })
    ));
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
    assert_eq!(residual(&kept), [0.5, -1.5]);
}
