//! The building blocks that the networks share.
//!
//! Kernels live behind [`Linear`] and [`attention`]: the models do not know them.

pub mod attention;

use super::precision::{Precision, int8_levels};
pub use crate::kernels::Activation;
use crate::kernels::{self, Bfloat16Weight, Epilogue, Int8Weight};
use crate::weights::checkpoint::{StackedWeight, Weights};
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// `y = x Wᵀ + b` over the last dimension, in the type of its [`Precision`].
#[derive(Debug)]
pub struct Linear {
    kernel: Kernel,
    bias: Option<Tensor>,
    /// What the product takes and gives.
    kind: Kind,
}

/// How the product is computed.
#[derive(Debug)]
enum Kernel {
    /// libtorch's own, on any device: the weight `(outputs, inputs)`.
    Plain(Tensor),
    /// oneDNN's on the CPU: the weight in its own layout.
    Packed(Tensor),
    /// For bfloat16 on CPUs that have it.
    Bfloat16(Bfloat16Weight),
    /// oneDNN's on the CPU, in int8.
    Int8(Int8Weight),
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    ///
    /// # Errors
    /// If libtorch fails to make the tensors.
    pub fn load(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        Self::load_stacked(std::slice::from_ref(weights), inputs, outputs)
    }

    /// Reads several layers of the same input as one, their outputs side by side.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_stacked(parts: &[Weights], inputs: i64, outputs: i64) -> Result<Self> {
        let biases = parts.iter().map(|part| part.tensor("bias", &[outputs])).collect::<Result<Vec<_>>>()?;
        let kernel = Kernel::load(parts, inputs, outputs)?;
        // While a checkpoint is only checked there is nothing to stack.
        let bias = if biases.iter().all(Tensor::defined) { Tensor::f_cat(&biases, 0)? } else { Tensor::new() };
        Self::new(kernel, Some(bias), parts)
    }

    /// Reads `weight` `(outputs, inputs)` alone.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_without_bias(weights: &Weights, inputs: i64, outputs: i64) -> Result<Self> {
        let parts = std::slice::from_ref(weights);
        Self::new(Kernel::load(parts, inputs, outputs)?, None, parts)
    }

    fn new(kernel: Kernel, bias: Option<Tensor>, parts: &[Weights]) -> Result<Self> {
        let kind = parts.first().map_or(Kind::Float, |part| part.precision().kind());
        let bias = match (&kernel, bias) {
            // While a checkpoint is only checked there is none.
            (_, Some(bias)) if !bias.defined() => Some(bias),
            // These add in float32.
            (Kernel::Bfloat16(_) | Kernel::Int8(_), bias) => bias,
            (_, bias) => bias.map(|bias| bias.f_to_kind(kind)).transpose()?,
        };
        Ok(Self { kernel, bias, kind })
    }

    /// `(…, inputs)` to `(…, outputs)`, from any float type to that of the precision.
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

    /// As [`Linear::forward`], plus `residual`, `(…, outputs)` in float32, which is also what it gives.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match (self.kind, &self.kernel) {
            (Kind::Float, _) | (_, Kernel::Bfloat16(_)) => self.run(x, Epilogue::Add(residual)),
            _ => Ok(residual.f_add(&self.forward(x)?)?),
        }
    }

    fn run(&self, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        let x = &x.f_to_kind(self.kind)?;
        match &self.kernel {
            Kernel::Bfloat16(weight) => match epilogue {
                Epilogue::Add(_) => Ok(weight.linear(x, bias, epilogue)?),
                _ => Ok(weight.linear(x, bias, epilogue)?.f_to_kind(self.kind)?),
            },
            Kernel::Packed(weight) => Ok(kernels::packed_linear(x, weight, bias, epilogue)?),
            Kernel::Int8(weight) => Ok(weight.linear(x, bias, epilogue)?),
            Kernel::Plain(weight) => {
                let y = x.f_linear(weight, bias)?;
                Ok(match epilogue {
                    Epilogue::None => y,
                    Epilogue::Gelu => Activation::Gelu.forward(&y)?,
                    Epilogue::Add(residual) => y.f_add(residual)?,
                })
            }
        }
    }
}

impl Kernel {
    /// Reads the stacked weights of `parts` and packs them where oneDNN has a fast kernel.
    fn load(parts: &[Weights], inputs: i64, outputs: i64) -> Result<Self> {
        let precision = parts.first().map_or(Precision::F32, Weights::precision);
        let packs = parts.iter().all(|part| part.device() == Device::Cpu) && kernels::has_packed_linear();
        let shape = [outputs, inputs];
        let Some(weight) = StackedWeight::borrow(parts, &shape)? else { return Ok(Self::Plain(Tensor::new())) };
        match precision {
            Precision::Bf16 if packs && kernels::has_bfloat16() => {
                Ok(Self::Bfloat16(Bfloat16Weight::pack(weight.tensor())?))
            }
            Precision::Int8 if packs => Ok(Self::Int8(Int8Weight::pack(weight.tensor(), int8_levels()?)?)),
            Precision::F32 | Precision::Bf16 if packs && precision.is_fast_on(Device::Cpu) => {
                Ok(Self::Packed(kernels::pack_linear(&weight.tensor().f_to_kind(precision.kind())?)?))
            }
            _ => weight.to_owned(precision.kind(), parts.first().map_or(Device::Cpu, Weights::device)).map(Self::Plain),
        }
    }
}

/// Layer normalization over the last dimension, in float32.
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

impl Activation {
    /// Applies the function element by element.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if x.device() == Device::Cpu {
            return Ok(kernels::activate(x, self)?);
        }
        Ok(match self {
            Self::Silu => x.f_silu()?,
            Self::Mish => x.f_mish()?,
            Self::Gelu => x.f_gelu("none")?,
            Self::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
            Self::Relu => x.f_relu()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Folder;
    use crate::weights::checkpoint::{Checkpoint, Placement};

    #[test]
    fn a_bias_is_added_as_it_is_stored() {
        // The sum is not a number of bfloat16, and nor is a part of it.
        let (weight, bias, residual) = (2.0, 1.0 + 2_f64.powi(-12), 2_f64.powi(-13));
        let full = |size: &[i64], value: f64| Tensor::full(size, value, (Kind::Float, Device::Cpu));
        let folder = tempfile::TempDir::new().unwrap();
        let tensors = [("weight", full(&[3, 5], weight)), ("bias", full(&[3], bias))];
        Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
        let checkpoint = Checkpoint::open_folder(&Folder::from(folder.path())).unwrap();
        let precisions = [Precision::F32, Precision::Int8, Precision::Bf16];
        // Of bfloat16, our own kernel; oneDNN's takes a bias of its own type.
        let is_ours = |precision: &Precision| *precision != Precision::Bf16 || kernels::has_bfloat16();
        let is_fast = |precision: &Precision| precision.is_fast_on(Device::Cpu) && is_ours(precision);
        for precision in precisions.into_iter().filter(is_fast) {
            let placement = Placement { device: Device::Cpu, precision };
            let layer = checkpoint.build("", placement, |weights| Linear::load(weights, 5, 3)).unwrap();
            // Without a part that is rounded by quantization.
            let output = layer.forward_add(&full(&[2, 5], 0.0), &full(&[2, 3], residual)).unwrap();
            assert_eq!(output, full(&[2, 3], bias + residual), "{precision:?}");
        }
    }
}
