//! The contract between the daemon (or the simulator) and whatever trains.
//!
//! **Order of a round.** `train` with the round's theta, `local` for the update, next round. A round may take several calls,
//! each from the `local` of the one before and with `first_step` where that ended. The inner optimizer's state stays in the
//! trainer between calls; `inner_state` and `set_inner_state` move it to disk or to an auditor.

use crate::model::ParameterSpec;

/// Sequences of equal length, row after row. Position `i` of a row is the input whose target is position `i + 1`, so
/// a row of `seq_len + 1` tokens trains `seq_len` predictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    sequences: usize,
}

/// Why tokens are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error(
        "{tokens} tokens do not make {sequences} sequences of equal length, two tokens at least"
    )]
    Shape { tokens: usize, sequences: usize },
}

impl Batch {
    /// `tokens`: `sequences` rows of `seq_len + 1` ids.
    ///
    /// # Errors
    /// [`BatchError::Shape`] unless the rows are of equal length and have at least two tokens each.
    pub fn new(tokens: Vec<u32>, sequences: usize) -> Result<Self, BatchError> {
        let fits = sequences > 0
            && tokens.len().is_multiple_of(sequences)
            && tokens.len() / sequences >= 2;
        if fits {
            Ok(Self { tokens, sequences })
        } else {
            Err(BatchError::Shape {
                tokens: tokens.len(),
                sequences,
            })
        }
    }

    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Predictions per sequence: one less than the tokens of a row.
    pub fn seq_len(&self) -> usize {
        self.tokens.len() / self.sequences - 1
    }

    /// All rows, `sequences * (seq_len + 1)` ids.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn rows(&self) -> std::slice::ChunksExact<'_, u32> {
        self.tokens.chunks_exact(self.seq_len() + 1)
    }

    /// Number of predictions: what loss is averaged over and work is counted in.
    pub fn predictions(&self) -> u64 {
        (self.sequences * self.seq_len()) as u64
    }

    /// # Errors
    /// [`TrainError::Token`] for the first id outside the vocabulary, [`TrainError::SequenceLength`] for rows longer
    /// than the model's positions.
    pub(crate) fn check(&self, vocab: usize, seq_len_max: usize) -> Result<(), TrainError> {
        if self.seq_len() > seq_len_max {
            return Err(TrainError::SequenceLength {
                got: self.seq_len(),
                max: seq_len_max,
            });
        }
        check_tokens(&self.tokens, vocab)
    }
}

pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<(), TrainError> {
    match tokens.iter().find(|token| **token as usize >= vocab) {
        Some(token) => Err(TrainError::Token {
            token: *token,
            vocab,
        }),
        None => Ok(()),
    }
}

pub(crate) fn check_length(
    what: &'static str,
    got: usize,
    expected: usize,
) -> Result<(), TrainError> {
    if got == expected {
        Ok(())
    } else {
        Err(TrainError::Length {
            what,
            got,
            expected,
        })
    }
}

/// Where the batches of a round come from. An auditor that replays a segment asks for the same steps and must get the
/// same tokens.
pub trait BatchSource {
    /// The batch of step `step` of this round (from 0).
    ///
    /// # Errors
    /// A message for the operator; training stops with [`TrainError::Source`].
    fn batch(&mut self, step: u32) -> Result<Batch, String>;
}

impl<F: FnMut(u32) -> Result<Batch, String>> BatchSource for F {
    fn batch(&mut self, step: u32) -> Result<Batch, String> {
        self(step)
    }
}

/// A stretch of inner steps: a whole round, or one segment of it in an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainTask {
    /// First step within the round; 0 except in an audit or after an interruption.
    pub first_step: u32,
    /// Inner steps to do.
    pub steps: u32,
    /// Inner steps of the run before `first_step`, the same number for all peers: the learning rate follows it.
    pub global_step: u64,
}

/// What one inner step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Step within the round.
    pub step: u32,
    /// Mean nats per token before the step.
    pub loss: f32,
    /// L2 norm of the gradient before clipping.
    pub gradient_norm: f32,
    pub learning_rate: f64,
    /// Predictions trained in this call so far.
    pub tokens: u64,
}

