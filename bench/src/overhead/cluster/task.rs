//! The files that tell the members what to train, in one directory: both engines read the same.
//!
//! ```text
//! task.json       Task
//! theta.f32       the first parameters: f32, little endian, flat order (gradmesh_trainer::model)
//! tokens-R.u32    what member R trains on: u32, little endian, [steps, shares, batch_sequences, sequence_tokens + 1]
//! trained.f32     as theta.f32, the last parameters, which member 0 writes in the end
//! ```

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context, ensure};
use gradmesh_trainer::optimizer::{f32_values, le_bytes};
use gradmesh_trainer::{Batch, InnerOptimizer, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::overhead::training::{Material, Training};

/// What every member does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) model: ModelConfig,
    pub(super) optimizer: InnerOptimizer,
    /// Of each step: `optimizer`'s schedule, for those who do not have it in code.
    pub(super) learning_rates: Vec<f64>,
    pub(super) members: u32,
    pub(super) steps: u32,
    /// Peers whose batches a member works through in each step.
    pub(super) shares: u32,
    /// Of a peer, in each step.
    pub(super) batch_sequences: usize,
    pub(super) sequence_tokens: usize,
}

impl Task {
    /// # Errors
    /// A number of peers that `members` cannot share equally.
    pub(super) fn new(
        training: &Training,
        material: &Material,
        members: u32,
    ) -> anyhow::Result<Task> {
        let Training { peers, steps, .. } = *training;
        ensure!(
            members > 0 && peers > 0 && peers.is_multiple_of(members),
            "the batches of {peers} peers cannot be shared by {members} members"
        );
        let rate = |step: u32| training.optimizer.learning_rate_at(step.into());
        Ok(Task {
            model: material.model.clone(),
            optimizer: training.optimizer.clone(),
            learning_rates: (0..steps).map(rate).collect(),
            members,
            steps,
            shares: peers / members,
            batch_sequences: training.batch_sequences,
            sequence_tokens: training.sequence_tokens,
        })
    }

    /// Writes all files into `dir` but the last parameters.
    ///
    /// # Errors
    /// What cannot be written.
    pub(super) fn write(&self, material: &Material, dir: &Path) -> anyhow::Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let file = dir.join(name);
            fs::write(&file, bytes)
                .with_context(|| format!("{}: cannot be written", file.display()))
        };
        write("task.json", &serde_json::to_vec(self)?)?;
        write("theta.f32", &le_bytes(&material.theta()?))?;
        for member in 0..self.members {
            let file = dir.join(tokens_file(member));
            self.write_tokens(material, member, &file)
                .with_context(|| format!("{}: cannot be written", file.display()))?;
        }
        Ok(())
    }

    fn write_tokens(&self, material: &Material, member: u32, file: &Path) -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(file)?);
        for step in 0..self.steps {
            for peer in member * self.shares..(member + 1) * self.shares {
                for token in material.batch(peer, step)?.tokens() {
                    out.write_all(&token.to_le_bytes())?;
                }
            }
        }
        Ok(out.flush()?)
    }

    /// # Errors
    /// A file that is not there, or no task.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Task> {
        let file = dir.join("task.json");
        let json = fs::read(&file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&json).with_context(|| file.display().to_string())
    }

    /// Sequences of a member in each step.
    fn sequences(&self) -> usize {
        self.batch_sequences * self.shares as usize
    }
}

fn tokens_file(member: u32) -> String {
    format!("tokens-{member}.u32")
}

/// The batches of a member, from its file.
#[derive(Debug)]
pub(super) struct Tokens {
    file: BufReader<File>,
    sequences: usize,
    bytes: Vec<u8>,
}

impl Tokens {
    /// # Errors
    /// A file that is not there.
    pub(super) fn open(task: &Task, member: u32, dir: &Path) -> anyhow::Result<Tokens> {
        let path = dir.join(tokens_file(member));
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let sequences = task.sequences();
        Ok(Tokens {
            file: BufReader::new(file),
            sequences,
            bytes: vec![0; sequences * (task.sequence_tokens + 1) * 4],
        })
    }

    /// The batches of the next step as one.
    ///
    /// # Errors
    /// After the last step.
    pub(super) fn batch(&mut self) -> anyhow::Result<Batch> {
        self.file
            .read_exact(&mut self.bytes)
            .context("reading the tokens of a step")?;
        let (words, _) = self.bytes.as_chunks::<4>();
        let tokens = words.iter().map(|word| u32::from_le_bytes(*word));
        Ok(Batch::new(tokens.collect(), self.sequences)?)
    }
}

/// # Errors
/// A file that is not there.
pub(super) fn read_theta(dir: &Path) -> anyhow::Result<Vec<f32>> {
    read_parameters(&dir.join("theta.f32"))
}

/// # Errors
/// A file that is not there.
pub(super) fn read_trained(dir: &Path) -> anyhow::Result<Vec<f32>> {
    read_parameters(&dir.join("trained.f32"))
}

/// # Errors
/// A file that cannot be written.
pub(super) fn write_trained(dir: &Path, parameters: &[f32]) -> anyhow::Result<()> {
    let file = dir.join("trained.f32");
    fs::write(&file, le_bytes(parameters)).with_context(|| file.display().to_string())
}

fn read_parameters(file: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    Ok(f32_values(&bytes))
}
