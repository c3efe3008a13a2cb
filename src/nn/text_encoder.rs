//! CLIP's text tower with its projection: from token ids to one embedding per prompt and one state per token.
//!
//! Source: transformers 5.23 `models/clip/modeling_clip.py`, `CLIPTextModelWithProjection`.

use super::clip::{Encoder, EncoderConfig, part_of_clip};
use super::layers::attention::{AttentionRanges, sequences};
use super::layers::{LayerNorm, Linear};
use crate::config::{Config, check_sizes};
use crate::error::Result;
use crate::json::Json;
use crate::weights::checkpoint::Weights;
use serde::Deserialize;
use tch::{Device, Tensor};

/// `config.json` of a `CLIPTextModelWithProjection`, or its part in that of a `CLIPModel`; defaults as in
/// transformers' `CLIPTextConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TextEncoderConfig {
    /// Size of the vocabulary.
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
    /// Maximum number of tokens in a prompt.
    pub max_position_embeddings: i64,
    /// The MLP's activation, `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// The id whose first occurrence is pooled. With 2, which old configurations have by mistake, the highest id is
    /// pooled.
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
    /// The number of weights.
    pub fn parameters(&self) -> u64 {
        let [width, inside] = [self.hidden_size, self.intermediate_size].map(i64::unsigned_abs);
        let attention = 4 * (width * width + width);
        let mlp = 2 * width * inside + width + inside;
        let norms = 2 * 2 * width;
        let layers = self.num_hidden_layers.unsigned_abs() * (attention + mlp + norms);
        let embeddings = (self.vocab_size + self.max_position_embeddings).unsigned_abs() * width;
        embeddings + layers + 2 * width + width * self.projection_dim.unsigned_abs()
    }

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

    fn part(whole: Json) -> Json {
        part_of_clip(whole, "text_config")
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("projection_dim", self.projection_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        self.encoder().validate()
    }
}

/// The output of [`TextEncoder::forward`] for several prompts, packed without padding.
#[derive(Debug)]
pub struct TextEncoderOutput {
    /// The projected state of each prompt's pooled token, `(prompts, projection_dim)`.
    pub text_embeds: Tensor,
    /// The states of all tokens after the final layer norm, `(tokens of all prompts, hidden_size)`.
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
    /// The prefixes of the other tensors of a whole `CLIPModel`.
    pub const REST_OF_CLIP: [&str; 3] = ["vision_model.", "visual_projection.", "logit_scale"];

    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        weights.ignore(&Self::REST_OF_CLIP);
        let model = weights.sub("text_model");
        let embeddings = model.sub("embeddings");
        let width = config.hidden_size;
        let position_shape = [config.max_position_embeddings, width];
        Ok(Self {
            token_embedding: embeddings.sub("token_embedding").matrix("weight", &[config.vocab_size, width])?,
            position_embedding: embeddings.sub("position_embedding").tensor("weight", &position_shape)?,
            encoder: Encoder::load(&model.sub("encoder"), &config.encoder())?,
            final_layer_norm: LayerNorm::load(&model.sub("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: Linear::load_without_bias(&weights.sub("text_projection"), width, config.projection_dim)?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Sets the embeddings, `(hidden_size)` each, of tokens that the checkpoint does not have, or replaces them.
    ///
    /// # Errors
    /// If an embedding has another size, or memory runs out.
    pub fn add_tokens(&mut self, tokens: &[(i64, Vec<f32>)]) -> Result<()> {
        let (known, width) = self.token_embedding.size2()?;
        let Some(end) = tokens.iter().map(|(id, _)| id + 1).max() else { return Ok(()) };
        let options = (self.token_embedding.kind(), self.device());
        let more = Tensor::f_zeros([(end - known).max(0), width], options)?;
        let table = Tensor::f_cat(&[&self.token_embedding, &more], 0)?;
        for (id, embedding) in tokens {
            let embedding = Tensor::f_from_slice(embedding)?.f_reshape([width])?;
            table.f_select(0, *id)?.f_copy_(&embedding)?;
        }
        self.token_embedding = table;
        Ok(())
    }

    /// Encodes prompts, each as the ids of its start, text and end, and perhaps padding: ids below
    /// [`TextEncoder::vocab_size`], at most `max_position_embeddings` per prompt.
    ///
    /// There is no padding mask: the model is causal and the padding comes last, so nothing depends on it. Leaving it
    /// out saves its work.
    ///
    /// # Errors
    /// If an id or a length is out of range, or memory runs out.
    pub fn forward(&self, prompts: &[&[i64]]) -> Result<TextEncoderOutput> {
        let lens: Vec<i64> = prompts.iter().map(|ids| ids.len() as i64).collect();
        let hidden_states =
            self.encoder.forward(self.embed(prompts)?, &AttentionRanges::causal(&lens, self.device())?)?;
        let last_hidden_state = self.final_layer_norm.forward(&hidden_states)?;
        let starts = sequences(&lens).map(|(start, _)| start);
        let pooled: Vec<i64> = starts.zip(prompts).map(|(start, ids)| start + self.pooled_position(ids)).collect();
        let pooled = last_hidden_state.f_index_select(0, &self.tensor(&pooled)?)?;
        Ok(TextEncoderOutput { text_embeds: self.text_projection.forward(&pooled)?, last_hidden_state })
    }

    /// The number of a padded prompt's ids that have to run: the `len` of the prompt itself, and the pooled one.
    pub fn tokens_to_run(&self, ids: &[i64], len: usize) -> usize {
        len.max(self.pooled_position(ids) as usize + 1)
    }

    /// The tokens with their positions, `(tokens of all prompts, hidden_size)`.
    fn embed(&self, prompts: &[&[i64]]) -> Result<Tensor> {
        let positions: Vec<i64> = prompts.iter().flat_map(|ids| 0..ids.len() as i64).collect();
        let tokens = self.token_embedding.f_index_select(0, &self.tensor(&prompts.concat())?)?;
        Ok(tokens.f_add(&self.position_embedding.f_index_select(0, &self.tensor(&positions)?)?)?)
    }

    /// The position of the first end-of-text token, which may be the padding too; 0 without one.
    fn pooled_position(&self, ids: &[i64]) -> i64 {
        let wanted = match self.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or_default(),
            eos_token_id => eos_token_id,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0) as i64
    }

    fn tensor(&self, values: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(values)?.f_to_device(self.device())?)
    }

    fn device(&self) -> Device {
        self.token_embedding.device()
    }
}
