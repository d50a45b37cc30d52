//! Real updates: the demo's model, trained on real text.
//!
//! One sender trains as a peer of the demo does, [`STEPS_PER_ROUND`] steps a round from where the last round ended, on
//! source text of the crates in the local cargo registry. Nothing is downloaded. The values depend on the text found, on
//! libtorch and on the processor; codecs are compared on the same ones.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use gradmesh_compression::{Layout, TensorMode, TensorSpec};
use gradmesh_trainer::data::{Corpus, Windows};
use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, set_threads};
use gradmesh_trainer::{InnerOptimizer, ModelConfig, TrainTask, Trainer, model};

// The demo's model and settings of a round.
const MODEL: &str = include_str!("../../daemon/assets/demo-1m.json");
const STEPS_PER_ROUND: u32 = 18;
const BATCH_SEQUENCES: u64 = 8;
const SEQUENCE_TOKENS: usize = 128;
const LEARNING_RATE: f64 = 3e-3;
const WARMUP_STEPS: u64 = 36;
/// Tensors below it travel dense in the demo.
const SPARSE_ELEMENTS_MIN: usize = 4096;

/// More than a thousand rounds see.
const TEXT_BYTES: usize = 4 << 20;
/// Longer files are mostly generated tables.
const FILE_BYTES_MAX: u64 = 96 << 10;

/// Updates round by round.
pub(crate) struct Updates {
    trainer: TorchTrainer,
    corpus: Corpus,
    theta: Vec<f32>,
    rounds: u32,
}

impl Updates {
    pub(crate) fn new() -> anyhow::Result<Self> {
        set_threads(1);
        let config = ModelConfig::from_hf_json(MODEL.as_bytes())?;
        let optimizer = InnerOptimizer {
            learning_rate: LEARNING_RATE,
            warmup_steps: WARMUP_STEPS,
            ..InnerOptimizer::default()
        };
        let theta = model::init(&config, [1; 32])?;
        let trainer = TorchTrainer::new(config, TorchSettings::cpu(optimizer))?;
        let corpus = Corpus::from_bytes(text()?);
        Ok(Self {
            trainer,
            corpus,
            theta,
            rounds: 0,
        })
    }

    /// Of the tensors that a sparse run codes sparse: the others, norms, are bf16 in every sparse run and would hide
    /// what is measured.
    pub(crate) fn layout(&self) -> anyhow::Result<Layout> {
        let specs: Vec<TensorSpec> = self
            .sparse_ranges()
            .map(|range| TensorSpec {
                elements: range.len(),
                mode: TensorMode::Sparse,
            })
            .collect();
        Ok(Layout::new(&specs)?)
    }

    /// All parameters after the rounds so far.
    pub(crate) fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// Trains one round and overwrites `update`, in the layout of [`Updates::layout`], with what it changed.
    pub(crate) fn next(&mut self, update: &mut [f32]) -> anyhow::Result<()> {
        let windows: Windows<'_> = self.corpus.windows(SEQUENCE_TOKENS)?;
        let global_step = u64::from(self.rounds) * u64::from(STEPS_PER_ROUND);
        let mut batches = |step: u32| {
            let first = (global_step + u64::from(step)) * BATCH_SEQUENCES;
            let indices: Vec<u64> = (first..first + BATCH_SEQUENCES)
                // A prime far from the number of windows: neighbours in a batch are of different crates.
                .map(|sequence| sequence * 7919 % windows.training())
                .collect();
            windows
                .training_batch(&indices)
                .map_err(|error| error.to_string())
        };
        let task = TrainTask {
            first_step: 0,
            steps: STEPS_PER_ROUND,
            global_step,
        };
        self.trainer
            .train(&self.theta, &task, &mut batches, &mut |_| true)?;
        let local = self.trainer.local();
        let mut places = update.iter_mut();
        for range in self.sparse_ranges() {
            for ((before, after), place) in self.theta[range.clone()]
                .iter()
                .zip(&local[range])
                .zip(places.by_ref())
            {
                *place = before - after;
            }
        }
        self.theta = local;
        self.rounds += 1;
        Ok(())
    }

    fn sparse_ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut end = 0;
        let ranges = self.trainer.parameters().iter().map(move |spec| {
            let start = end;
            end += spec.elements();
            start..end
        });
        ranges.filter(|range| range.len() >= SPARSE_ELEMENTS_MIN)
    }
}

/// Rust source of the crates in the registry, in the order of their paths; of each crate one file, so that a few
/// megabytes are of many authors.
pub(crate) fn text() -> anyhow::Result<Vec<u8>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registry = home.context("neither CARGO_HOME nor HOME is set")?;
    let registry = registry.join("registry").join("src");
    let mut crates = Vec::new();
    for index in sorted(&registry)? {
        crates.extend(sorted(&index)?);
    }
    let mut text = Vec::new();
    for path in crates {
        let source = path.join("src").join("lib.rs");
        let short = |found: &fs::Metadata| found.len() <= FILE_BYTES_MAX;
        // A crate without it, or whose file cannot be read, is one that the text goes without.
        if fs::metadata(&source).is_ok_and(|found| short(&found))
            && let Ok(content) = fs::read(&source)
        {
            text.extend(content);
            text.push(b'\n');
        }
        if text.len() >= TEXT_BYTES {
            break;
        }
    }
    ensure!(
        text.len() >= TEXT_BYTES / 8,
        "{}: only {} bytes of source text; build gradmesh with cargo on this machine first",
        registry.display(),
        text.len()
    );
    Ok(text)
}

fn sorted(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}
