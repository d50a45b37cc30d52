//! What every [`Trainer`] owes its caller, run over each implementation.

use gradmesh_trainer::model::elements;
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::{
    Batch, InnerOptimizer, StateError, TrainError, TrainReport, TrainTask, Trainer,
};

/// Makes a fresh trainer; the suite compares several of one kind.
type Make = dyn Fn() -> Box<dyn Trainer>;

const SEQUENCES: usize = 4;
const SEQ_LEN: usize = 16;

/// A text in which every byte follows from the one or two before it.
fn tiny_corpus(step: u32) -> Result<Batch, String> {
    let text: Vec<u32> = b"the quick brown fox jumps over the lazy dog. "
        .map(u32::from)
        .to_vec();
    let tokens = (0..SEQUENCES)
        .flat_map(|row| {
            let start = (step as usize * SEQUENCES + row) * 7;
            let text = &text;
            (0..=SEQ_LEN).map(move |at| text[(start + at) % text.len()])
        })
        .collect();
    Batch::new(tokens, SEQUENCES).map_err(|error| error.to_string())
}

fn optimizer() -> InnerOptimizer {
    InnerOptimizer {
        learning_rate: 1e-2,
        warmup_steps: 5,
        ..InnerOptimizer::default()
    }
}

fn task(first_step: u32, steps: u32) -> TrainTask {
    TrainTask {
        first_step,
        steps,
        global_step: u64::from(first_step),
    }
}

