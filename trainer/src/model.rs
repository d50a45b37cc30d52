//! The shape of a model: Llama-style decoders as Hugging Face's `config.json` describes them.
//!
//! **Flat order.** theta is one flat f32 vector: the tensors of [`ModelConfig::parameters`] one after another, each in
//! row-major order. Every peer derives tile and shard boundaries from that order, so it never changes for a given
//! config. Names are Hugging Face's, letter for letter.
//!
//! **Initial values.** [`init`] is part of the protocol: all peers of a run start from the same bits. Tensor `i` (in
//! flat order) takes its values from ChaCha20 with the run's seed as key and `i` as stream number. Two u64 words make
//! two normal values by Box and Muller: `u1 = (w1 >> 11 + 1) / 2^53`, `u2 = (w2 >> 11) / 2^53`,
//! `r = sqrt(-2 ln u1)`, values `r cos(2 pi u2)` and `r sin(2 pi u2)`, all in f64 with the `libm` crate's `log`, `cos`
//! and `sin` (plain Rust, no platform library, no fused multiply-add), then scaled and rounded once to f32.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// Standard deviation of fresh weights: the `initializer_range` of Llama's published configs.
pub const INIT_STD: f64 = 0.02;

/// Most elements a model may have. A guess with room: 64 times the largest run planned (1 B), and small enough that
/// byte counts of several f32 copies stay far from overflow.
pub const ELEMENTS_MAX: u64 = 1 << 36;

/// Most decoder layers. A guess with room: published Llama models have up to 126.
pub const LAYERS_MAX: usize = 1024;

/// Largest `config.json` that is parsed, in bytes. A guess: published ones are below 4 KiB.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The fields of a Llama `config.json` that decide shapes and arithmetic. Names are Hugging Face's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the SwiGLU block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads` (grouped-query attention).
    pub num_key_value_heads: usize,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm. Default 1e-5, as in Llama 3.
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies. Default 10000, as in Llama 1 and 2.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// True: the output head is the embedding table, and `lm_head.weight` does not exist.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Width of a head; `hidden_size / num_attention_heads` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Activation inside the MLP; only `silu` (SwiGLU) exists here.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
}

fn default_rms_norm_eps() -> f64 {
    1e-5
}

fn default_rope_theta() -> f64 {
    10_000.0
}

fn default_hidden_act() -> String {
    "silu".to_owned()
}

/// Name and shape of one tensor. A linear layer's shape is `[out, in]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
        }
    }

    /// Product of the shape.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Sum of elements over `parameters`: the length of theta.
pub fn elements(parameters: &[ParameterSpec]) -> usize {
    parameters.iter().map(ParameterSpec::elements).sum()
}

/// What is wrong with a model description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("model config has {} fault(s): {}", .0.len(), .0.join("; "))]
    Faults(Vec<String>),
    #[error("config.json has {got} bytes, at most {CONFIG_BYTES_MAX} are read")]
    TooLong { got: usize },
    #[error("config.json does not parse: {0}")]
    Json(String),
}

/// Element type of a stored or computed tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// The name that `transformers` uses in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// The keys of a Hugging Face file that matter here; the others are ignored, as `transformers` does.
#[derive(Deserialize)]
struct HfConfig {
    #[serde(default)]
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_hf_rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<HfRope>,
    rope_scaling: Option<HfRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    head_dim: Option<usize>,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// `transformers.LlamaConfig`'s default.
fn default_positions() -> usize {
    2048
}

/// `transformers.LlamaConfig`'s default; differs from ours, and a file that omits the key means this one.
fn default_hf_rms_norm_eps() -> f64 {
    1e-6
}

#[derive(Deserialize)]
struct HfRope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl HfRope {
    fn scaled(&self) -> Option<&str> {
        self.rope_type
            .as_deref()
            .filter(|rope_type| *rope_type != "default")
    }
}

impl ModelConfig {
    /// Width of one attention head.
    ///
    /// # Panics
    /// When `num_attention_heads` is zero, which [`Self::validate`] refuses.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or_else(|| self.hidden_size / self.num_attention_heads)
    }

