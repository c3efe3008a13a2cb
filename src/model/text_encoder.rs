//! CLIP's text tower with its projection: token ids to one embedding a prompt and one state a token.
//!
//! Source: transformers 5.23 `models/clip/modeling_clip.py`, `CLIPTextModelWithProjection`.

use super::checkpoint::Weights;
use super::clip::{Encoder, EncoderConfig};
use super::config::{Config, check_sizes};
use super::layers::{LayerNorm, Linear, Mask};
use anyhow::Result;
use serde::Deserialize;
use tch::{Kind, Tensor};

/// `config.json` of a `CLIPTextModelWithProjection`; defaults as in transformers' `CLIPTextConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TextEncoderConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Width of `text_embeds`.
    pub projection_dim: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Most tokens in a prompt.
    pub max_position_embeddings: i64,
    /// The MLP's activation, `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// The id whose first place is pooled. With 2, wrong in old configurations, the highest id is pooled instead.
    pub eos_token_id: i64,
}

impl Default for TextEncoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl TextEncoderConfig {
    fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act.clone(),
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

impl Config for TextEncoderConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = false;

    fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("projection_dim", self.projection_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        self.encoder().validate()
    }
}

/// What the text encoder gives.
#[derive(Debug)]
pub struct TextEncoderOutput {
    /// The projected state of the pooled token, `(batch, projection_dim)`.
    pub text_embeds: Tensor,
    /// The states of all tokens after the final layer norm, `(batch, tokens, hidden_size)`.
    pub last_hidden_state: Tensor,
}

/// `CLIPTextModelWithProjection`.
#[derive(Debug)]
pub struct TextEncoder {
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Linear,
    eos_token_id: i64,
}

impl TextEncoder {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        let model = weights.sub("text_model");
        let embeddings = model.sub("embeddings");
        let width = config.hidden_size;
        let position_shape = [config.max_position_embeddings, width];
        Ok(Self {
            token_embedding: embeddings.sub("token_embedding").tensor("weight", &[config.vocab_size, width])?,
            position_embedding: embeddings.sub("position_embedding").tensor("weight", &position_shape)?,
            encoder: Encoder::load(&model.sub("encoder"), &config.encoder())?,
            final_layer_norm: LayerNorm::load(&model.sub("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: Linear::load_without_bias(&weights.sub("text_projection"), width, config.projection_dim)?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Ids must be below this.
    pub fn vocab_size(&self) -> i64 {
        self.token_embedding.size()[0]
    }

    /// Encodes `input_ids` `(batch, tokens)`, int64, each below `vocab_size`, at most `max_position_embeddings` tokens.
    ///
    /// There is no padding mask: the model is causal, and what pads a prompt comes after it.
    ///
    /// # Errors
    /// If an id or the length is out of range, or memory runs out.
    pub fn forward(&self, input_ids: &Tensor) -> Result<TextEncoderOutput> {
        let (_, tokens) = input_ids.size2()?;
        let positions = self.position_embedding.f_narrow(0, 0, tokens)?;
        let embeddings = Tensor::f_embedding(&self.token_embedding, input_ids, -1, false, false)?.f_add(&positions)?;
        let hidden_states = self.encoder.forward(embeddings, Mask::Causal)?;
        let last_hidden_state = self.final_layer_norm.forward(&hidden_states)?;
        let pooled = pick_tokens(&last_hidden_state, &self.pooled_positions(input_ids)?)?;
        Ok(TextEncoderOutput { text_embeds: self.text_projection.forward(&pooled)?, last_hidden_state })
    }

    /// The place of the end-of-text token in each row of `input_ids` `(batch, tokens)`, as `(batch)`.
    ///
    /// `argmax` gives the first of equal values: the first end-of-text token, also where it is the padding too, and
    /// token 0 where there is none.
    fn pooled_positions(&self, input_ids: &Tensor) -> Result<Tensor> {
        let scores = match self.eos_token_id {
            2 => input_ids.shallow_clone(),
            eos_token_id => input_ids.f_eq(eos_token_id)?.f_to_kind(Kind::Int)?,
        };
        Ok(scores.f_argmax(-1, false)?)
    }
}

/// `(batch, tokens, width)` and `(batch)` to `(batch, width)`.
fn pick_tokens(states: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (batch, _, width) = states.size3()?;
    let index = positions.f_reshape([batch, 1, 1])?.f_expand([batch, 1, width], false)?;
    Ok(states.f_gather(1, &index, false)?.f_squeeze_dim(1)?)
}
