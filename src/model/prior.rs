//! The diffusion prior: predicts a CLIP image embedding from a noisy one, a timestep and an encoded caption.
//!
//! Source: diffusers 0.42 `models/transformers/prior_transformer.py`, `PriorTransformer`; section 2.2 of the unCLIP
//! paper (arXiv 2204.06125). The sequence is `[text states | text embedding | timestep | x_t | learned query]`.

use super::checkpoint::Weights;
use super::config::{Config, check_layers, check_sizes};
use super::layers::{Activation, LayerNorm, Linear, Mask, attention};
use crate::bad_input;
use anyhow::{Result, bail};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// What a masked score is lowered by: enough that its weight after softmax is exactly 0.
const MASKED: f64 = -10000.0;

/// `config.json` of a `PriorTransformer`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct PriorConfig {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head. Heads times head width is the width of the transformer, its inner dimension.
    pub attention_head_dim: i64,
    /// Number of transformer blocks.
    pub num_layers: i64,
    /// Width of `hidden_states` (the noisy image embedding) and of `encoder_hidden_states`.
    pub embedding_dim: i64,
    /// Number of text states.
    pub num_embeddings: i64,
    /// Number of tokens after the text states that have learned positions.
    pub additional_embeddings: i64,
    /// Unused at inference.
    pub dropout: f64,
    /// Activation between the two layers of the timestep's MLP: `silu`, `swish`, `mish`, `gelu` or `relu`.
    pub time_embed_act_fn: String,
    /// `layer` for a layer norm before the first block.
    pub norm_in_type: Option<String>,
    /// `layer` for a layer norm of `proj_embedding` before its projection.
    pub embedding_proj_norm_type: Option<String>,
    /// `linear` if text states are projected to the inner dimension.
    pub encoder_hid_proj_type: Option<String>,
    /// `prd` if a learned query ends the sequence and is what the prediction is read from.
    pub added_emb_type: Option<String>,
    /// Width inside the timestep's MLP; the inner dimension if not given.
    pub time_embed_dim: Option<i64>,
    /// Width of `proj_embedding`; `embedding_dim` if not given.
    pub embedding_proj_dim: Option<i64>,
    /// Width of the prediction; `embedding_dim` if not given.
    pub clip_embed_dim: Option<i64>,
}

impl Default for PriorConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 32,
            attention_head_dim: 64,
            num_layers: 20,
            embedding_dim: 768,
            num_embeddings: 77,
            additional_embeddings: 4,
            dropout: 0.0,
            time_embed_act_fn: "silu".into(),
            norm_in_type: None,
            embedding_proj_norm_type: None,
            encoder_hid_proj_type: Some("linear".into()),
            added_emb_type: Some("prd".into()),
            time_embed_dim: None,
            embedding_proj_dim: None,
            clip_embed_dim: None,
        }
    }
}

impl PriorConfig {
    /// Width of the transformer.
    pub fn inner_dim(&self) -> i64 {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Number of learned positions.
    pub fn positions(&self) -> i64 {
        self.num_embeddings.saturating_add(self.additional_embeddings)
    }

    /// Width of `proj_embedding`.
    pub fn embedding_proj_dim(&self) -> i64 {
        self.embedding_proj_dim.unwrap_or(self.embedding_dim)
    }

    /// Width of the prediction.
    pub fn clip_embed_dim(&self) -> i64 {
        self.clip_embed_dim.unwrap_or(self.embedding_dim)
    }

    fn time_embed_dim(&self) -> i64 {
        self.time_embed_dim.unwrap_or(self.inner_dim())
    }

    fn time_embed_activation(&self) -> Result<Activation> {
        Ok(match self.time_embed_act_fn.to_lowercase().as_str() {
            "silu" | "swish" => Activation::Silu,
            "mish" => Activation::Mish,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            _ => {
                let name = &self.time_embed_act_fn;
                return Err(bad_input!("time_embed_act_fn {name:?} must be one of silu, swish, mish, gelu, relu"));
            }
        })
    }
}

impl Config for PriorConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;

    fn validate(&self) -> Result<()> {
        check_sizes(&[
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads * attention_head_dim", self.inner_dim()),
            ("embedding_dim", self.embedding_dim),
            ("num_embeddings + additional_embeddings", self.positions()),
            ("time_embed_dim", self.time_embed_dim()),
            ("embedding_proj_dim", self.embedding_proj_dim()),
            ("clip_embed_dim", self.clip_embed_dim()),
        ])?;
        check_layers("num_layers", self.num_layers)?;
        let counts = [("num_embeddings", self.num_embeddings), ("additional_embeddings", self.additional_embeddings)];
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| *count < 0) {
            return Err(bad_input!("{key} is {count}, it cannot be negative"));
        }
        check_choice("norm_in_type", &self.norm_in_type, "layer")?;
        check_choice("embedding_proj_norm_type", &self.embedding_proj_norm_type, "layer")?;
        check_choice("encoder_hid_proj_type", &self.encoder_hid_proj_type, "linear")?;
        check_choice("added_emb_type", &self.added_emb_type, "prd")?;
        self.time_embed_activation().map(drop)
    }
}

