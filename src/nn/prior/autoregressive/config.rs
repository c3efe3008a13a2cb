//! The configuration of an autoregressive prior.

use crate::config::{Config, check_float, check_sizes};
use crate::error::{Error, Result};
use crate::nn::prior::config::{check_blocks, inner_dim};
use serde::Deserialize;

/// The share of the dot product's distribution that the paper leaves out.
const TOP_HALF: f64 = 0.5;

/// `config.json` of an `AutoregressivePrior`. Keys that diffusers' `PriorTransformer` has too mean the same.
#[derive(Debug, Clone, Deserialize)]
pub struct AutoregressiveConfig {
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of a head.
    pub attention_head_dim: i64,
    /// Number of transformer blocks.
    pub num_layers: i64,
    /// Width of the image embedding.
    pub embedding_dim: i64,
    /// Width of the text embedding; by default `embedding_dim`.
    pub embedding_proj_dim: Option<i64>,
    /// Width of the text states; by default `embedding_dim`.
    pub encoder_hid_dim: Option<i64>,
    /// Number of text states.
    pub num_embeddings: i64,
    /// Number of tokens of an image embedding: its leading dimensions.
    pub num_tokens: i64,
    /// Number of buckets of a dimension.
    pub num_buckets: i64,
    /// Number of buckets of the dot product of text and image embedding.
    pub num_dot_product_buckets: i64,
    /// The dot product is drawn from the part of its distribution above this quantile; by default ½.
    pub dot_product_quantile: Option<f64>,
}

impl AutoregressiveConfig {
    /// The inner dimension of the transformer.
    pub fn inner_dim(&self) -> i64 {
        inner_dim(self.num_attention_heads, self.attention_head_dim)
    }

    /// Number of learned positions: those of the text states, the text embedding, the dot product, and all buckets but
    /// the last, which is not read.
    pub fn positions(&self) -> i64 {
        self.num_embeddings.saturating_add(self.num_tokens).saturating_add(1)
    }

    /// Width of the text embedding.
    pub fn embedding_proj_dim(&self) -> i64 {
        self.embedding_proj_dim.unwrap_or(self.embedding_dim)
    }

    /// Width of the text states.
    pub fn encoder_hid_dim(&self) -> i64 {
        self.encoder_hid_dim.unwrap_or(self.embedding_dim)
    }

    /// The quantile above which the dot product is drawn.
    pub fn dot_product_quantile(&self) -> f64 {
        self.dot_product_quantile.unwrap_or(TOP_HALF)
    }
}

impl Config for AutoregressiveConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;

    fn validate(&self) -> Result<()> {
        check_blocks(self.num_attention_heads, self.attention_head_dim, self.num_layers)?;
        check_sizes(&[
            ("embedding_dim", self.embedding_dim),
            ("embedding_proj_dim", self.embedding_proj_dim()),
            ("encoder_hid_dim", self.encoder_hid_dim()),
            ("num_embeddings", self.num_embeddings),
            ("num_tokens", self.num_tokens),
            ("num_embeddings + num_tokens + 1", self.positions()),
            ("num_buckets", self.num_buckets),
            ("num_dot_product_buckets", self.num_dot_product_buckets),
        ])?;
        if self.num_tokens > self.embedding_dim {
            let (tokens, dim) = (self.num_tokens, self.embedding_dim);
            return Err(Error::key("num_tokens", format!("is {tokens}, it cannot be above embedding_dim ({dim})")));
        }
        // The largest float32 below 1.
        check_float("dot_product_quantile", self.dot_product_quantile(), 0.0..=1.0 - f32::EPSILON / 2.0)
    }
}
