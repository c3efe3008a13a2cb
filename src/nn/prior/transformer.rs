//! `PriorTransformer` over the whole sequence, as diffusers computes it.

use super::block::TransformerBlock;
use super::config::PriorConfig;
use super::timestep::{TimestepEmbedding, sinusoidal_embedding};
use crate::error::{Error, Result};
use crate::nn::layers::{LayerNorm, Linear};
use crate::weights::checkpoint::Weights;
use tch::{Device, Kind, Tensor};

/// What is added to masked scores: enough that their weight after softmax is exactly 0.
const MASKED: f64 = -10000.0;

/// The output of [`PriorTransformer::forward`].
#[derive(Debug)]
pub struct PriorTransformerOutput {
    /// The prediction for each row, `(batch, clip_embed_dim)`; `(batch, tokens, clip_embed_dim)` without a `prd` token.
    pub predicted_image_embedding: Tensor,
}

/// diffusers' `PriorTransformer`.
#[derive(Debug)]
pub struct PriorTransformer {
    pub(super) config: PriorConfig,
    /// Not in a one-step prior.
    time_embedding: Option<TimestepEmbedding>,
    pub(super) proj_in: Linear,
    embedding_proj_norm: Option<LayerNorm>,
    embedding_proj: Linear,
    encoder_hidden_states_proj: Option<Linear>,
    pub(super) positional_embedding: Tensor,
    pub(super) prd_embedding: Option<Tensor>,
    pub(super) transformer_blocks: Vec<TransformerBlock>,
    norm_in: Option<LayerNorm>,
    pub(super) norm_out: LayerNorm,
    pub(super) proj_to_clip_embeddings: Linear,
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
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.exact().sub(name), inputs, outputs);
        let norm = |name: &str, size| LayerNorm::load(&weights.sub(name), size, LayerNorm::DEFAULT_EPS);
        let embedding_proj_dim = config.embedding_proj_dim();
        let blocks = weights.sub("transformer_blocks");
        let block =
            |layer: i64| TransformerBlock::load(&blocks.sub(&layer.to_string()), config.num_attention_heads, inner_dim);
        Ok(Self {
            time_embedding: match config.is_one_step() {
                true => None,
                false => Some(TimestepEmbedding::load(&weights.exact().sub("time_embedding"), config)?),
            },
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

    /// The configuration of the module.
    pub fn config(&self) -> &PriorConfig {
        &self.config
    }

    /// One pass over the whole sequence, as diffusers computes it.
    ///
    /// - `hidden_states`: the noisy image embeddings, `(batch, embedding_dim)` or `(batch, tokens, embedding_dim)`;
    /// - `timestep`: one for all rows, `(1)`, or one per row, `(batch)`; a one-step prior has none;
    /// - `proj_embedding`: the text embeddings, `(batch, embedding_proj_dim)`;
    /// - `encoder_hidden_states`: the text states, `(batch, num_embeddings, embedding_dim)`;
    /// - `attention_mask`: `(batch, num_embeddings)`, 1 for a text token and 0 for padding. With a mask the model is
    ///   causal; without one every token attends to every token.
    ///
    /// # Errors
    /// If the shapes do not fit each other or the configuration, or memory runs out.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        timestep: Option<&Tensor>,
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
        if let Some(timestep) = timestep {
            sequence.push(self.embed_timestep(&timestep.f_expand([batch], false)?)?.f_unsqueeze(1)?);
        }
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

    /// Denormalizes embeddings: `x · clip_std + clip_mean`, `(…, clip_embed_dim)`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn post_process_latents(&self, prior_latents: &Tensor) -> Result<Tensor> {
        Ok(prior_latents.f_mul(&self.clip_std)?.f_add(&self.clip_mean)?)
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.clip_mean.device()
    }

    pub(super) fn project_text_states(&self, states: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.encoder_hidden_states_proj, states) {
            (Some(projection), Some(states)) => Ok(Some(projection.forward(states)?)),
            (Some(_), None) => Err(Error::Internal("the prior needs encoder_hidden_states".into())),
            (None, states) => Ok(states.map(Tensor::shallow_clone)),
        }
    }

    pub(super) fn project_text_embedding(&self, proj_embedding: &Tensor) -> Result<Tensor> {
        match &self.embedding_proj_norm {
            Some(norm) => self.embedding_proj.forward(&norm.forward(proj_embedding)?),
            None => self.embedding_proj.forward(proj_embedding),
        }
    }

    /// `(timesteps)` to `(timesteps, inner_dim)`.
    pub(super) fn embed_timestep(&self, timestep: &Tensor) -> Result<Tensor> {
        let time_embedding = self.time_embedding.as_ref();
        let time_embedding =
            time_embedding.ok_or_else(|| Error::Internal("a one-step prior has no timestep".into()))?;
        let projected = sinusoidal_embedding(timestep, self.config.inner_dim())?;
        time_embedding.forward(&projected.f_to_device(self.device())?)
    }

    /// Adds positions to the sequence `(batch, tokens, inner_dim)`.
    ///
    /// If there are fewer positions than tokens, they are those of the latents alone: the `condition_len` tokens before
    /// them and the query after them have zeros.
    fn add_positions(&self, sequence: &Tensor, condition_len: i64) -> Result<Tensor> {
        let positions = &self.positional_embedding;
        if positions.size()[1] >= sequence.size()[1] {
            return Ok(sequence.f_add(positions)?);
        }
        let query_len = i64::from(self.prd_embedding.is_some());
        let padded = positions.f_pad([0, 0, condition_len, query_len], "constant", 0.0)?;
        Ok(sequence.f_add(&padded)?)
    }

    /// The mask that is added to the scores, `(batch, 1, tokens, tokens)`: it hides padding and later tokens.
    fn added_mask(&self, attention_mask: &Tensor, tokens: i64) -> Result<Tensor> {
        let (batch, _) = attention_mask.size2()?;
        let options = (Kind::Float, self.device());
        let later = Tensor::f_full([tokens, tokens], MASKED, options)?.f_triu(1)?;
        let padding = attention_mask.f_to_kind(Kind::Float)?.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(MASKED)?;
        let padding = padding.f_pad([0, self.config.additional_embeddings], "constant", 0.0)?;
        Ok(padding.f_reshape([batch, 1, 1, -1])?.f_add(&later)?)
    }

    pub(super) fn norm_in(&self, hidden_states: Tensor) -> Result<Tensor> {
        match &self.norm_in {
            Some(norm) => norm.forward(&hidden_states),
            None => Ok(hidden_states),
        }
    }

    fn transform(&self, hidden_states: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let hidden_states = self.norm_in(hidden_states)?;
        let mut blocks = self.transformer_blocks.iter();
        let hidden_states =
            blocks.try_fold(hidden_states, |hidden_states, block| block.forward(&hidden_states, mask))?;
        self.norm_out.forward(&hidden_states)
    }
}

/// Builds an optional module if the configuration names its type.
fn when<T>(kind: &Option<String>, build: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    kind.as_ref().map(|_| build()).transpose()
}

/// `(batch, width)` to one token per row, `(batch, 1, width)`; three dimensions stay as they are.
fn as_tokens(x: Tensor) -> Result<Tensor> {
    if x.dim() == 2 { Ok(x.f_unsqueeze(1)?) } else { Ok(x) }
}