/// What a call of [`Trainer::train`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainReport {
    /// Steps done; fewer than asked for when `keep_going` said stop.
    pub steps: u32,
    /// Predictions trained.
    pub tokens: u64,
    /// Mean nats per token of the first step, before it.
    pub loss_first: f32,
    /// Mean nats per token of the last step, before it.
    pub loss_last: f32,
}

/// Why training stopped. After an error the local parameters are of no use; the inner state is that of the last
/// complete step.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{what} has {got} elements, the model has {expected}")]
    Length {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("sequence of {got} tokens, the model has {max} positions")]
    SequenceLength { got: usize, max: usize },
    #[error("a task of zero steps trains nothing")]
    NoSteps,
    #[error("no batch for step {step}: {reason}")]
    Source { step: u32, reason: String },
    #[error(
        "step {step}: loss {loss}, gradient norm {gradient_norm}: not finite; lower the learning rate, or resync if \
         theta came from a peer"
    )]
    NotFinite {
        step: u32,
        loss: f32,
        gradient_norm: f32,
    },
    #[error("loss of the given parameters is {0}, not finite")]
    LossNotFinite(f32),
    #[error("L2 norm of the given gradient is {0}, not finite")]
    GradientNotFinite(f32),
    #[error("settings have {} fault(s): {}", .0.len(), .0.join("; "))]
    Settings(Vec<String>),
    #[error("backend: {0}")]
    Backend(String),
}

/// Why saved inner state was refused; the state in place is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("inner state has {got} bytes, at most {limit} belong to this model")]
    TooLong { got: usize, limit: usize },
    #[error("inner state is malformed: {0}")]
    Format(String),
    #[error("inner state: element {index} of {name} is out of range")]
    Value { name: &'static str, index: usize },
    #[error("inner state does not go to the device: {0}")]
    Backend(String),
}

/// H local steps. One per daemon, owned by its worker thread.
///
/// The same theta, inner state, task and batches give the same local parameters, bit for bit, on the same build, device
/// class and thread count; [`mod@crate::reference`] gives the same bits everywhere.
pub trait Trainer: Send {
    /// Tensors in flat order; theta has the sum of their elements.
    fn parameters(&self) -> &[ParameterSpec];

    /// Token ids are `0..vocab()`.
    fn vocab(&self) -> usize;

    /// Sets the local parameters to `theta` and does `task.steps` inner steps from there.
    ///
    /// `keep_going` is called after every step; `false` ends the call early with a correct report.
    ///
    /// # Errors
    /// [`TrainError`]; wrong lengths and tokens are found before anything changes.
    fn train(
        &mut self,
        theta: &[f32],
        task: &TrainTask,
        batches: &mut dyn BatchSource,
        keep_going: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<TrainReport, TrainError>;

    /// The local parameters after the last [`Self::train`], flat; zeros before the first.
    fn local(&self) -> Vec<f32>;

    /// [`Self::local`] for a caller that asks once per call of [`Self::train`]: a trainer that can gives its copy away.
    fn take_local(&mut self) -> Vec<f32> {
        self.local()
    }

    /// Mean nats per token of `theta` on `batch`. Changes neither local parameters nor inner state.
    ///
    /// # Errors
    /// [`TrainError`], also when the loss is not finite.
    fn loss(&mut self, theta: &[f32], batch: &Batch) -> Result<f32, TrainError>;

    /// Scores before softmax for one sequence: `tokens.len()` rows of `vocab()`. For tests and export.
    ///
    /// # Errors
    /// [`TrainError`] for wrong lengths or tokens.
    fn logits(&mut self, theta: &[f32], tokens: &[u32]) -> Result<Vec<f32>, TrainError>;

    /// The inner optimizer's state as safetensors; equal states give equal bytes.
    ///
    /// # Errors
    /// [`TrainError::Backend`] when the state cannot be copied from the device.
    fn inner_state(&self) -> Result<Vec<u8>, TrainError>;

    /// Restores [`Self::inner_state`].
    ///
    /// # Errors
    /// [`StateError`] for bytes of another model or damaged ones; then nothing changed.
    fn set_inner_state(&mut self, bytes: &[u8]) -> Result<(), StateError>;
}
