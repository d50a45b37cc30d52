//! The models that a run's config can name, by its `model_type`: the libtorch decoder, or the synthetic one.

use serde::Deserialize;

use crate::data::VOCAB;
use crate::model::{self, CONFIG_BYTES_MAX, ConfigError, ModelConfig, ParameterSpec, Precision};
use crate::synthetic::{self, SyntheticConfig};
#[cfg(feature = "torch")]
use crate::{
    TrainError, Trainer,
    synthetic::SyntheticTrainer,
    torch::{TorchSettings, TorchTrainer},
};

/// A model, read from its config.
#[derive(Debug, Clone, PartialEq)]
pub enum Architecture {
    Llama(ModelConfig),
    Synthetic(SyntheticConfig),
}

impl From<ModelConfig> for Architecture {
    fn from(config: ModelConfig) -> Self {
        Self::Llama(config)
    }
}

#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
}

impl Architecture {
    /// Reads and checks the config of a run.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong { got: json.len() });
        }
        let kind: Kind =
            serde_json::from_slice(json).map_err(|error| ConfigError::Json(error.to_string()))?;
        if kind.model_type.as_deref() == Some(synthetic::MODEL_TYPE) {
            return SyntheticConfig::from_json(json).map(Self::Synthetic);
        }
        let config = ModelConfig::from_hf_json(json)?;
        config.validate()?;
        Ok(Self::Llama(config))
    }

    /// The `config.json` of a checkpoint whose weights are stored in `precision`.
    pub fn to_json(&self, precision: Precision) -> String {
        match self {
            Self::Llama(config) => config.to_hf_json(precision),
            Self::Synthetic(config) => config.to_json(),
        }
    }

    /// # Errors
    /// [`ConfigError::Faults`] with every fault at once.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Llama(config) => config.validate(),
            Self::Synthetic(config) => config.validate(),
        }
    }

    /// Every tensor in flat order.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        match self {
            Self::Llama(config) => config.parameters(),
            Self::Synthetic(config) => config.parameters(),
        }
    }

    /// The first parameters of a run with this seed.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn init(&self, seed: [u8; 32]) -> Result<Vec<f32>, ConfigError> {
        match self {
            Self::Llama(config) => model::init(config, seed),
            Self::Synthetic(config) => config.init(seed),
        }
    }

    /// Token ids are below this.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Llama(config) => config.vocab_size,
            Self::Synthetic(_) => VOCAB,
        }
    }

    /// Longest sequence, in tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Llama(config) => config.max_position_embeddings,
            Self::Synthetic(_) => synthetic::POSITIONS_MAX,
        }
    }

    /// What trains it. A synthetic model has no use for the settings.
    ///
    /// # Errors
    /// [`TrainError::Settings`], [`TrainError::Backend`].
    #[cfg(feature = "torch")]
    pub fn trainer(&self, settings: TorchSettings) -> Result<Box<dyn Trainer>, TrainError> {
        Ok(match self {
            Self::Llama(config) => Box::new(TorchTrainer::new(config.clone(), settings)?),
            Self::Synthetic(config) => Box::new(SyntheticTrainer::new(config)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_type_decides() {
        let synthetic = br#"{"model_type": "gradmesh-synthetic", "elements": [10, 20]}"#;
        let read = Architecture::from_json(synthetic).expect("synthetic config");
        assert!(matches!(read, Architecture::Synthetic(_)));
        assert_eq!(model::elements(&read.parameters()), 30);
        let again = Architecture::from_json(read.to_json(Precision::F32).as_bytes());
        assert_eq!(again, Ok(read));
        let llama = br#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 256}"#;
        let read = Architecture::from_json(llama).expect("llama config");
        assert_eq!((read.vocab(), read.positions()), (256, 2048));
        assert!(Architecture::from_json(br#"{"model_type": "gpt2"}"#).is_err());
        assert!(Architecture::from_json(b"[").is_err());
    }
}
