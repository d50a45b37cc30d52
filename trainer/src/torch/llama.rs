//! The forward pass of a Llama decoder (Touvron et al., 2023; conventions of Hugging Face's `LlamaForCausalLM`).
//!
//! Shapes: B sequences, T positions, D `hidden_size`, I `intermediate_size`, A query heads, K key heads of width W.
//! Tensors that are neighbours in the flat buffer and read the same input are one matrix product here: q, k and v are
//! `[(A + 2K) W, D]`, gate and up `[2 I, D]`.

use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::model::{ModelConfig, Precision};

/// Labels that cross entropy skips; no token id is negative. The value is libtorch's default.
const IGNORE_INDEX: i64 = -100;

/// Keeps no parameters: they come in as one flat buffer with every call.
#[derive(Debug)]
pub(super) struct Llama {
    config: ModelConfig,
    kind: Kind,
    device: Device,
    /// Lengths of the pieces that the flat buffer is cut into, in order; see [`Self::cut`].
    pieces: Vec<i64>,
    /// Rotary tables `[positions, 1, W]` in the compute type, both halves filled, for the longest sequence so far: a
    /// config may allow far longer ones than memory holds tables for.
    cos: Tensor,
    sin: Tensor,
}

/// Views of one layer's weights.
struct Layer {
    qkv: Tensor,
    o: Tensor,
    gate_up: Tensor,
    down: Tensor,
    attention_norm: Tensor,
    mlp_norm: Tensor,
}

/// Views of all weights.
struct Weights {
    embed: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Option<Tensor>,
}

impl Llama {
    /// `config` is valid.
    pub(super) fn new(
        config: ModelConfig,
        device: Device,
        precision: Precision,
    ) -> Result<Self, TchError> {
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let mut llama = Self {
            kind,
            device,
            pieces: pieces(&config),
            cos: Tensor::new(),
            sin: Tensor::new(),
            config,
        };
        llama.fill_tables(1)?;
        Ok(llama)
    }

    /// Makes the rotary tables long enough for sequences of `positions`; call before a forward pass.
    pub(super) fn reserve(&mut self, positions: usize) -> Result<(), TchError> {
        let held = self.cos.size3()?.0;
        if held < positions as i64 {
            let longer = positions.next_power_of_two();
            self.fill_tables(
                longer
                    .min(self.config.max_position_embeddings)
                    .max(positions),
            )?;
        }
        Ok(())
    }

