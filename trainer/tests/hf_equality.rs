//! Our logits against those of Hugging Face `transformers` for the same checkpoint.
//!
//! The expected values below come from transformers 5.23.0 on torch 2.11.0 (f32, CPU, eager attention), which loaded
//! checkpoints written by this crate. To make them again:
//!
//! ```text
//! export GRADMESH_HF_DIR=$(mktemp -d)
//! cargo test -p gradmesh-trainer --features torch --test hf_equality -- --ignored write_checkpoints
//! python trainer/tests/hf_logits.py $GRADMESH_HF_DIR
//! cargo test -p gradmesh-trainer --features torch --test hf_equality -- --ignored all_logits
//! ```
//!
//! The last command compares every logit and reads back what `save_pretrained` wrote.
#![cfg(feature = "torch")]

use std::path::PathBuf;

use gradmesh_trainer::checkpoint::{self, Provenance};
use gradmesh_trainer::model::{self, Precision};
use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, set_threads};
use gradmesh_trainer::{Architecture, InnerOptimizer, ModelConfig, Trainer};

const PROMPT: &[u8] = b"Hello, world";

/// Logits are of size 1 to 5, after two layers of six matrix products and a head. Each product sums at most 96 f32
/// terms in an order of its own: a relative error of at most 96 * 6e-8, usually its square root. 14 of them on a value
/// of 5 stay below 5 * 14 * sqrt(96) * 6e-8 = 4e-5 (largest difference seen: 2.1e-6).
const TOLERANCE: f32 = 1e-4;

fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        vocab_size: 256,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 500.0,
        tie_word_embeddings: tied,
        head_dim: None,
        hidden_act: "silu".to_owned(),
    }
}

/// Fresh weights are too small for attention to matter: matrices are scaled to a deviation near 0.2 and norms vary.
fn theta(tied: bool) -> Vec<f32> {
    let config = config(tied);
    let mut theta = model::init(&config, [9; 32]).expect("valid config");
    let mut start = 0;
    for spec in config.parameters() {
        let end = start + spec.elements();
        for (index, value) in theta[start..end].iter_mut().enumerate() {
            if spec.shape.len() == 1 {
                *value = 0.5 + (index % 7) as f32 * 0.125;
            } else {
                *value *= 8.0;
            }
        }
        start = end;
    }
    theta
}

fn logits(config: &ModelConfig, theta: &[f32]) -> Vec<f32> {
    set_threads(1);
    let settings = TorchSettings::cpu(InnerOptimizer::default());
    let mut trainer = TorchTrainer::new(config.clone(), settings).expect("valid settings");
    let tokens: Vec<u32> = PROMPT.iter().copied().map(u32::from).collect();
    trainer.logits(theta, &tokens).expect("logits")
}

fn check(tied: bool, expected: [(usize, [f32; 4]); 3]) {
    let ours = logits(&config(tied), &theta(tied));
    assert_eq!(ours.len(), PROMPT.len() * 256);
    for (position, values) in expected {
        for (token, value) in values.into_iter().enumerate() {
            let got = ours[position * 256 + token];
            assert!(
                (got - value).abs() < TOLERANCE,
                "position {position}, token {token}: ours {got}, transformers {value}"
            );
        }
    }
}

#[test]
fn tied_model_has_the_logits_of_transformers() {
    check(
        true,
        [
            (0, [2.310322, -0.947931, -0.371095, -1.544041]),
            (5, [2.775193, 0.125151, 0.878749, -0.465696]),
            (11, [1.415779, -0.609359, 0.574736, 1.100515]),
        ],
    );
}

#[test]
fn untied_model_has_the_logits_of_transformers() {
    check(
        false,
        [
            (0, [1.499811, -0.633599, -0.4531, -1.30678]),
            (5, [1.017331, -2.138985, 0.47211, -1.482308]),
            (11, [0.042619, -1.299007, -0.276209, -1.115337]),
        ],
    );
}

fn exchange_dir() -> PathBuf {
    PathBuf::from(std::env::var("GRADMESH_HF_DIR").expect("GRADMESH_HF_DIR names a directory"))
}

fn name(tied: bool) -> &'static str {
    if tied { "tied" } else { "untied" }
}

#[test]
#[ignore = "writes checkpoints for hf_logits.py, see the head of this file"]
fn write_checkpoints() {
    for tied in [true, false] {
        let provenance = Provenance {
            run: "0".repeat(64),
            round: 0,
            state_root: "0".repeat(64),
            residual_leaves: Vec::new(),
        };
        checkpoint::write(
            &exchange_dir().join(name(tied)),
            &config(tied).into(),
            &theta(tied),
            Precision::F32,
            Some(&provenance),
        )
        .expect("write");
    }
}

#[test]
#[ignore = "needs the output of hf_logits.py, see the head of this file"]
fn all_logits_and_resaved_checkpoints_agree() {
    for tied in [true, false] {
        let dir = exchange_dir().join(name(tied));
        let json = std::fs::read(dir.join("hf_logits.json")).expect("hf_logits.py has run");
        let theirs: Vec<f32> = serde_json::from_slice(&json).expect("values");
        let ours = logits(&config(tied), &theta(tied));
        assert_eq!(ours.len(), theirs.len());
        let largest = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| (ours - theirs).abs())
            .fold(0.0, f32::max);
        println!("{}: largest difference {largest:e}", name(tied));
        assert!(largest < TOLERANCE);

        for precision in ["f32", "bf16"] {
            let saved = exchange_dir().join(format!("{}-hf-{precision}", name(tied)));
            let read = checkpoint::read(&saved).expect("a checkpoint of transformers");
            let Architecture::Llama(config) = read.config else {
                panic!("{:?}", read.config);
            };
            assert_eq!(config.tie_word_embeddings, tied);
            assert_eq!(config.rope_theta, 500.0);
            for (stored, original) in read.theta.iter().zip(theta(tied)) {
                let expected = match precision {
                    "bf16" => half::bf16::from_f32(original).to_f32(),
                    _ => original,
                };
                assert_eq!(*stored, expected);
            }
        }
    }
}
