//! Bytes from disks and peers, damaged in arbitrary ways, are refused or read; they never panic.

use std::num::NonZeroUsize;

use gradmesh_compression::{Codec, DenseFormat};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::checkpoint;
use gradmesh_trainer::data::DataManifest;
use gradmesh_trainer::model::{self, Precision};
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::replica::{Outer, Replica, ReplicaConfig};
use gradmesh_trainer::{Architecture, InnerOptimizer, ModelConfig, Trainer};
use proptest::prelude::*;

const CONFIG: ReferenceConfig = ReferenceConfig {
    vocab: 4,
    context: 1,
    embed: 2,
    hidden: 2,
};

fn trainer() -> ReferenceTrainer {
    ReferenceTrainer::new(CONFIG, InnerOptimizer::default()).expect("valid settings")
}

fn replica() -> Replica {
    let config = ReplicaConfig {
        codec: Codec::Dense(DenseFormat::F32),
        reduced: Codec::Dense(DenseFormat::F32),
        local: Codec::Dense(DenseFormat::F32),
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 1,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    Replica::new(&CONFIG.parameters(), config, CONFIG.init([0; 32])).expect("valid replica")
}

fn llama() -> ModelConfig {
    ModelConfig {
        hidden_size: 4,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        vocab_size: 4,
        max_position_embeddings: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        head_dim: None,
        hidden_act: "silu".to_owned(),
    }
}

fn manifest() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("a.txt"), "text").expect("file");
    std::fs::write(dir.path().join("b.md"), "more").expect("file");
    DataManifest::scan(dir.path()).expect("scan").to_bytes()
}

/// Overwrites bytes, then cuts or extends.
fn damage(mut bytes: Vec<u8>, edits: &[(usize, u8)], tail: &[u8], cut: usize) -> Vec<u8> {
    for (at, value) in edits {
        if let Some(at) = at.checked_rem(bytes.len()) {
            bytes[at] = *value;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(cut));
    bytes.extend_from_slice(tail);
    bytes
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(
        edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..4),
        cut in 0usize..40,
    ) {
        let mangle = |bytes| damage(bytes, &edits, &tail, cut);

        let bytes = mangle(manifest());
        if let Ok(read) = DataManifest::from_bytes(&bytes) {
            prop_assert_eq!(read.to_bytes(), bytes, "only canonical bytes are read");
        }

        let mut trainer = trainer();
        let bytes = mangle(trainer.inner_state().expect("state"));
        let _ = trainer.set_inner_state(&bytes);

        let mut replica = replica();
        let saved = replica.save_private(b"inner");
        let bytes = mangle(saved.clone());
        prop_assert!(replica.restore_private(&bytes).is_err() || bytes == saved);
        let _ = replica.shape().check_frame(Stage::Update, 0, &bytes);

        let json = llama().to_hf_json(Precision::F32).into_bytes();
        if let Ok(config) = Architecture::from_json(&mangle(json)) {
            prop_assert!(config.validate().is_ok());
        }
    }

    #[test]
    fn damaged_weights_never_panic(
        edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cut in 0usize..40,
    ) {
        let home = tempfile::tempdir().expect("temporary directory");
        let dir = home.path().join("checkpoint");
        let theta = model::init(&llama(), [0; 32]).expect("valid config");
        checkpoint::write(&dir, &llama().into(), &theta, Precision::Bf16, None).expect("write");
        let path = dir.join("model.safetensors");
        let bytes = damage(std::fs::read(&path).expect("weights"), &edits, &[], cut);
        std::fs::write(&path, bytes).expect("weights");
        if let Ok(read) = checkpoint::read(&dir) {
            prop_assert_eq!(read.theta.len(), theta.len());
            prop_assert!(read.theta.iter().all(|value| value.is_finite()));
        }
    }
}
