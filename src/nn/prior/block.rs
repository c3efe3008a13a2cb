//! A transformer block of the prior: pre-norm self-attention and a GELU MLP.
//!
//! Source: diffusers 0.42 `models/attention.py`, `BasicTransformerBlock`.

use crate::error::Result;
use crate::nn::layers::attention::{AttentionRanges, attention};
use crate::nn::layers::{LayerNorm, Linear};
use crate::weights::checkpoint::Weights;
use tch::Tensor;

/// `BasicTransformerBlock`.
#[derive(Debug)]
pub(super) struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    /// Reads a block of this inner dimension.
    pub(super) fn load(weights: &Weights, heads: i64, width: i64) -> Result<Self> {
        let norm = |name: &str| LayerNorm::load(&weights.sub(name), width, LayerNorm::DEFAULT_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::load(&weights.sub("attn1"), heads, width)?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&weights.sub("ff"), width)?,
        })
    }

    /// The block over a whole sequence, `(batch, tokens, inner_dim)`; `mask` is added to the scores.
    pub(super) fn forward(&self, hidden_states: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let Projected { query, key_value } = self.project(hidden_states)?;
        self.finish(&self.attend_whole(&query, &key_value, mask)?, hidden_states)
    }

    /// The queries, keys and values of tokens `(…, inner_dim)`.
    pub(super) fn project(&self, hidden_states: &Tensor) -> Result<Projected> {
        let projected = self.attn1.to_qkv.forward(&self.norm1.forward(hidden_states)?)?;
        let width = self.attn1.width;
        Ok(Projected { query: projected.f_narrow(-1, 0, width)?, key_value: projected.f_narrow(-1, width, 2 * width)? })
    }

    /// The attention of `query` `(tokens, inner_dim)` over the segments of keys and values `rows`, in the same shape.
    pub(super) fn attend(&self, query: &Tensor, seen: &AttentionRanges, rows: &[&Tensor]) -> Result<Tensor> {
        seen.attend(query, self.attn1.heads, rows)
    }

    /// The attention of `query` `(batch, tokens, inner_dim)` over `key_value` `(batch, keys, 2 · inner_dim)`, in the
    /// same shape; `mask` is added to the scores.
    pub(super) fn attend_whole(&self, query: &Tensor, key_value: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let width = self.attn1.width;
        let (key, value) = (key_value.f_narrow(-1, 0, width)?, key_value.f_narrow(-1, width, width)?);
        attention(query, &key, &value, self.attn1.heads, mask)
    }

    /// The rest of the block after attention, `(…, inner_dim)`.
    pub(super) fn finish(&self, attended: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let hidden_states = self.attn1.to_out.forward_add(attended, residual)?;
        self.ff.forward_add(&self.norm3.forward(&hidden_states)?, &hidden_states)
    }
}

/// The queries, keys and values of some tokens.
pub(super) struct Projected {
    /// `(…, inner_dim)`.
    pub(super) query: Tensor,
    /// Keys and values side by side, `(…, 2 · inner_dim)`.
    pub(super) key_value: Tensor,
}

#[derive(Debug)]
struct Attention {
    /// `to_q`, `to_k` and `to_v` as one product.
    to_qkv: Linear,
    to_out: Linear,
    width: i64,
    heads: i64,
}

impl Attention {
    fn load(weights: &Weights, heads: i64, width: i64) -> Result<Self> {
        let parts = ["to_q", "to_k", "to_v"].map(|name| weights.sub(name));
        Ok(Self {
            to_qkv: Linear::load_stacked(&parts, width, width)?,
            to_out: Linear::load(&weights.sub("to_out.0"), width, width)?,
            width,
            heads,
        })
    }
}

/// An MLP with GELU, four times as wide inside.
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

    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.net_2.forward_add(&self.net_0.forward_gelu(x)?, residual)
    }
}
