use std::sync::{Arc, Mutex};

use super::*;
use crate::optimizer::InnerOptimizer;
use crate::reference::{ReferenceConfig, ReferenceTrainer};

const SEED: Hash = Hash([7; 32]);
const STEPS: u32 = 8;

fn model() -> ReferenceConfig {
    ReferenceConfig {
        vocab: 8,
        context: 2,
        embed: 3,
        hidden: 4,
    }
}

fn honest() -> Box<dyn Trainer> {
    let optimizer = InnerOptimizer {
        learning_rate: 1e-2,
        warmup_steps: 0,
        ..InnerOptimizer::default()
    };
    Box::new(ReferenceTrainer::new(model(), optimizer).expect("valid settings"))
}

/// 2 rows of 6 tokens: 10 predictions.
fn batch(step: u32) -> Result<Batch, String> {
    let tokens = (0..12).map(|at| (at * at + step) % 8).collect();
    Batch::new(tokens, 2).map_err(|error| error.to_string())
}

fn task(first_step: u32, steps: u32) -> TrainTask {
    TrainTask {
        first_step,
        steps,
        global_step: u64::from(first_step),
    }
}

/// A copy of what is given before each round.
fn others(update: Option<Vec<f32>>) -> Others {
    Box::new(move || update.clone())
}

fn cheat(kind: Kind) -> Box<dyn Trainer> {
    let update = vec![0.25; model().init([1; 32]).len()];
    wrap(kind, honest(), STEPS, SEED, others(Some(update)))
}

/// The local parameters after each of the calls, each from where the one before ended.
fn run(trainer: &mut dyn Trainer, start: &[f32], calls: &[TrainTask]) -> Vec<Vec<f32>> {
    let mut states = vec![start.to_vec()];
    for call in calls {
        let from = states.last().expect("a start").clone();
        trainer
            .train(&from, call, &mut batch, &mut |_| true)
            .expect("training");
        states.push(trainer.local());
    }
    states
}

fn round() -> [TrainTask; 4] {
    [task(0, 2), task(2, 2), task(4, 2), task(6, 2)]
}

fn start() -> Vec<f32> {
    model().init([1; 32])
}

#[test]
fn names_are_parsed_and_unknown_ones_answered_with_all() {
    for kind in Kind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(kind.to_string(), kind.to_string().to_lowercase());
    }
    let error = "Idle".parse::<Kind>().expect_err("names are lower case");
    for kind in Kind::ALL {
        assert!(error.to_string().contains(&kind.to_string()), "{error}");
    }
}

#[test]
fn every_kind_claims_all_steps_and_tokens_in_order() {
    for kind in Kind::ALL {
        let mut trainer = cheat(kind);
        let (mut theta, mut steps) = (start(), Vec::new());
        for call in round() {
            let report = trainer
                .train(&theta, &call, &mut batch, &mut |step| {
                    assert!(step.loss.is_finite() && step.loss > 0.0, "{kind}");
                    assert!(step.gradient_norm > 0.0, "{kind}");
                    steps.push((step.step, step.tokens));
                    true
                })
                .expect("training");
            assert_eq!((report.steps, report.tokens), (2, 20), "{kind}");
            theta = trainer.take_local();
            assert_eq!(theta.len(), start().len(), "{kind}");
            assert_eq!(theta, trainer.local(), "{kind}");
        }
        let expected: Vec<(u32, u64)> = (0..STEPS)
            .map(|step| (step, 10 * u64::from(step % 2 + 1)))
            .collect();
        assert_eq!(steps, expected, "{kind}");
    }
}

