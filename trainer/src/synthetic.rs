//! A model that learns nothing: flat tensors of chosen sizes, whose training gives pseudo-random updates after a chosen
//! time. With it a run measures the exchange alone, or rehearses the links of a planned one without a GPU.
//!
//! A run names it by its model config: `{"model_type": "gradmesh-synthetic", "elements": [12500000], "step_ms": 50}`.
//!
//! What a call trains is a function of theta, of the tokens of its batches, which differ from peer to peer and from
//! round to round, and of nothing else. Each element moves by a value that is uniform in `±UPDATE_ABS_MAX`: the worst
//! case for a codec, without the regularities of real updates. Reports have the constant loss [`LOSS`].

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::data::VOCAB;
use crate::model::{ConfigError, ELEMENTS_MAX, ParameterSpec, elements};
use crate::training::{
    Batch, BatchSource, StateError, StepReport, TrainError, TrainReport, TrainTask, Trainer,
    check_length, check_tokens,
};

/// The `model_type` of its config.
pub const MODEL_TYPE: &str = "gradmesh-synthetic";

/// Nats per token of all reports: that of a byte model which knows nothing, ln 256.
pub const LOSS: f32 = 5.545_177;

/// Largest change of an element in a round: of the size that a round of AdamW makes.
const UPDATE_ABS_MAX: f32 = 1e-2;

/// Longest sequences: those of any run that a byte corpus feeds.
pub const POSITIONS_MAX: usize = 1 << 16;

/// Most tensors. A guess, several times those of the largest published models.
const TENSORS_MAX: usize = 1 << 12;

/// Longest pause of a step: an hour.
const STEP_MS_MAX: u64 = 3_600_000;

/// What a synthetic model looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// [`MODEL_TYPE`].
    model_type: String,
    /// Elements of each tensor.
    pub elements: Vec<usize>,
    /// What each step takes, most of it a pause in the place of computing. Default 0.
    #[serde(default)]
    pub step_ms: u64,
}

impl SyntheticConfig {
    pub fn new(elements: Vec<usize>, step_ms: u64) -> Self {
        Self {
            model_type: MODEL_TYPE.to_owned(),
            elements,
            step_ms,
        }
    }

    /// Reads and checks a config.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self =
            serde_json::from_slice(json).map_err(|error| ConfigError::Json(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// What [`Self::from_json`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and a name serialise")
    }

    /// # Errors
    /// [`ConfigError::Faults`] with every fault at once.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if self.model_type != MODEL_TYPE {
            let found = &self.model_type;
            faults.push(format!("model_type is {found:?}, must be {MODEL_TYPE:?}"));
        }
        let tensors = self.elements.len();
        if tensors == 0 || tensors > TENSORS_MAX {
            faults.push(format!(
                "elements names {tensors} tensors, must be 1 to {TENSORS_MAX}"
            ));
        }
        if let Some(empty) = self.elements.iter().position(|elements| *elements == 0) {
            faults.push(format!("elements: tensor {empty} is empty"));
        }
        let sum = self.elements.iter().try_fold(0u64, |sum, elements| {
            sum.checked_add(u64::try_from(*elements).ok()?)
        });
        if sum.is_none_or(|sum| sum > ELEMENTS_MAX) {
            faults.push(format!("elements: together above {ELEMENTS_MAX}"));
        }
        if self.step_ms > STEP_MS_MAX {
            let step_ms = self.step_ms;
            faults.push(format!("step_ms is {step_ms}, at most {STEP_MS_MAX}"));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Faults(faults))
        }
    }

    /// Every tensor in flat order.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let tensors = self.elements.iter().enumerate();
        tensors
            .map(|(index, elements)| {
                ParameterSpec::new(format!("synthetic.{index}.weight"), [*elements])
            })
            .collect()
    }

    /// The first parameters of a run.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn init(&self, seed: [u8; 32]) -> Result<Vec<f32>, ConfigError> {
        self.validate()?;
        let mut theta = vec![0.0; elements(&self.parameters())];
        add_noise(&mut theta, &seed);
        Ok(theta)
    }
}

