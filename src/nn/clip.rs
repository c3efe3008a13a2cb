//! The transformer that CLIP's text and image towers share: pre-norm layers of self-attention and an MLP.
//!
//! Source: transformers 5.23 `models/clip/modeling_clip.py`, `CLIPEncoder` and below.

use super::layers::attention::AttentionRanges;
use super::layers::{Activation, LayerNorm, Linear};
use crate::config::{check_float, check_layers, check_sizes};
use crate::error::{Error, Result};
use crate::json::Json;
use crate::weights::checkpoint::Weights;
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
    /// [`Error::Config`] that names the key, without the file.
    pub fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        if self.hidden_size % self.num_attention_heads != 0 {
            let (size, heads) = (self.hidden_size, self.num_attention_heads);
            let predicate = format!("is {size}, which is not a multiple of num_attention_heads ({heads})");
            return Err(Error::key("hidden_size", predicate));
        }
        check_float("layer_norm_eps", self.layer_norm_eps, 0.0..=f32::MAX)?;
        self.activation().map(drop)
    }

    fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => {
                Err(Error::key("hidden_act", format!("is {other:?}, only \"quick_gelu\" and \"gelu\" are supported")))
            }
        }
    }
}

/// A tower's part of the configuration of a whole `CLIPModel`, under `key`; or the whole, if it is the tower's own.
///
/// transformers takes the part as it is. But many models have the right `projection_dim` in the whole only, and
/// transformers' default in the parts; both towers project to the whole's.
pub(super) fn part_of_clip(whole: Json, key: &str) -> Json {
    // Before transformers 4.26, some models had the part under another key, and null under this one.
    let keys = [key, &format!("{key}_dict")];
    let part = keys.iter().filter_map(|key| whole.get(key)).find(|part| matches!(part, Json::Object(_))).cloned();
    let Some(mut part) = part else { return whole };
    const WIDTH: &str = "projection_dim";
    if let Some(width) = whole.get(WIDTH).filter(|width| **width != Json::Null) {
        part.set(WIDTH, width.clone());
    }
    part
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

    /// `(tokens, hidden_size)` to the same shape; `seen` holds the range of tokens that each token attends to.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, hidden_states: Tensor, seen: &AttentionRanges) -> Result<Tensor> {
        self.layers.iter().try_fold(hidden_states, |hidden_states, layer| layer.forward(&hidden_states, seen))
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

    fn forward(&self, hidden_states: &Tensor, seen: &AttentionRanges) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(hidden_states)?;
        let hidden_states = self.self_attn.forward(&normed, seen, hidden_states)?;
        self.mlp.forward(&self.layer_norm2.forward(&hidden_states)?, &hidden_states)
    }
}

#[derive(Debug)]
struct Attention {
    /// `q_proj`, `k_proj` and `v_proj` as one product.
    qkv_proj: Linear,
    out_proj: Linear,
    width: i64,
    heads: i64,
}

impl Attention {
    fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        let width = config.hidden_size;
        let parts = ["q_proj", "k_proj", "v_proj"].map(|name| weights.sub(name));
        Ok(Self {
            qkv_proj: Linear::load_stacked(&parts, width, width)?,
            out_proj: Linear::load(&weights.sub("out_proj"), width, width)?,
            width,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, seen: &AttentionRanges, residual: &Tensor) -> Result<Tensor> {
        let projected = self.qkv_proj.forward(x)?;
        let query = projected.f_narrow(1, 0, self.width)?;
        let key_value = projected.f_narrow(1, self.width, 2 * self.width)?;
        let attended = seen.attend(&query, self.heads, &[&key_value])?;
        self.out_proj.forward_add(&attended, residual)
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

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let widened = match self.activation {
            Activation::Gelu => self.fc1.forward_gelu(x)?,
            activation => activation.forward(&self.fc1.forward(x)?)?,
        };
        self.fc2.forward_add(&widened, residual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tower_is_taken_out_of_a_whole_clip() {
        let part = |text: &str| part_of_clip(Json::parse(text).unwrap(), "text_config");
        let json = |text: &str| Json::parse(text).unwrap();
        for (whole, expected) in [
            (r#"{"hidden_size": 8, "projection_dim": 4}"#, r#"{"hidden_size": 8, "projection_dim": 4}"#),
            (r#"{"text_config": {"hidden_size": 8}, "hidden_size": 9}"#, r#"{"hidden_size": 8}"#),
            (r#"{"text_config": {"projection_dim": 512}, "projection_dim": 4}"#, r#"{"projection_dim": 4}"#),
            (r#"{"text_config": {"projection_dim": 6}, "projection_dim": null}"#, r#"{"projection_dim": 6}"#),
            (r#"{"text_config": {"hidden_size": 8}, "text_config_dict": {"hidden_size": 9}}"#, r#"{"hidden_size": 8}"#),
            (r#"{"text_config": null, "text_config_dict": {"hidden_size": 9}}"#, r#"{"hidden_size": 9}"#),
            (r#"{"text_config_dict": null, "hidden_size": 9}"#, r#"{"text_config_dict": null, "hidden_size": 9}"#),
        ] {
            assert_eq!(part(whole), json(expected), "{whole}");
        }
    }
}
