//! The building blocks that the networks share. Kernels live behind [`Linear`]; the models do not know them.

use super::checkpoint::Weights;
use anyhow::Result;
use tch::Tensor;

/// `y = x Wᵀ + b` over the last dimension.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        let bias = Some(weights.tensor("bias", &[outputs])?);
        Ok(Self { weight: weights.tensor("weight", &[outputs, inputs])?, bias })
    }

    /// Reads `weight` `(outputs, inputs)` alone.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_without_bias(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self { weight: weights.tensor("weight", &[outputs, inputs])?, bias: None })
    }

    /// `(…, inputs)` to `(…, outputs)`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// Layer normalization over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    /// torch's default, which diffusers keeps everywhere in the prior.
    pub const DEFAULT_EPS: f64 = 1e-5;

    /// Reads `weight` and `bias`, both `(size)`.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, size: i64, eps: f64) -> Result<Self> {
        let weight = weights.tensor("weight", &[size])?;
        Ok(Self { weight, bias: weights.tensor("bias", &[size])?, size, eps })
    }

    /// `(…, size)` to the same shape.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm([self.size], Some(&self.weight), Some(&self.bias), self.eps, false)?)
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`, also called swish.
    Silu,
    /// `x · tanh(softplus(x))`.
    Mish,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `x · σ(1.702 x)`, OpenAI's CLIP (transformers' `QuickGELUActivation`).
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Applies the function element by element.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.f_silu()?,
            Self::Mish => x.f_mish()?,
            Self::Gelu => x.f_gelu("none")?,
            Self::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
            Self::Relu => x.f_relu()?,
        })
    }
}

/// What a token may attend to.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every token sees every token.
    Full,
    /// A token sees itself and what comes before it.
    Causal,
    /// Added to the scores, broadcast to `(batch, heads, queries, keys)`.
    Added(&'a Tensor),
}

/// Multi-head scaled dot-product attention.
///
/// `query` is `(batch, queries, heads · head_dim)`, `key` and `value` are `(batch, keys, heads · head_dim)`; the result
/// has the shape of `query`. Scores are scaled by `1 / √head_dim`.
///
/// # Errors
/// If the shapes do not fit or memory runs out.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64, mask: Mask) -> Result<Tensor> {
    let query = split_heads(query, heads)?;
    let key = split_heads(key, heads)?;
    let value = split_heads(value, heads)?;
    let (added, causal) = match mask {
        Mask::Full => (None, false),
        Mask::Causal => (None, true),
        Mask::Added(mask) => (Some(mask), false),
    };
    let scale: Option<f64> = None;
    let output = Tensor::f_scaled_dot_product_attention(&query, &key, &value, added, 0.0, causal, scale, false)?;
    Ok(output.f_transpose(1, 2)?.f_flatten(2, 3)?)
}

/// `(batch, tokens, heads · head_dim)` to `(batch, heads, tokens, head_dim)`.
fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, tokens, width) = x.size3()?;
    Ok(x.f_reshape([batch, tokens, heads, width / heads])?.f_transpose(1, 2)?)
}