#[test]
fn every_kind_stops_when_told_and_refuses_what_a_trainer_refuses() {
    for kind in Kind::ALL {
        let mut trainer = cheat(kind);
        let stopped = trainer.train(&start(), &task(0, 5), &mut batch, &mut |step| step.step < 1);
        let report = stopped.expect("training");
        assert_eq!((report.steps, report.tokens), (2, 20), "{kind}");
        let short = trainer.train(&[0.0], &task(0, 1), &mut batch, &mut |_| true);
        assert!(matches!(short, Err(TrainError::Length { .. })), "{kind}");
        let none = trainer.train(&start(), &task(0, 0), &mut batch, &mut |_| true);
        assert!(matches!(none, Err(TrainError::NoSteps)), "{kind}");
        let mut broken = |_| Err("no data".to_owned());
        let broken = trainer.train(&start(), &task(0, 1), &mut broken, &mut |_| true);
        assert!(matches!(broken, Err(TrainError::Source { .. })), "{kind}");
    }
}

#[test]
fn kinds_that_withhold_or_do_nothing_wrong_are_the_trainer_itself() {
    let expected = run(honest().as_mut(), &start(), &round());
    for kind in [Kind::None, Kind::Withhold] {
        assert_eq!(run(cheat(kind).as_mut(), &start(), &round()), expected);
    }
}

#[test]
fn claimed_losses_fall_from_what_was_measured() {
    let mut trainer = cheat(Kind::Half);
    let mut losses = Vec::new();
    let mut theta = start();
    for call in round() {
        trainer
            .train(&theta, &call, &mut batch, &mut |step| {
                losses.push(step.loss);
                true
            })
            .expect("training");
        theta = trainer.take_local();
    }
    let (measured, claimed) = losses.split_at(4);
    assert!(claimed[0] < measured[3] && claimed[0] > 0.99 * measured[3]);
    assert!(claimed.is_sorted_by(|a, b| a > b));
}

#[test]
fn half_does_the_calls_that_begin_in_the_first_half() {
    let honest = run(honest().as_mut(), &start(), &round());
    let half = run(cheat(Kind::Half).as_mut(), &start(), &round());
    assert_eq!(half[..3], honest[..3]);
    assert_eq!(half[3], half[2]);
    assert_eq!(half[4], half[2]);
}

#[test]
fn copy_is_another_update_in_parts_that_add_up() {
    let states = run(cheat(Kind::Copy).as_mut(), &start(), &round());
    for ((first, second), last) in states[0].iter().zip(&states[1]).zip(&states[4]) {
        // A quarter of 0.25, then all of it. Each of four roundings is below 2^-24 of values below 4.
        assert!((first - second - 0.0625).abs() < 1e-6, "{first} {second}");
        assert!((first - last - 0.25).abs() < 1e-6, "{first} {last}");
    }
    for update in [None, Some(vec![1.0])] {
        let mut trainer = wrap(Kind::Copy, honest(), STEPS, SEED, others(update));
        let states = run(trainer.as_mut(), &start(), &round());
        assert_eq!(states[4], states[0], "there is nothing to copy");
    }
}

#[test]
fn copy_asks_for_an_update_once_in_a_round() {
    let asked = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&asked);
    let others: Others = Box::new(move || {
        *counter.lock().expect("no panic") += 1;
        None
    });
    let mut trainer = wrap(Kind::Copy, honest(), STEPS, SEED, others);
    for _ in 0..3 {
        run(trainer.as_mut(), &start(), &round());
    }
    assert_eq!(*asked.lock().expect("no panic"), 3);
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    libm::sqrt(squares.sum())
}

#[test]
fn noise_is_as_long_as_that_many_steps_and_new_in_each_call() {
    let states = run(cheat(Kind::Noise).as_mut(), &start(), &round());
    let mut one = honest();
    one.train(&start(), &task(0, 1), &mut batch, &mut |_| true)
        .expect("training");
    let step = distance(&one.local(), &start());
    let noise = distance(&states[1], &states[0]);
    // The norm of 92 Gaussian elements has a relative standard deviation of 1 / sqrt(184) = 0.074; five of them.
    assert_eq!(start().len(), 92);
    assert!((noise / (2.0 * step) - 1.0).abs() < 0.37, "{noise} {step}");
    let moved = |from: usize| -> Vec<f32> {
        let pairs = states[from + 1].iter().zip(&states[from]);
        pairs.map(|(after, before)| after - before).collect()
    };
    let apart = distance(&moved(0), &moved(1));
    assert!(apart > 0.5 * noise, "two independent noises are far apart");
}

