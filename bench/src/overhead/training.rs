//! What every system under comparison trains: the same model on the same text, with the same optimizer.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use gradmesh_trainer::data::{Corpus, DataManifest, VOCAB, Windows, assignment};
use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, set_threads};
use gradmesh_trainer::{Batch, InnerOptimizer, ModelConfig, Trainer as _, model};

/// The most text that is read: what the demo takes.
const CORPUS_BYTES_MAX: u64 = 64 << 20;
/// Held-out windows of the look at the end, as `gradmesh-bench learning` takes.
const HELD_OUT_WINDOWS: u64 = 512;

/// A training, the same for every system.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Training {
    /// A `config.json` of Hugging Face, of a Llama.
    pub(crate) model: PathBuf,
    /// Directory of text.
    pub(crate) data: PathBuf,
    pub(crate) peers: u32,
    /// Inner steps of each peer in the whole run.
    pub(crate) steps: u32,
    /// Of a peer, in each step.
    pub(crate) batch_sequences: usize,
    pub(crate) sequence_tokens: usize,
    pub(crate) optimizer: InnerOptimizer,
    /// Of the first parameters and of which peer gets which text.
    pub(crate) seed: u8,
}

/// Model and text of a training, read.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) model: ModelConfig,
    corpus: Corpus,
    training: Training,
}

impl Training {
    /// Of all peers, in one step.
    pub(crate) fn tokens_per_step(&self) -> u64 {
        u64::from(self.peers) * (self.batch_sequences * self.sequence_tokens) as u64
    }

    /// Reads model and text.
    ///
    /// # Errors
    /// What cannot be read, and a model that cannot be trained on text of bytes.
    pub(crate) fn material(&self) -> anyhow::Result<Material> {
        let file = self.model.display();
        let json = fs::read(&self.model).with_context(|| format!("model {file}"))?;
        let model = ModelConfig::from_hf_json(&json).with_context(|| format!("model {file}"))?;
        ensure!(
            model.vocab_size >= VOCAB,
            "model {file}: vocab_size is {}, but text has {VOCAB} different bytes",
            model.vocab_size
        );
        ensure!(
            self.sequence_tokens <= model.max_position_embeddings,
            "model {file}: max_position_embeddings is {}, too few for sequences of {} tokens",
            model.max_position_embeddings,
            self.sequence_tokens
        );
        let manifest = DataManifest::scan(&self.data)?;
        let corpus = Corpus::load(&self.data, &manifest, CORPUS_BYTES_MAX)?;
        // Whether there is enough of it.
        corpus.windows(self.sequence_tokens)?;
        Ok(Material {
            model,
            corpus,
            training: self.clone(),
        })
    }
}

impl Material {
    /// The first parameters, flat.
    ///
    /// # Errors
    /// A model that is not valid.
    pub(crate) fn theta(&self) -> anyhow::Result<Vec<f32>> {
        Ok(model::init(&self.model, [self.training.seed; 32])?)
    }

    /// What `peer` trains on in `step`, both from 0.
    ///
    /// # Errors
    /// An empty batch.
    pub(crate) fn batch(&self, peer: u32, step: u32) -> anyhow::Result<Batch> {
        let windows = self.windows()?;
        let mut name = [0; 32];
        name[..4].copy_from_slice(&peer.to_le_bytes());
        let Training {
            seed,
            batch_sequences,
            ..
        } = self.training;
        let indices = assignment(&[seed], &name, step, batch_sequences, windows.training());
        Ok(windows.training_batch(&indices)?)
    }

    /// Mean nats per token of `theta` on the first held-out windows.
    ///
    /// # Errors
    /// Parameters of another model, and a loss that is not finite.
    pub(crate) fn held_out(&self, theta: &[f32]) -> anyhow::Result<f64> {
        let windows = self.windows()?;
        let indices: Vec<u64> = (0..HELD_OUT_WINDOWS.min(windows.held_out())).collect();
        let batch = windows.validation_batch(&indices)?;
        // As in all processes of a measurement; threads that wait for each other are slow where cores are taken.
        set_threads(1);
        let settings = TorchSettings::cpu(self.training.optimizer.clone());
        let mut trainer = TorchTrainer::new(self.model.clone(), settings)?;
        Ok(trainer.loss(theta, &batch)?.into())
    }

    fn windows(&self) -> anyhow::Result<Windows<'_>> {
        Ok(self.corpus.windows(self.training.sequence_tokens)?)
    }
}

#[cfg(test)]
impl Training {
    /// Three steps of a model of a few thousand parameters, with its files in `dir`.
    pub(crate) fn tiny(peers: u32, dir: &std::path::Path) -> Training {
        const MODEL: &str = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 32,
            "tie_word_embeddings": true}"#;
        let (model, data) = (dir.join("config.json"), dir.join("text"));
        fs::write(&model, MODEL).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(
            data.join("licence.txt"),
            include_str!("../../../LICENSE-APACHE"),
        )
        .unwrap();
        Training {
            model,
            data,
            peers,
            steps: 3,
            batch_sequences: 2,
            sequence_tokens: 16,
            optimizer: InnerOptimizer {
                warmup_steps: 2,
                ..InnerOptimizer::default()
            },
            seed: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_and_step_has_its_own_text() {
        let dir = tempfile::tempdir().unwrap();
        let training = Training::tiny(2, dir.path());
        let material = training.material().unwrap();
        let batch = |peer, step| material.batch(peer, step).unwrap();
        assert_eq!(batch(0, 0), batch(0, 0));
        assert_eq!((batch(0, 0).sequences(), batch(0, 0).seq_len()), (2, 16));
        assert_ne!(batch(0, 0), batch(1, 0));
        assert_ne!(batch(0, 0), batch(0, 1));
        let other = Training {
            seed: 2,
            ..training
        };
        assert_ne!(other.material().unwrap().batch(0, 0).unwrap(), batch(0, 0));
    }

    #[test]
    fn a_model_that_cannot_read_the_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let training = Training::tiny(2, dir.path());
        let json = fs::read_to_string(&training.model).unwrap();
        for (right, wrong) in [("256", "64"), (": 32", ": 8")] {
            fs::write(&training.model, json.replace(right, wrong)).unwrap();
            let error = training.material().unwrap_err().to_string();
            assert!(error.contains("config.json"), "{error}");
        }
    }
}