/// Adds to each element a value that is uniform in `±UPDATE_ABS_MAX`: a function of `key` and the element's place.
fn add_noise(values: &mut [f32], key: &[u8; 32]) {
    let (words, _) = key.as_chunks::<8>();
    let mut state = words.iter().fold(0, |folded: u64, word| {
        folded.rotate_left(17) ^ u64::from_le_bytes(*word)
    });
    // A signed 32-bit number over 2^31 is in [-1, 1).
    let unit = UPDATE_ABS_MAX / (1u32 << 31) as f32;
    for pair in values.chunks_mut(2) {
        // SplitMix64 (Steele, Lea and Flood, 2014): one multiplication deep per word, so that it is no bottleneck.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        for (value, half) in pair.iter_mut().zip([word as u32, (word >> 32) as u32]) {
            *value += unit * half.cast_signed() as f32;
        }
    }
}

/// The [`Trainer`] of a [`SyntheticConfig`]. It has no inner state.
#[derive(Debug)]
pub struct SyntheticTrainer {
    specs: Vec<ParameterSpec>,
    elements: usize,
    step: Duration,
    local: Vec<f32>,
}

impl SyntheticTrainer {
    /// # Errors
    /// [`TrainError::Settings`] with every fault.
    pub fn new(config: &SyntheticConfig) -> Result<Self, TrainError> {
        if let Err(error) = config.validate() {
            return Err(TrainError::Settings(vec![error.to_string()]));
        }
        let specs = config.parameters();
        Ok(Self {
            elements: elements(&specs),
            specs,
            step: Duration::from_millis(config.step_ms),
            local: Vec::new(),
        })
    }

    /// The local parameters after batches whose tokens `key` has taken in.
    fn train_to(&mut self, theta: &[f32], key: &blake3::Hasher) {
        self.local.clear();
        self.local.extend_from_slice(theta);
        add_noise(&mut self.local, key.finalize().as_bytes());
    }

    fn check(&self, theta: &[f32], batch: &Batch) -> Result<(), TrainError> {
        check_length("theta", theta.len(), self.elements)?;
        batch.check(VOCAB, POSITIONS_MAX)
    }
}