fn check_choice(key: &str, value: &Option<String>, only: &str) -> Result<()> {
    match value {
        Some(value) if value != only => Err(bad_input!("{key} {value:?} must be {only:?} or null")),
        _ => Ok(()),
    }
}

/// What [`PriorTransformer::forward`] gives.
#[derive(Debug)]
pub struct PriorTransformerOutput {
    /// The prediction for each row, `(batch, clip_embed_dim)`; `(batch, tokens, clip_embed_dim)` without a `prd` token.
    pub predicted_image_embedding: Tensor,
}

/// diffusers' `PriorTransformer`.
#[derive(Debug)]
pub struct PriorTransformer {
    config: PriorConfig,
    time_embedding: TimestepEmbedding,
    proj_in: Linear,
    embedding_proj_norm: Option<LayerNorm>,
    embedding_proj: Linear,
    encoder_hidden_states_proj: Option<Linear>,
    positional_embedding: Tensor,
    prd_embedding: Option<Tensor>,
    transformer_blocks: Vec<TransformerBlock>,
    norm_in: Option<LayerNorm>,
    norm_out: LayerNorm,
    proj_to_clip_embeddings: Linear,
    clip_mean: Tensor,
    clip_std: Tensor,
}

impl PriorTransformer {
    /// Reads the module from the root of its checkpoint.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, config: &PriorConfig) -> Result<Self> {
        let inner_dim = config.inner_dim();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.sub(name), inputs, outputs);
        let norm = |name: &str, size| LayerNorm::load(&weights.sub(name), size, LayerNorm::DEFAULT_EPS);
        let embedding_proj_dim = config.embedding_proj_dim();
        let blocks = weights.sub("transformer_blocks");
        let block = |layer: i64| TransformerBlock::load(&blocks.sub(&layer.to_string()), config);
        Ok(Self {
            time_embedding: TimestepEmbedding::load(&weights.sub("time_embedding"), config)?,
            proj_in: linear("proj_in", config.embedding_dim, inner_dim)?,
            embedding_proj_norm: when(&config.embedding_proj_norm_type, || {
                norm("embedding_proj_norm", embedding_proj_dim)
            })?,
            embedding_proj: linear("embedding_proj", embedding_proj_dim, inner_dim)?,
            encoder_hidden_states_proj: when(&config.encoder_hid_proj_type, || {
                linear("encoder_hidden_states_proj", config.embedding_dim, inner_dim)
            })?,
            positional_embedding: weights.tensor("positional_embedding", &[1, config.positions(), inner_dim])?,
            prd_embedding: when(&config.added_emb_type, || weights.tensor("prd_embedding", &[1, 1, inner_dim]))?,
            transformer_blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_in: when(&config.norm_in_type, || norm("norm_in", inner_dim))?,
            norm_out: norm("norm_out", inner_dim)?,
            proj_to_clip_embeddings: linear("proj_to_clip_embeddings", inner_dim, config.clip_embed_dim())?,
            clip_mean: weights.tensor("clip_mean", &[1, config.clip_embed_dim()])?,
            clip_std: weights.tensor("clip_std", &[1, config.clip_embed_dim()])?,
            config: config.clone(),
        })
    }

    /// The configuration that the module was built from.
    pub fn config(&self) -> &PriorConfig {
        &self.config
    }

    /// One pass over the whole sequence, as diffusers computes it.
    ///
    /// - `hidden_states`: the noisy image embeddings, `(batch, embedding_dim)` or `(batch, tokens, embedding_dim)`;
    /// - `timestep`: one for all rows, `(1)`, or one a row, `(batch)`;
    /// - `proj_embedding`: the text embeddings, `(batch, embedding_proj_dim)`;
    /// - `encoder_hidden_states`: the text states, `(batch, num_embeddings, embedding_dim)`;
    /// - `attention_mask`: `(batch, num_embeddings)`, 1 for a text token and 0 for padding. With it the model is causal;
    ///   without it every token sees every token.
    ///
    /// # Errors
    /// If the shapes do not fit each other or the configuration, or memory runs out.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        timestep: &Tensor,
        proj_embedding: &Tensor,
        encoder_hidden_states: Option<&Tensor>,
        attention_mask: Option<&Tensor>,
    ) -> Result<PriorTransformerOutput> {
        let batch = hidden_states.size().first().copied().unwrap_or(0);
        let mut sequence = Vec::with_capacity(5);
        if let Some(states) = self.project_text_states(encoder_hidden_states)? {
            sequence.push(states);
        }
        sequence.push(as_tokens(self.project_text_embedding(proj_embedding)?)?);
        sequence.push(self.embed_timestep(&timestep.f_expand([batch], false)?)?.f_unsqueeze(1)?);
        let condition_len: i64 = sequence.iter().map(|tokens| tokens.size()[1]).sum();
        sequence.push(as_tokens(self.proj_in.forward(hidden_states)?)?);
        if let Some(query) = &self.prd_embedding {
            sequence.push(query.f_expand([batch, 1, self.config.inner_dim()], false)?);
        }
        let hidden_states = self.add_positions(&Tensor::f_cat(&sequence, 1)?, condition_len)?;
        let mask = attention_mask.map(|mask| self.added_mask(mask, hidden_states.size()[1])).transpose()?;
        let hidden_states = self.transform(hidden_states, mask.as_ref())?;
        let read = match self.prd_embedding {
            Some(_) => hidden_states.f_select(1, -1)?,
            None => hidden_states.f_slice(1, condition_len, None, 1)?,
        };
        Ok(PriorTransformerOutput { predicted_image_embedding: self.proj_to_clip_embeddings.forward(&read)? })
    }

    /// Undoes the normalization that the prior was trained in: `x · clip_std + clip_mean`, `(…, clip_embed_dim)`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn post_process_latents(&self, prior_latents: &Tensor) -> Result<Tensor> {
        Ok(prior_latents.f_mul(&self.clip_std)?.f_add(&self.clip_mean)?)
    }

    /// The type that the weights are kept and computed in.
    pub fn kind(&self) -> Kind {
        self.clip_mean.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.clip_mean.device()
    }

    fn project_text_states(&self, states: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.encoder_hidden_states_proj, states) {
            (Some(projection), Some(states)) => Ok(Some(projection.forward(states)?)),
            (Some(_), None) => bail!("a prior with encoder_hid_proj_type \"linear\" needs encoder_hidden_states"),
            (None, states) => Ok(states.map(Tensor::shallow_clone)),
        }
    }

    fn project_text_embedding(&self, proj_embedding: &Tensor) -> Result<Tensor> {
        match &self.embedding_proj_norm {
            Some(norm) => self.embedding_proj.forward(&norm.forward(proj_embedding)?),
            None => self.embedding_proj.forward(proj_embedding),
        }
    }

    /// `(timesteps)` to `(timesteps, inner_dim)`.
    fn embed_timestep(&self, timestep: &Tensor) -> Result<Tensor> {
        let projected = sinusoidal_embedding(timestep, self.config.inner_dim())?;
        self.time_embedding.forward(&projected.f_to_device(self.device())?.f_to_kind(self.kind())?)
    }

    /// Adds positions to the sequence `(batch, tokens, inner_dim)`.
    ///
    /// Positions that end before the sequence are those of the latents alone: zeros take the place of the
    /// `condition_len` tokens before them and of the query after them.
    fn add_positions(&self, sequence: &Tensor, condition_len: i64) -> Result<Tensor> {
        let positions = &self.positional_embedding;
        if positions.size()[1] >= sequence.size()[1] {
            return Ok(sequence.f_add(positions)?);
        }
        let query_len = i64::from(self.prd_embedding.is_some());
        let padded = positions.f_pad([0, 0, condition_len, query_len], "constant", 0.0)?;
        Ok(sequence.f_add(&padded)?)
    }

    /// What is added to the scores, `(batch, 1, tokens, tokens)`: padding is out of sight, and so is what comes later.
    fn added_mask(&self, attention_mask: &Tensor, tokens: i64) -> Result<Tensor> {
        let (batch, _) = attention_mask.size2()?;
        let options = (self.kind(), self.device());
        let later = Tensor::f_full([tokens, tokens], MASKED, options)?.f_triu(1)?;
        let padding = attention_mask.f_to_kind(self.kind())?.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(MASKED)?;
        let padding = padding.f_pad([0, self.config.additional_embeddings], "constant", 0.0)?;
        Ok(padding.f_reshape([batch, 1, 1, -1])?.f_add(&later)?)
    }

    fn transform(&self, hidden_states: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mask = mask.map_or(Mask::Full, Mask::Added);
        let hidden_states = match &self.norm_in {
            Some(norm) => norm.forward(&hidden_states)?,
            None => hidden_states,
        };
        let mut blocks = self.transformer_blocks.iter();
        let hidden_states =
            blocks.try_fold(hidden_states, |hidden_states, block| block.forward(&hidden_states, mask))?;
        self.norm_out.forward(&hidden_states)
    }
}