    /// Checks everything that later code relies on.
    ///
    /// # Errors
    /// [`ConfigError::Faults`] with every fault at once.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut positive = |name: &str, value: usize| {
            if value == 0 || value > u32::MAX as usize {
                faults.push(format!("{name} is {value}, must be in 1..=4294967295"));
            }
        };
        positive("hidden_size", self.hidden_size);
        positive("intermediate_size", self.intermediate_size);
        positive("num_hidden_layers", self.num_hidden_layers);
        positive("num_attention_heads", self.num_attention_heads);
        positive("num_key_value_heads", self.num_key_value_heads);
        positive("vocab_size", self.vocab_size);
        positive("max_position_embeddings", self.max_position_embeddings);
        if let Some(head_dim) = self.head_dim {
            positive("head_dim", head_dim);
        }
        if self.num_hidden_layers > LAYERS_MAX {
            faults.push(format!(
                "num_hidden_layers is {}, at most {LAYERS_MAX}",
                self.num_hidden_layers
            ));
        }
        if self.num_attention_heads > 0 {
            if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads)
            {
                faults.push(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {}, and head_dim is not given",
                    self.hidden_size, self.num_attention_heads
                ));
            } else if !self.head_dim().is_multiple_of(2) {
                faults.push(format!(
                    "head_dim {} is odd: rotary embedding turns pairs",
                    self.head_dim()
                ));
            }
        }
        if self.num_key_value_heads > 0
            && !self
                .num_attention_heads
                .is_multiple_of(self.num_key_value_heads)
        {
            faults.push(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            faults.push(format!(
                "rms_norm_eps is {}, must be finite and above zero",
                self.rms_norm_eps
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta >= 1.0) {
            faults.push(format!(
                "rope_theta is {}, must be finite and at least 1",
                self.rope_theta
            ));
        }
        if self.hidden_act != "silu" {
            faults.push(format!(
                "hidden_act is {:?}, only \"silu\" exists",
                self.hidden_act
            ));
        }
        if faults.is_empty() {
            match self.checked_elements() {
                Some(elements) if elements <= ELEMENTS_MAX => {}
                Some(elements) => faults.push(format!(
                    "the model has {elements} parameters, at most {ELEMENTS_MAX}"
                )),
                None => faults.push("the number of parameters overflows 64 bits".to_owned()),
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Faults(faults))
        }
    }

    fn checked_elements(&self) -> Option<u64> {
        let wide = |value: usize| u64::try_from(value).ok();
        let hidden = wide(self.hidden_size)?;
        let head = wide(self.head_dim())?;
        let queries = wide(self.num_attention_heads)?.checked_mul(head)?;
        let keys = wide(self.num_key_value_heads)?.checked_mul(head)?;
        let attention = queries
            .checked_add(keys)?
            .checked_mul(2)?
            .checked_mul(hidden)?;
        let mlp = wide(self.intermediate_size)?
            .checked_mul(3)?
            .checked_mul(hidden)?;
        let layer = attention
            .checked_add(mlp)?
            .checked_add(hidden.checked_mul(2)?)?;
        let tables = wide(self.vocab_size)?
            .checked_mul(hidden)?
            .checked_mul(if self.tie_word_embeddings { 1 } else { 2 })?;
        layer
            .checked_mul(wide(self.num_hidden_layers)?)?
            .checked_add(tables)?
            .checked_add(hidden)
    }

    /// Every tensor in flat order (module doc, "Flat order").
    ///
    /// # Panics
    /// When the config was not validated and has no attention heads.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let hidden = self.hidden_size;
        let inner = self.intermediate_size;
        let queries = self.num_attention_heads * self.head_dim();
        let keys = self.num_key_value_heads * self.head_dim();
        let mut specs = vec![ParameterSpec::new(
            "model.embed_tokens.weight",
            [self.vocab_size, hidden],
        )];
        for layer in 0..self.num_hidden_layers {
            let mut push = |name: &str, shape: &[usize]| {
                specs.push(ParameterSpec::new(
                    format!("model.layers.{layer}.{name}.weight"),
                    shape,
                ));
            };
            push("self_attn.q_proj", &[queries, hidden]);
            push("self_attn.k_proj", &[keys, hidden]);
            push("self_attn.v_proj", &[keys, hidden]);
            push("self_attn.o_proj", &[hidden, queries]);
            push("mlp.gate_proj", &[inner, hidden]);
            push("mlp.up_proj", &[inner, hidden]);
            push("mlp.down_proj", &[hidden, inner]);
            push("input_layernorm", &[hidden]);
            push("post_attention_layernorm", &[hidden]);
        }
        specs.push(ParameterSpec::new("model.norm.weight", [hidden]));
        if !self.tie_word_embeddings {
            specs.push(ParameterSpec::new(
                "lm_head.weight",
                [self.vocab_size, hidden],
            ));
        }
        specs
    }

    /// Reads a Hugging Face `config.json` of a Llama model, in the older form (`rope_theta` on top) or the newer one
    /// (`rope_parameters.rope_theta`).
    ///
    /// # Errors
    /// [`ConfigError`]; what this crate cannot compute (biases, scaled rotary frequencies, another model type) is a
    /// fault, never ignored.
    pub fn from_hf_json(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong { got: json.len() });
        }
        let hf: HfConfig =
            serde_json::from_slice(json).map_err(|error| ConfigError::Json(error.to_string()))?;
        let mut faults = Vec::new();
        if let Some(model_type) = hf.model_type.as_deref()
            && model_type != "llama"
        {
            faults.push(format!(
                "model_type is {model_type:?}, only \"llama\" exists"
            ));
        }
        for (name, set) in [
            ("attention_bias", hf.attention_bias),
            ("mlp_bias", hf.mlp_bias),
        ] {
            if set {
                faults.push(format!("{name} is true, biases do not exist here"));
            }
        }
        for (name, rope) in [
            ("rope_parameters", &hf.rope_parameters),
            ("rope_scaling", &hf.rope_scaling),
        ] {
            if let Some(rope_type) = rope.as_ref().and_then(HfRope::scaled) {
                faults.push(format!(
                    "{name}.rope_type is {rope_type:?}, only \"default\" exists"
                ));
            }
        }
        let config = Self {
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            num_hidden_layers: hf.num_hidden_layers,
            num_attention_heads: hf.num_attention_heads,
            num_key_value_heads: hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
            vocab_size: hf.vocab_size,
            max_position_embeddings: hf.max_position_embeddings,
            rms_norm_eps: hf.rms_norm_eps,
            rope_theta: hf
                .rope_parameters
                .as_ref()
                .and_then(|rope| rope.rope_theta)
                .or(hf.rope_theta)
                .unwrap_or_else(default_rope_theta),
            tie_word_embeddings: hf.tie_word_embeddings,
            head_dim: hf.head_dim,
            hidden_act: hf.hidden_act,
        };
        if let Err(ConfigError::Faults(more)) = config.validate() {
            faults.extend(more);
        }
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Faults(faults))
        }
    }

    /// The `config.json` that `transformers` reads: `LlamaForCausalLM` with weights stored in `precision`.
    ///
    /// # Panics
    /// When the config was not validated and has no attention heads.
    pub fn to_hf_json(&self, precision: Precision) -> String {
        let value = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": null,
            "eos_token_id": null,
            "head_dim": self.head_dim(),
            "hidden_act": self.hidden_act,
            "hidden_size": self.hidden_size,
            "initializer_range": INIT_STD,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": precision.torch_name(),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        format!("{value:#}\n")
    }
}

