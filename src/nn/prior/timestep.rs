//! Embeds timesteps: sines and cosines, then an MLP.

use super::config::PriorConfig;
use crate::error::Result;
use crate::nn::layers::{Activation, Linear};
use crate::weights::checkpoint::Weights;
use tch::{Kind, Tensor};

/// The sinusoidal embedding of timesteps, `(timesteps)` to `(timesteps, dim)` in float32: cosines, then sines.
///
/// Source: diffusers `models/embeddings.py`, `get_timestep_embedding` with `flip_sin_to_cos` and no frequency shift.
pub(super) fn sinusoidal_embedding(timestep: &Tensor, dim: i64) -> Result<Tensor> {
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
pub(super) struct TimestepEmbedding {
    linear_1: Linear,
    act: Activation,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(super) fn load(weights: &Weights, config: &PriorConfig) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&weights.sub("linear_1"), config.inner_dim(), config.time_embed_dim())?,
            act: config.time_embed_activation()?,
            linear_2: Linear::load(&weights.sub("linear_2"), config.time_embed_dim(), config.inner_dim())?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.act.forward(&self.linear_1.forward(x)?)?)
    }
}