/// Builds an optional part if the configuration names its type.
fn when<T>(kind: &Option<String>, build: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    kind.as_ref().map(|_| build()).transpose()
}

/// `(batch, width)` to one token a row, `(batch, 1, width)`; three dimensions stay.
fn as_tokens(x: Tensor) -> Result<Tensor> {
    if x.dim() == 2 { Ok(x.f_unsqueeze(1)?) } else { Ok(x) }
}

/// The sinusoidal embedding of timesteps, `(timesteps)` to `(timesteps, dim)` in float32: cosines, then sines.
///
/// Source: diffusers `models/embeddings.py`, `get_timestep_embedding` with `flip_sin_to_cos` and no frequency shift.
fn sinusoidal_embedding(timestep: &Tensor, dim: i64) -> Result<Tensor> {
    const MAX_PERIOD: f64 = 10000.0;
    let half = dim / 2;
    let exponent = Tensor::f_arange(half, (Kind::Float, timestep.device()))?.f_mul_scalar(-MAX_PERIOD.ln())?;
    let frequencies = exponent.f_div_scalar(half as f64)?.f_exp()?;
    let angles = timestep.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&frequencies.f_unsqueeze(0)?)?;
    let embedding = Tensor::f_cat(&[angles.f_cos()?, angles.f_sin()?], -1)?;
    Ok(embedding.f_pad([0, dim % 2], "constant", 0.0)?)
}