impl Trainer for SyntheticTrainer {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    /// Takes `step_ms` for each step, most of which it sleeps.
    fn train(
        &mut self,
        theta: &[f32],
        task: &TrainTask,
        batches: &mut dyn BatchSource,
        keep_going: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<TrainReport, TrainError> {
        check_length("theta", theta.len(), self.elements)?;
        if task.steps == 0 {
            return Err(TrainError::NoSteps);
        }
        let mut report = TrainReport {
            steps: 0,
            tokens: 0,
            loss_first: LOSS,
            loss_last: LOSS,
        };
        let mut key = blake3::Hasher::new();
        for step in (task.first_step..).take(task.steps as usize) {
            let is_last = report.steps + 1 == task.steps;
            let began = Instant::now();
            let batch = batches
                .batch(step)
                .map_err(|reason| TrainError::Source { step, reason })?;
            self.check(theta, &batch)?;
            for token in batch.tokens() {
                key.update(&token.to_le_bytes());
            }
            if is_last {
                // Before the pause, so that what is measured after it is the exchange alone.
                self.train_to(theta, &key);
            }
            std::thread::sleep(self.step.saturating_sub(began.elapsed()));
            report.steps += 1;
            report.tokens += batch.predictions();
            let told = StepReport {
                step,
                loss: LOSS,
                gradient_norm: 1.0,
                learning_rate: 0.0,
                tokens: report.tokens,
            };
            if !keep_going(&told) && !is_last {
                self.train_to(theta, &key);
                break;
            }
        }
        Ok(report)
    }

    fn local(&self) -> Vec<f32> {
        match self.local.is_empty() {
            true => vec![0.0; self.elements],
            false => self.local.clone(),
        }
    }

    fn take_local(&mut self) -> Vec<f32> {
        match self.local.is_empty() {
            true => vec![0.0; self.elements],
            false => std::mem::take(&mut self.local),
        }
    }

    fn loss(&mut self, theta: &[f32], batch: &Batch) -> Result<f32, TrainError> {
        self.check(theta, batch)?;
        Ok(LOSS)
    }

    /// Zeros: every token is as likely as the others, which is what [`LOSS`] says.
    fn logits(&mut self, theta: &[f32], tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        check_length("theta", theta.len(), self.elements)?;
        check_tokens(tokens, VOCAB)?;
        Ok(vec![0.0; tokens.len() * VOCAB])
    }

    fn inner_state(&self) -> Result<Vec<u8>, TrainError> {
        Ok(Vec::new())
    }

    fn set_inner_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        match bytes.len() {
            0 => Ok(()),
            got => Err(StateError::TooLong { got, limit: 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(trainer: &mut SyntheticTrainer, theta: &[f32], token: u32) -> Vec<f32> {
        let task = TrainTask {
            first_step: 0,
            steps: 2,
            global_step: 0,
        };
        let mut batches = |_| Batch::new(vec![token; 6], 2).map_err(|error| error.to_string());
        let report = trainer
            .train(theta, &task, &mut batches, &mut |_| true)
            .expect("training");
        assert_eq!((report.steps, report.tokens), (2, 8));
        let local = trainer.local();
        assert_eq!(trainer.take_local(), local);
        local
    }

    #[test]
    fn updates_follow_the_batches_and_fill_their_range() {
        let config = SyntheticConfig::new(vec![5000, 7], 0);
        let mut trainer = SyntheticTrainer::new(&config).expect("valid config");
        let theta = config.init([1; 32]).expect("valid config");
        let one = train(&mut trainer, &theta, 1);
        assert_eq!(one, train(&mut trainer, &theta, 1));
        assert_ne!(one, train(&mut trainer, &theta, 2));
        let moves: Vec<f32> = theta.iter().zip(&one).map(|(t, l)| l - t).collect();
        // Sums near 0.02 round by 1e-9 at most.
        let limit = UPDATE_ABS_MAX * 1.0001;
        assert!(moves.iter().all(|value| value.abs() <= limit));
        for quarter in 0..4 {
            let from = UPDATE_ABS_MAX * (quarter as f32 / 2.0 - 1.0);
            let inside = from..from + UPDATE_ABS_MAX / 2.0;
            let count = moves.iter().filter(|value| inside.contains(value)).count();
            // 5007 / 4, standard deviation 31: five of them.
            assert!((1097..1407).contains(&count), "quarter {quarter}: {count}");
        }
    }

    #[test]
    fn loss_and_logits_agree() {
        let config = SyntheticConfig::new(vec![3], 0);
        let mut trainer = SyntheticTrainer::new(&config).expect("valid config");
        let batch = Batch::new(vec![1, 2], 1).expect("batch");
        assert_eq!(trainer.loss(&[0.0; 3], &batch).expect("loss"), LOSS);
        assert_eq!(
            trainer.logits(&[0.0; 3], &[1]).expect("logits").len(),
            VOCAB
        );
        assert!((LOSS - (VOCAB as f32).ln()).abs() < 1e-6);
        assert!(trainer.loss(&[0.0; 2], &batch).is_err());
    }

    #[test]
    fn configs_are_read_back_and_faults_listed_together() {
        let config = SyntheticConfig::new(vec![10, 20], 5);
        assert_eq!(
            SyntheticConfig::from_json(config.to_json().as_bytes()),
            Ok(config)
        );
        let bad = SyntheticConfig::new(vec![usize::MAX, 0], u64::MAX);
        let Err(ConfigError::Faults(faults)) = bad.validate() else {
            panic!("accepted");
        };
        assert_eq!(faults.len(), 3, "{faults:?}");
        let unknown = br#"{"model_type": "gradmesh-synthetic", "elements": [1], "wings": 2}"#;
        assert!(SyntheticConfig::from_json(unknown).is_err());
    }
}