fn train(trainer: &mut dyn Trainer, theta: &[f32], task: TrainTask) -> TrainReport {
    trainer
        .train(theta, &task, &mut tiny_corpus, &mut |_| true)
        .expect("training")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn suite(make: &Make, theta: &[f32]) {
    theta_has_the_length_of_the_parameters(make, theta);
    loss_falls_on_a_tiny_corpus(make, theta);
    the_same_start_gives_the_same_bits(make, theta);
    a_round_continues_bit_for_bit_from_saved_state(make, theta);
    an_early_stop_reports_the_steps_done(make, theta);
    measuring_loss_changes_nothing(make, theta);
    loss_agrees_with_logits(make, theta);
    bad_input_is_an_error(make, theta);
    damaged_state_is_refused_and_changes_nothing(make, theta);
}

fn theta_has_the_length_of_the_parameters(make: &Make, theta: &[f32]) {
    let trainer = make();
    assert_eq!(elements(trainer.parameters()), theta.len());
    assert_eq!(trainer.local(), vec![0.0; theta.len()]);
}

fn loss_falls_on_a_tiny_corpus(make: &Make, theta: &[f32]) {
    let mut trainer = make();
    let batch = tiny_corpus(1000).expect("batch");
    let before = trainer.loss(theta, &batch).expect("loss");
    let report = train(&mut *trainer, theta, task(0, 60));
    let after = trainer.loss(&trainer.local(), &batch).expect("loss");
    // An untrained byte model sits near ln 256 = 5.55; letter frequencies alone give under 3.4.
    assert!(
        before > 5.0 && after < 3.4,
        "before {before}, after {after}"
    );
    assert!(report.loss_last < report.loss_first);
    assert_eq!(
        (report.steps, report.tokens),
        (60, 60 * (SEQUENCES * SEQ_LEN) as u64)
    );
}

fn the_same_start_gives_the_same_bits(make: &Make, theta: &[f32]) {
    let (mut a, mut b) = (make(), make());
    let reports = [
        train(&mut *a, theta, task(0, 5)),
        train(&mut *b, theta, task(0, 5)),
    ];
    assert_eq!(reports[0], reports[1]);
    assert_eq!(bits(&a.local()), bits(&b.local()));
    assert_eq!(
        a.inner_state().expect("state"),
        b.inner_state().expect("state")
    );
}

fn a_round_continues_bit_for_bit_from_saved_state(make: &Make, theta: &[f32]) {
    let mut whole = make();
    train(&mut *whole, theta, task(0, 6));

    let mut half = make();
    train(&mut *half, theta, task(0, 4));
    let mut resumed = make();
    resumed
        .set_inner_state(&half.inner_state().expect("state"))
        .expect("own state");
    train(&mut *resumed, &half.local(), task(4, 2));
    assert_eq!(bits(&whole.local()), bits(&resumed.local()));
    assert_eq!(
        whole.inner_state().expect("state"),
        resumed.inner_state().expect("state")
    );
}

fn an_early_stop_reports_the_steps_done(make: &Make, theta: &[f32]) {
    let mut stopped = make();
    let mut seen = Vec::new();
    let report = stopped
        .train(theta, &task(10, 8), &mut tiny_corpus, &mut |step| {
            seen.push((step.step, step.tokens));
            seen.len() < 3
        })
        .expect("training");
    let per_step = (SEQUENCES * SEQ_LEN) as u64;
    assert_eq!(
        seen,
        [(10, per_step), (11, 2 * per_step), (12, 3 * per_step)]
    );
    assert_eq!((report.steps, report.tokens), (3, 3 * per_step));
    let mut short = make();
    train(&mut *short, theta, task(10, 3));
    assert_eq!(bits(&stopped.local()), bits(&short.local()));
}

fn measuring_loss_changes_nothing(make: &Make, theta: &[f32]) {
    let mut trainer = make();
    train(&mut *trainer, theta, task(0, 2));
    let (local, state) = (trainer.local(), trainer.inner_state().expect("state"));
    trainer
        .loss(theta, &tiny_corpus(3).expect("batch"))
        .expect("loss");
    assert_eq!(bits(&trainer.local()), bits(&local));
    assert_eq!(trainer.inner_state().expect("state"), state);
}

fn loss_agrees_with_logits(make: &Make, theta: &[f32]) {
    let mut trainer = make();
    let row: Vec<u32> = b"quick fox".map(u32::from).to_vec();
    let batch = Batch::new(row.clone(), 1).expect("one row");
    let loss = trainer.loss(theta, &batch).expect("loss");
    let logits = trainer
        .logits(theta, &row[..row.len() - 1])
        .expect("logits");
    let vocab = trainer.vocab();
    let mut total = 0.0f64;
    for (scores, target) in logits.chunks_exact(vocab).zip(&row[1..]) {
        let sum: f64 = scores.iter().map(|score| f64::from(*score).exp()).sum();
        total += sum.ln() - f64::from(scores[*target as usize]);
    }
    let expected = total / (row.len() - 1) as f64;
    // Both come from the same f32 scores of size about 1; the loss adds 256 exponentials and a few terms in f32,
    // each rounding 6e-8 of about 5: below 1e-5. bf16 scores are rounded before either path sees them.
    assert!(
        (f64::from(loss) - expected).abs() < 1e-5,
        "loss {loss}, from logits {expected}"
    );
}

fn bad_input_is_an_error(make: &Make, theta: &[f32]) {
    let mut trainer = make();
    let mut go = |_: &_| true;
    let short = &theta[1..];
    assert!(matches!(
        trainer.train(short, &task(0, 1), &mut tiny_corpus, &mut go),
        Err(TrainError::Length { .. })
    ));
    assert!(matches!(
        trainer.train(theta, &task(0, 0), &mut tiny_corpus, &mut go),
        Err(TrainError::NoSteps)
    ));
    let mut foreign = |_| Batch::new(vec![1, 256], 1).map_err(|error| error.to_string());
    assert!(matches!(
        trainer.train(theta, &task(0, 1), &mut foreign, &mut go),
        Err(TrainError::Token {
            token: 256,
            vocab: 256
        })
    ));
    let mut missing = |_| Err("disk gone".to_owned());
    assert!(matches!(
        trainer.train(theta, &task(7, 1), &mut missing, &mut go),
        Err(TrainError::Source { step: 7, .. })
    ));
    let poisoned = vec![f32::NAN; theta.len()];
    assert!(matches!(
        trainer.train(&poisoned, &task(3, 1), &mut tiny_corpus, &mut go),
        Err(TrainError::NotFinite { step: 3, .. })
    ));
    assert!(matches!(
        trainer.loss(&poisoned, &tiny_corpus(0).expect("batch")),
        Err(TrainError::LossNotFinite(_))
    ));
    assert!(matches!(
        trainer.logits(theta, &[300]),
        Err(TrainError::Token { token: 300, .. })
    ));
}

fn damaged_state_is_refused_and_changes_nothing(make: &Make, theta: &[f32]) {
    let mut trainer = make();
    train(&mut *trainer, theta, task(0, 1));
    let state = trainer.inner_state().expect("state");
    for length in [0, 7, 8, 100, state.len() - 1] {
        assert!(trainer.set_inner_state(&state[..length]).is_err());
    }
    // The file ends with the mean squares, which must be finite and not negative.
    for value in [f32::NAN, -1.0] {
        let mut poisoned = state.clone();
        let last_value = state.len() - 4;
        poisoned[last_value..].copy_from_slice(&value.to_le_bytes());
        assert!(matches!(
            trainer.set_inner_state(&poisoned),
            Err(StateError::Value { .. })
        ));
    }
    for at in (0..state.len()).rev().step_by(4).take(8) {
        let mut flipped = state.clone();
        flipped[at] ^= 0x80;
        // A flipped bit may give another valid state; it must not panic.
        let _ = trainer.set_inner_state(&flipped);
        trainer.set_inner_state(&state).expect("own state");
    }
    assert_eq!(trainer.inner_state().expect("state"), state);
}

#[test]
fn reference_trainer_keeps_the_contract() {
    let config = ReferenceConfig::default();
    let theta = config.init([5; 32]);
    suite(
        &move || Box::new(ReferenceTrainer::new(config, optimizer()).expect("valid settings")),
        &theta,
    );
}

#[cfg(feature = "torch")]
mod torch {
    use super::*;
    use gradmesh_trainer::ModelConfig;
    use gradmesh_trainer::model::{self, Precision};
    use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, set_threads};

    fn config(tied: bool) -> ModelConfig {
        ModelConfig {
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            vocab_size: 256,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: tied,
            head_dim: None,
            hidden_act: "silu".to_owned(),
        }
    }

    fn trainer(tied: bool, precision: Precision, micro_batch: usize) -> TorchTrainer {
        let settings = TorchSettings {
            precision,
            micro_batch,
            ..TorchSettings::cpu(optimizer())
        };
        TorchTrainer::new(config(tied), settings).expect("valid settings")
    }

    fn run(tied: bool, precision: Precision, micro_batch: usize) {
        set_threads(1);
        let theta = model::init(&config(tied), [6; 32]).expect("valid config");
        suite(
            &move || Box::new(trainer(tied, precision, micro_batch)),
            &theta,
        );
    }

    #[test]
    fn untied_f32_model_keeps_the_contract() {
        run(false, Precision::F32, 64);
    }

    #[test]
    fn tied_bf16_model_keeps_the_contract() {
        run(true, Precision::Bf16, 64);
    }

    #[test]
    fn model_with_gradient_accumulation_keeps_the_contract() {
        run(true, Precision::F32, 3);
    }

    #[test]
    fn accumulated_gradients_equal_those_of_the_whole_batch() {
        set_threads(1);
        let theta = model::init(&config(false), [6; 32]).expect("valid config");
        let norm = |micro_batch| {
            let mut norm = 0.0;
            trainer(false, Precision::F32, micro_batch)
                .train(&theta, &task(0, 1), &mut tiny_corpus, &mut |step| {
                    norm = step.gradient_norm;
                    true
                })
                .expect("training");
            norm
        };
        let (whole, pieces) = (norm(4), norm(1));
        // Two orders of the same f32 sums over 64 predictions: relative error below 64 * 6e-8.
        assert!(
            (whole - pieces).abs() < 4e-6 * whole,
            "{whole} and {pieces}"
        );
    }

    #[test]
    fn gradients_and_steps_from_outside_give_the_bits_of_train() {
        set_threads(1);
        let theta = model::init(&config(true), [6; 32]).expect("valid config");
        for micro_batch in [64, 3] {
            let mut whole = trainer(true, Precision::F32, micro_batch);
            let mut losses = Vec::new();
            whole
                .train(&theta, &task(3, 4), &mut tiny_corpus, &mut |step| {
                    losses.push((step.loss.to_bits(), step.gradient_norm.to_bits()));
                    true
                })
                .expect("training");

            let mut halves = trainer(true, Precision::F32, micro_batch);
            halves.set_parameters(&theta).expect("own parameters");
            for step in 3..7 {
                let batch = tiny_corpus(step).expect("batch");
                let (loss, gradient) = halves.gradient(&batch).expect("gradient");
                let norm = halves.step(&gradient, step.into()).expect("step");
                let expected = losses[step as usize - 3];
                assert_eq!((loss.to_bits(), norm.to_bits()), expected, "step {step}");
            }
            let current = halves.current_parameters().expect("parameters");
            assert_eq!(bits(&current), bits(&whole.local()));
            assert_eq!(
                halves.inner_state().expect("state"),
                whole.inner_state().expect("state")
            );
        }
    }

    #[test]
    fn a_gradient_that_is_no_gradient_changes_nothing() {
        let theta = model::init(&config(true), [6; 32]).expect("valid config");
        let mut trainer = trainer(true, Precision::F32, 64);
        trainer.set_parameters(&theta).expect("own parameters");
        let state = trainer.inner_state().expect("state");
        assert!(matches!(
            trainer.step(&theta[1..], 0),
            Err(TrainError::Length { .. })
        ));
        let poisoned = vec![f32::NAN; theta.len()];
        assert!(matches!(
            trainer.step(&poisoned, 0),
            Err(TrainError::GradientNotFinite(_))
        ));
        assert!(matches!(
            trainer.set_parameters(&theta[1..]),
            Err(TrainError::Length { .. })
        ));
        let current = trainer.current_parameters().expect("parameters");
        assert_eq!(bits(&current), bits(&theta));
        assert_eq!(trainer.inner_state().expect("state"), state);
    }
}