/// The timestep's MLP, `(…, inner_dim)` to `(…, inner_dim)`.
#[derive(Debug)]
struct TimestepEmbedding {
    linear_1: Linear,
    act: Activation,
    linear_2: Linear,
}

impl TimestepEmbedding {
    fn load(weights: &Weights, config: &PriorConfig) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&weights.sub("linear_1"), config.inner_dim(), config.time_embed_dim())?,
            act: config.time_embed_activation()?,
            linear_2: Linear::load(&weights.sub("linear_2"), config.time_embed_dim(), config.inner_dim())?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.act.forward(&self.linear_1.forward(x)?)?)
    }
}

/// Pre-norm self-attention and a GELU MLP. Source: diffusers `models/attention.py`, `BasicTransformerBlock`.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn load(weights: &Weights, config: &PriorConfig) -> Result<Self> {
        let norm = |name: &str| LayerNorm::load(&weights.sub(name), config.inner_dim(), LayerNorm::DEFAULT_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::load(&weights.sub("attn1"), config)?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&weights.sub("ff"), config.inner_dim())?,
        })
    }

    fn forward(&self, hidden_states: &Tensor, mask: Mask) -> Result<Tensor> {
        let attended = self.attn1.forward(&self.norm1.forward(hidden_states)?, mask)?;
        let hidden_states = attended.f_add(hidden_states)?;
        let fed = self.ff.forward(&self.norm3.forward(&hidden_states)?)?;
        Ok(fed.f_add(&hidden_states)?)
    }
}

#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    fn load(weights: &Weights, config: &PriorConfig) -> Result<Self> {
        let projection = |name: &str| Linear::load(&weights.sub(name), config.inner_dim(), config.inner_dim());
        Ok(Self {
            to_q: projection("to_q")?,
            to_k: projection("to_k")?,
            to_v: projection("to_v")?,
            to_out: projection("to_out.0")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, mask: Mask) -> Result<Tensor> {
        let (query, key, value) = (self.to_q.forward(x)?, self.to_k.forward(x)?, self.to_v.forward(x)?);
        self.to_out.forward(&attention(&query, &key, &value, self.heads, mask)?)
    }
}

/// `net.0` widens four times and applies GELU, `net.2` narrows.
#[derive(Debug)]
struct FeedForward {
    net_0: Linear,
    net_2: Linear,
}

impl FeedForward {
    fn load(weights: &Weights, inner_dim: i64) -> Result<Self> {
        Ok(Self {
            net_0: Linear::load(&weights.sub("net.0.proj"), inner_dim, 4 * inner_dim)?,
            net_2: Linear::load(&weights.sub("net.2"), 4 * inner_dim, inner_dim)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.net_2.forward(&Activation::Gelu.forward(&self.net_0.forward(x)?)?)
    }
}
