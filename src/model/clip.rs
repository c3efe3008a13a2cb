//! The transformer that CLIP's text and image towers share: pre-norm layers of self-attention and an MLP.
//!
//! Source: transformers 5.23 `models/clip/modeling_clip.py`, `CLIPEncoder` and below.

use super::checkpoint::Weights;
use super::config::{check_layers, check_sizes};
use super::layers::{Activation, LayerNorm, Linear, Mask, attention};
use crate::bad_input;
use anyhow::Result;
use tch::Tensor;

/// The keys of a CLIP configuration that describe its transformer.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Width of a token.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// The MLP's activation.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
}

impl EncoderConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names the key.
    pub fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        if self.hidden_size % self.num_attention_heads != 0 {
            let (size, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(bad_input!("hidden_size ({size}) is not a multiple of num_attention_heads ({heads})"));
        }
        if !(self.layer_norm_eps >= 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(bad_input!("layer_norm_eps is {}, it must be a small positive number", self.layer_norm_eps));
        }
        self.activation().map(drop)
    }

    fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => Err(bad_input!("hidden_act {other:?} is not supported, only \"quick_gelu\" and \"gelu\" are")),
        }
    }
}

/// A stack of [`EncoderLayer`]s.
#[derive(Debug)]
pub struct Encoder {
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    /// Reads `layers.0` and on.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        let layers = weights.sub("layers");
        let load = |layer: i64| EncoderLayer::load(&layers.sub(&layer.to_string()), config);
        Ok(Self { layers: (0..config.num_hidden_layers).map(load).collect::<Result<_>>()? })
    }

    /// `(batch, tokens, hidden_size)` to the same shape.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, hidden_states: Tensor, mask: Mask) -> Result<Tensor> {
        self.layers.iter().try_fold(hidden_states, |hidden_states, layer| layer.forward(&hidden_states, mask))
    }
}

#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl EncoderLayer {
    fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        let (size, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: LayerNorm::load(&weights.sub("layer_norm1"), size, eps)?,
            self_attn: Attention::load(&weights.sub("self_attn"), config)?,
            layer_norm2: LayerNorm::load(&weights.sub("layer_norm2"), size, eps)?,
            mlp: Mlp::load(&weights.sub("mlp"), config)?,
        })
    }

    fn forward(&self, hidden_states: &Tensor, mask: Mask) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.layer_norm1.forward(hidden_states)?, mask)?;
        let hidden_states = hidden_states.f_add(&attended)?;
        let fed = self.mlp.forward(&self.layer_norm2.forward(&hidden_states)?)?;
        Ok(hidden_states.f_add(&fed)?)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        let projection = |name: &str| Linear::load(&weights.sub(name), config.hidden_size, config.hidden_size);
        Ok(Self {
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, mask: Mask) -> Result<Tensor> {
        let (query, key, value) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        self.out_proj.forward(&attention(&query, &key, &value, self.heads, mask)?)
    }
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        Ok(Self {
            fc1: Linear::load(&weights.sub("fc1"), config.hidden_size, config.intermediate_size)?,
            fc2: Linear::load(&weights.sub("fc2"), config.intermediate_size, config.hidden_size)?,
            activation: config.activation()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.activation.forward(&self.fc1.forward(x)?)?)
    }
}
