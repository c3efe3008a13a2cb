//! The building blocks that the networks share.
//!
//! Kernels live behind [`Linear`] and [`attention`]: the models do not know them.

pub mod attention;

use super::checkpoint::Weights;
use super::kernels::{self, Epilogue};
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// `y = x Wᵀ + b` over the last dimension.
#[derive(Debug)]
pub struct Linear {
    kernel: Kernel,
    bias: Option<Tensor>,
}

/// How the product is computed.
#[derive(Debug)]
enum Kernel {
    /// libtorch's own, on any device: the weight `(outputs, inputs)`.
    Plain(Tensor),
    /// oneDNN's on the CPU: the weight in its own layout.
    Packed(Tensor),
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        Self::load_stacked(&[weights.clone()], inputs, outputs)
    }

    /// Reads several layers of the same input as one, their outputs side by side.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_stacked(parts: &[Weights], inputs: i64, outputs: i64) -> Result<Self> {
        let read = |name: &str, shape: &[i64]| -> Result<Tensor> {
            let tensors = parts.iter().map(|part| part.tensor(name, shape)).collect::<Result<Vec<_>>>()?;
            stack(tensors)
        };
        let (weight, bias) = (read("weight", &[outputs, inputs])?, read("bias", &[outputs])?);
        Ok(Self { kernel: Kernel::choose(weight)?, bias: Some(bias) })
    }

    /// Reads `weight` `(outputs, inputs)` alone.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_without_bias(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self { kernel: Kernel::choose(weights.tensor("weight", &[outputs, inputs])?)?, bias: None })
    }

    /// `(…, inputs)` to `(…, outputs)`.
    ///
    /// # Errors
    /// If the shapes do not fit or memory runs out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Epilogue::None)
    }

    /// As [`Linear::forward`], then exact GELU.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Epilogue::Gelu)
    }

    /// As [`Linear::forward`], plus `residual`, `(…, outputs)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Epilogue::Add(residual))
    }

    fn run(&self, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        match &self.kernel {
            Kernel::Packed(weight) => kernels::packed_linear(x, weight, self.bias.as_ref(), epilogue),
            Kernel::Plain(weight) => {
                let y = x.f_linear(weight, self.bias.as_ref())?;
                Ok(match epilogue {
                    Epilogue::None => y,
                    Epilogue::Gelu => y.f_gelu("none")?,
                    Epilogue::Add(residual) => y.f_add(residual)?,
                })
            }
        }
    }
}

impl Kernel {
    /// Packs what oneDNN has a fast kernel for.
    fn choose(weight: Tensor) -> Result<Self> {
        let packs = weight.defined()
            && weight.device() == Device::Cpu
            && matches!(weight.kind(), Kind::Float | Kind::BFloat16)
            && kernels::has_packed_linear();
        if packs { Ok(Self::Packed(kernels::pack_linear(&weight)?)) } else { Ok(Self::Plain(weight)) }
    }
}

/// One after the other along the first dimension. There is nothing to stack while a checkpoint is only checked.
fn stack(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match tensors.len() {
        1 => Ok(tensors.swap_remove(0)),
        _ if tensors.iter().all(Tensor::defined) => Ok(Tensor::f_cat(&tensors, 0)?),
        _ => Ok(Tensor::new()),
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