/// The first theta of a run, the same bits on every machine (module doc, "Initial values").
///
/// Norms are 1, matrices have standard deviation [`INIT_STD`], divided by `sqrt(2 layers)` for the projections that
/// write into the residual stream (`o_proj`, `down_proj`; GPT-2, section 2.3). Cost: about 25 ns per element.
///
/// # Errors
/// [`ConfigError::Faults`] when the config is not valid.
pub fn init(config: &ModelConfig, seed: [u8; 32]) -> Result<Vec<f32>, ConfigError> {
    config.validate()?;
    let specs = config.parameters();
    let residual = libm::sqrt(2.0 * config.num_hidden_layers as f64);
    let mut theta = Vec::with_capacity(elements(&specs));
    for (index, spec) in specs.iter().enumerate() {
        let into_residual =
            spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
        if spec.shape.len() == 1 {
            theta.extend(std::iter::repeat_n(1.0f32, spec.elements()));
        } else {
            let std = if into_residual {
                INIT_STD / residual
            } else {
                INIT_STD
            };
            push_normal(&mut theta, seed, index as u64, spec.elements(), std);
        }
    }
    Ok(theta)
}

/// Appends `count` normal values of standard deviation `std` from stream `stream` of `seed`.
pub(crate) fn push_normal(out: &mut Vec<f32>, seed: [u8; 32], stream: u64, count: usize, std: f64) {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let mut rng = ChaCha20Rng::from_seed(seed);
    rng.set_stream(stream);
    let mut left = count;
    while left > 0 {
        let u1 = ((rng.next_u64() >> 11) + 1) as f64 * UNIT;
        let u2 = (rng.next_u64() >> 11) as f64 * UNIT;
        let radius = libm::sqrt(-2.0 * libm::log(u1)) * std;
        let angle = 2.0 * std::f64::consts::PI * u2;
        out.push((radius * libm::cos(angle)) as f32);
        if left > 1 {
            out.push((radius * libm::sin(angle)) as f32);
        }
        left = left.saturating_sub(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn tiny(tied: bool) -> ModelConfig {
        ModelConfig {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            vocab_size: 32,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: tied,
            head_dim: None,
            hidden_act: "silu".to_owned(),
        }
    }

    #[test]
    fn parameters_follow_hugging_face_names_and_shapes() {
        let specs = tiny(false).parameters();
        let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names.len(), 1 + 2 * 9 + 2);
        assert_eq!(names[0], "model.embed_tokens.weight");
        assert_eq!(names[1], "model.layers.0.self_attn.q_proj.weight");
        assert_eq!(names[18], "model.layers.1.post_attention_layernorm.weight");
        assert_eq!(&names[19..], ["model.norm.weight", "lm_head.weight"]);
        assert_eq!(specs[2].shape, [8, 16], "k_proj has two heads of four");
        assert_eq!(specs[7].shape, [16, 24], "down_proj is [hidden, inner]");
        assert_eq!(tiny(true).parameters().len(), specs.len() - 1);
        for config in [tiny(false), tiny(true)] {
            assert_eq!(
                config.checked_elements(),
                Some(elements(&config.parameters()) as u64)
            );
        }
    }

    #[test]
    fn validate_lists_every_fault_at_once() {
        let mut config = tiny(false);
        config.num_key_value_heads = 3;
        config.hidden_act = "gelu".to_owned();
        config.rms_norm_eps = f64::NAN;
        config.hidden_size = 0;
        let Err(ConfigError::Faults(faults)) = config.validate() else {
            panic!("four faults were accepted");
        };
        assert_eq!(faults.len(), 4, "{faults:?}");
    }

    #[test]
    fn oversized_models_are_refused_without_overflow() {
        let mut config = tiny(false);
        config.hidden_size = u32::MAX as usize - 3;
        config.vocab_size = u32::MAX as usize;
        config.intermediate_size = u32::MAX as usize;
        config.num_hidden_layers = 1000;
        config.head_dim = Some(u32::MAX as usize - 1);
        assert!(matches!(config.validate(), Err(ConfigError::Faults(_))));
    }

    #[test]
    fn hf_json_round_trips_and_reads_both_rope_forms() {
        let config = ModelConfig {
            rope_theta: 500_000.0,
            head_dim: Some(8),
            ..tiny(true)
        };
        let json = config.to_hf_json(Precision::F32);
        assert_eq!(
            ModelConfig::from_hf_json(json.as_bytes()),
            Ok(config.clone())
        );

        let mut value: serde_json::Value = serde_json::from_str(&json).expect("own json");
        value["rope_theta"] = serde_json::Value::Null;
        value["rope_parameters"] =
            serde_json::json!({"rope_theta": 500_000.0, "rope_type": "default"});
        assert_eq!(
            ModelConfig::from_hf_json(value.to_string().as_bytes()),
            Ok(config)
        );

        value["rope_parameters"]["rope_type"] = "llama3".into();
        value["attention_bias"] = true.into();
        let Err(ConfigError::Faults(faults)) =
            ModelConfig::from_hf_json(value.to_string().as_bytes())
        else {
            panic!("scaled rope and biases were accepted");
        };
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn init_is_pinned_and_has_the_stated_spread() {
        let config = tiny(false);
        let theta = init(&config, [7; 32]).expect("valid config");
        assert_eq!(theta.len(), elements(&config.parameters()));
        let bytes: Vec<u8> = theta.iter().flat_map(|value| value.to_le_bytes()).collect();
        // Golden value: a change here makes new peers start elsewhere than old ones.
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "d50995da5849261cacb7677de51f4838858c6bf776c8d4adae1364be03211346"
        );
        let embedding = &theta[..32 * 16];
        let variance: f64 = embedding
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            / embedding.len() as f64;
        // The sample variance of n normal values has relative deviation sqrt(2/n) = 6.3% at n = 512; four of them.
        let relative = variance / (INIT_STD * INIT_STD) - 1.0;
        assert!(relative.abs() < 0.25, "relative variance error {relative}");
        assert!(init(&config, [8; 32]).expect("valid config") != theta);
    }
}