    fn fill_tables(&mut self, positions: usize) -> Result<(), TchError> {
        let (cos, sin) = rotary(&self.config, positions)?;
        self.cos = cos.f_to(self.device)?.f_to_kind(self.kind)?;
        self.sin = sin.f_to(self.device)?.f_to_kind(self.kind)?;
        Ok(())
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sum of the cross entropy in nats over all positions: a scalar. `inputs` and `targets`: i64 `[B, T]`.
    pub(super) fn loss_sum(
        &self,
        flat: &Tensor,
        inputs: &Tensor,
        targets: &Tensor,
    ) -> Result<Tensor, TchError> {
        let vocab = self.config.vocab_size as i64;
        self.logits(flat, inputs)?
            .f_view([-1, vocab])?
            .f_cross_entropy_loss(
                &targets.f_view([-1])?,
                None::<&Tensor>,
                Reduction::Sum,
                IGNORE_INDEX,
                0.0,
            )
    }

    /// f32 `[B, T, vocab]` for `ids` of `[B, T]`, with [`Self::reserve`] called for T.
    pub(super) fn logits(&self, flat: &Tensor, ids: &Tensor) -> Result<Tensor, TchError> {
        let weights = self.cut(&flat.f_to_kind(self.kind)?)?;
        let (batch, positions) = ids.size2()?;
        let cos = self.cos.f_narrow(0, 0, positions)?;
        let sin = self.sin.f_narrow(0, 0, positions)?;
        let mut x = Tensor::f_embedding(&weights.embed, ids, -1, false, false)?;
        for layer in &weights.layers {
            let normed = self.norm(&x, &layer.attention_norm)?;
            let attended = self.attention(&normed, layer, (batch, positions), (&cos, &sin))?;
            x = x.f_add(&attended)?;
            let normed = self.norm(&x, &layer.mlp_norm)?;
            let mut halves = linear(&normed, &layer.gate_up)?.f_chunk(2, -1)?;
            let (up, gate) = (halves.pop(), halves.pop());
            let (Some(gate), Some(up)) = (gate, up) else {
                return Err(TchError::Shape("gate_up did not split in two".to_owned()));
            };
            x = x.f_add(&linear(&gate.f_silu()?.f_mul(&up)?, &layer.down)?)?;
        }
        let x = self.norm(&x, &weights.norm)?;
        linear(&x, weights.head.as_ref().unwrap_or(&weights.embed))?.f_to_kind(Kind::Float)
    }

    /// Causal attention over `[B, T, D]`.
    fn attention(
        &self,
        x: &Tensor,
        layer: &Layer,
        (batch, positions): (i64, i64),
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<Tensor, TchError> {
        let width = self.config.head_dim() as i64;
        let queries = self.config.num_attention_heads as i64;
        let keys = self.config.num_key_value_heads as i64;
        let heads = linear(x, &layer.qkv)?.f_view([batch, positions, queries + 2 * keys, width])?;
        let mut parts = heads.f_split_with_sizes([queries + keys, keys], 2)?;
        let (value, turned) = (parts.pop(), parts.pop());
        let (Some(turned), Some(value)) = (turned, value) else {
            return Err(TchError::Shape("qkv did not split in two".to_owned()));
        };
        let turned = rotate(&turned, cos, sin)?.f_transpose(1, 2)?;
        let query = turned.f_narrow(1, 0, queries)?;
        let key = turned.f_narrow(1, queries, keys)?;
        let value = value.f_transpose(1, 2)?;
        Tensor::f_scaled_dot_product_attention(
            &query,
            &key,
            &value,
            None::<&Tensor>,
            0.0,
            true,
            None::<f64>,
            queries != keys,
        )?
        .f_transpose(1, 2)?
        .f_reshape([batch, positions, queries * width])
        .and_then(|mixed| linear(&mixed, &layer.o))
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
        x.f_rms_norm(
            [self.config.hidden_size as i64],
            Some(weight),
            self.config.rms_norm_eps,
        )
    }

    /// Cuts the flat buffer into views. One split, so that the backward pass writes one flat gradient.
    fn cut(&self, flat: &Tensor) -> Result<Weights, TchError> {
        let hidden = self.config.hidden_size as i64;
        let mut views = flat
            .f_split_with_sizes(self.pieces.as_slice(), 0)?
            .into_iter();
        let mut next = || {
            views
                .next()
                .ok_or_else(|| TchError::Shape("flat buffer has too few pieces".to_owned()))
        };
        let embed = next()?.f_view([-1, hidden])?;
        let mut layers = Vec::with_capacity(self.config.num_hidden_layers);
        for _ in 0..self.config.num_hidden_layers {
            layers.push(Layer {
                qkv: next()?.f_view([-1, hidden])?,
                o: next()?.f_view([hidden, -1])?,
                gate_up: next()?.f_view([-1, hidden])?,
                down: next()?.f_view([hidden, -1])?,
                attention_norm: next()?,
                mlp_norm: next()?,
            });
        }
        let norm = next()?;
        let head = if self.config.tie_word_embeddings {
            None
        } else {
            Some(next()?.f_view([-1, hidden])?)
        };
        Ok(Weights {
            embed,
            layers,
            norm,
            head,
        })
    }
}

fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear(weight, None::<&Tensor>)
}

/// Turns pairs `(i, i + W/2)` of each head ("rotate_half"); `x`: `[B, T, heads, W]`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    let mut halves = x.f_chunk(2, -1)?;
    let (high, low) = (halves.pop(), halves.pop());
    let (Some(low), Some(high)) = (low, high) else {
        return Err(TchError::Shape("a head did not split in two".to_owned()));
    };
    let crossed = Tensor::f_cat(&[high.f_neg()?, low], -1)?;
    x.f_mul(cos)?.f_add(&crossed.f_mul(sin)?)
}

fn pieces(config: &ModelConfig) -> Vec<i64> {
    let hidden = config.hidden_size as i64;
    let inner = config.intermediate_size as i64;
    let table = config.vocab_size as i64 * hidden;
    let width = config.head_dim() as i64;
    let queries = config.num_attention_heads as i64 * width;
    let keys = config.num_key_value_heads as i64 * width;
    let mut pieces = vec![table];
    for _ in 0..config.num_hidden_layers {
        pieces.extend([
            (queries + 2 * keys) * hidden,
            hidden * queries,
            2 * inner * hidden,
            hidden * inner,
            hidden,
            hidden,
        ]);
    }
    pieces.push(hidden);
    if !config.tie_word_embeddings {
        pieces.push(table);
    }
    pieces
}

/// cos and sin of `position * theta^(-2i/W)`, f32 `[positions, 1, W]`, the W/2 values written twice.
///
/// Frequencies and angles are rounded to f32 as Hugging Face does; the functions are `libm`'s in f64, so the tables are
/// the same on every machine.
fn rotary(config: &ModelConfig, positions: usize) -> Result<(Tensor, Tensor), TchError> {
    let width = config.head_dim();
    let frequencies: Vec<f32> = (0..width / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / width as f32;
            1.0 / libm::pow(config.rope_theta, f64::from(exponent)) as f32
        })
        .collect();
    let mut cos = Vec::with_capacity(positions * width);
    let mut sin = Vec::with_capacity(positions * width);
    for position in 0..positions {
        for _half in 0..2 {
            for frequency in &frequencies {
                let angle = f64::from(position as f32 * frequency);
                cos.push(libm::cos(angle) as f32);
                sin.push(libm::sin(angle) as f32);
            }
        }
    }
    let shape = [positions as i64, 1, width as i64];
    Ok((
        Tensor::f_from_slice(&cos)?.f_view(shape)?,
        Tensor::f_from_slice(&sin)?.f_view(shape)?,
    ))
}
