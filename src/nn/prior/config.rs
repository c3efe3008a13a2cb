//! The configuration of a prior.

use crate::config::{Config, check_layers, check_sizes};
use crate::error::{Error, Result};
use crate::nn::layers::Activation;
use serde::Deserialize;

/// `config.json` of a `PriorTransformer`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct PriorConfig {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head. The inner dimension of the transformer is the number of heads times this.
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
    /// Activation of the timestep's MLP: `silu`, `swish`, `mish`, `gelu` or `relu`.
    pub time_embed_act_fn: String,
    /// `layer` for a layer norm before the first block.
    pub norm_in_type: Option<String>,
    /// `layer` for a layer norm of `proj_embedding` before its projection.
    pub embedding_proj_norm_type: Option<String>,
    /// `linear` if text states are projected to the inner dimension.
    pub encoder_hid_proj_type: Option<String>,
    /// `prd` if the sequence ends in a learned query, from which the prediction is read.
    pub added_emb_type: Option<String>,
    /// Width inside the timestep's MLP; by default the inner dimension.
    pub time_embed_dim: Option<i64>,
    /// Width of `proj_embedding`; by default `embedding_dim`.
    pub embedding_proj_dim: Option<i64>,
    /// Width of the prediction; by default `embedding_dim`.
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
    /// The inner dimension of the transformer.
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

    /// Width inside the timestep's MLP.
    pub(super) fn time_embed_dim(&self) -> i64 {
        self.time_embed_dim.unwrap_or(self.inner_dim())
    }

    /// The activation that `time_embed_act_fn` names.
    pub(super) fn time_embed_activation(&self) -> Result<Activation> {
        Ok(match self.time_embed_act_fn.to_lowercase().as_str() {
            "silu" | "swish" => Activation::Silu,
            "mish" => Activation::Mish,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            _ => {
                let predicate = format!("is {:?}, it must be silu, swish, mish, gelu or relu", self.time_embed_act_fn);
                return Err(Error::key("time_embed_act_fn", predicate));
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
            return Err(Error::key(key, format!("is {count}, it cannot be negative")));
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
        Some(value) if value != only => Err(Error::key(key, format!("is {value:?}, it must be {only:?} or null"))),
        _ => Ok(()),
    }
}