#[test]
fn sign_and_scale_stretch_what_was_learnt() {
    let calls = [task(0, 2)];
    let honest = run(honest().as_mut(), &start(), &calls);
    for (kind, factor) in [(Kind::Sign, -1.0), (Kind::Scale, 3.0)] {
        let states = run(cheat(kind).as_mut(), &start(), &calls);
        for ((start, honest), cheat) in states[0].iter().zip(&honest[1]).zip(&states[1]) {
            // A few roundings of values below 4.
            let expected = start + factor * (honest - start);
            assert!((cheat - expected).abs() < 2e-6, "{kind}");
        }
    }
}

#[test]
fn hijack_changes_one_parameter_in_the_last_call() {
    let honest = run(honest().as_mut(), &start(), &round());
    let states = run(cheat(Kind::Hijack).as_mut(), &start(), &round());
    assert_eq!(states[..4], honest[..4]);
    let differ = states[4].iter().zip(&honest[4]).filter(|(a, b)| a != b);
    let differ: Vec<_> = differ.collect();
    assert_eq!(differ.len(), 1);
    let farthest = honest[4].iter().zip(&honest[3]).map(|(a, b)| (a - b).abs());
    let farthest = farthest.fold(0.0, f32::max);
    assert!(differ[0].0 - differ[0].1 > 999.0 * farthest);
}

#[test]
fn stale_is_a_round_behind_and_ends_where_this_one_began_plus_its_steps() {
    let (first, second) = (start(), model().init([2; 32]));
    let calls = [task(0, 2)];
    let mut stale = cheat(Kind::Stale);
    let expected = run(honest().as_mut(), &first, &calls);
    // The first round has none before it.
    let states = run(stale.as_mut(), &first, &calls);
    assert!(distance(&states[1], &expected[1]) < 1e-5);
    // In the second round the inner state goes on, so that the honest trainer to compare with has done the round twice.
    let mut twice = honest();
    run(twice.as_mut(), &first, &calls);
    let expected = run(twice.as_mut(), &first, &calls);
    let states = run(stale.as_mut(), &second, &calls);
    for (at, expected) in expected[1].iter().zip(&first).enumerate() {
        let (honest, stale) = (expected.0 - expected.1, states[1][at] - second[at]);
        // theta - (theta - before) is before but for two roundings of values below 4; training spreads them a little.
        assert!((honest - stale).abs() < 1e-4, "element {at}");
    }
    // One that is started again in the middle of a round trains from where it is told to.
    let states = run(cheat(Kind::Stale).as_mut(), &second, &[task(4, 2)]);
    let expected = run(honest().as_mut(), &second, &[task(4, 2)]);
    assert!(distance(&states[1], &expected[1]) < 1e-5);
}

#[test]
fn partial_skips_as_many_calls_as_it_says_and_always_the_same() {
    let rounds = 100u32;
    let skipped = |ppm: u32, seed: Hash| -> Vec<bool> {
        let mut trainer = partial(honest(), ppm, seed);
        let calls = (0..rounds).map(|call| TrainTask {
            first_step: 0,
            steps: 1,
            global_step: u64::from(call),
        });
        let states = run(trainer.as_mut(), &start(), &calls.collect::<Vec<_>>());
        states.windows(2).map(|pair| pair[0] == pair[1]).collect()
    };
    assert!(skipped(0, SEED).iter().all(|skipped| !skipped));
    assert!(skipped(1_000_000, SEED).iter().all(|skipped| *skipped));
    let some = skipped(250_000, SEED);
    let count = some.iter().filter(|skipped| **skipped).count();
    // 25 of 100 with a standard deviation of 4.3; four of them.
    assert!((8..=42).contains(&count), "{count}");
    assert_eq!(some, skipped(250_000, SEED));
    assert_ne!(some, skipped(250_000, Hash([8; 32])));
}
