//! The layers that the networks share.
//!
//! Kernels are behind [`Linear`] and [`attention`]; the networks do not know them.

pub mod attention;

use crate::error::Result;
pub use crate::kernels::Activation;
use crate::kernels::{self, Bfloat16Weight, Epilogue, Int8Weight, PanelWeight};
use crate::weights::checkpoint::{StackedWeight, Weights};
use crate::weights::precision::Precision;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// `y = x Wᵀ + b` over the last dimension, in the type of its [`Precision`].
#[derive(Debug)]
pub struct Linear {
    kernel: Kernel,
    bias: Option<Tensor>,
    /// The type of the product's input and output.
    kind: Kind,
}

/// The weight of a product, in the layout of the kernel that computes it.
#[derive(Debug)]
enum Kernel {
    /// For libtorch, on any device: `(outputs, inputs)`.
    Plain(Tensor),
    /// For oneDNN, on the CPU.
    Packed(Tensor),
    /// For our own kernel in float32, on CPUs with AVX2 or AVX-512. Weights of 16 bits stay so.
    Panels(PanelWeight),
    /// For our own kernel in bfloat16, on CPUs with bfloat16.
    Bfloat16(Bfloat16Weight),
    /// For oneDNN in int8, on the CPU.
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

    /// Reads several layers of the same input as one, with their outputs side by side.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_stacked(parts: &[Weights], inputs: i64, outputs: i64) -> Result<Self> {
        let biases = parts.iter().map(|part| part.tensor("bias", &[outputs])).collect::<Result<Vec<_>>>()?;
        let kernel = Kernel::load(parts, inputs, outputs)?;
        // In the pass that only checks the checkpoint there is nothing to stack.
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
            // In the pass that only checks the checkpoint there is none.
            (_, Some(bias)) if !bias.defined() => Some(bias),
            // These add it in float32.
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

    /// As [`Linear::forward`], plus `residual`; both `residual` and the result are `(…, outputs)` in float32.
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
            Kernel::Panels(weight) => Ok(weight.linear(x, bias, epilogue)?),
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
    /// Reads the stacked weights of `parts`, and packs them for the fastest kernel.
    fn load(parts: &[Weights], inputs: i64, outputs: i64) -> Result<Self> {
        let precision = parts.first().map_or(Precision::F32, Weights::precision);
        let is_on_cpu = parts.iter().all(|part| part.device() == Device::Cpu);
        let packs = is_on_cpu && kernels::has_packed_linear();
        let shape = [outputs, inputs];
        let Some(weight) = StackedWeight::borrow(parts, &shape)? else { return Ok(Self::Plain(Tensor::new())) };
        // Whatever type weights are stored in, their products in float32 are the same: all are summed up in one order.
        let fits_panels = matches!(weight.tensor().kind(), Kind::Float | Kind::Half | Kind::BFloat16);
        match (precision, kernels::panel_width().filter(|_| is_on_cpu)) {
            (Precision::F32, Some(width)) if fits_panels => {
                return Ok(Self::Panels(PanelWeight::pack(weight.tensor(), width)?));
            }
            (Precision::Bf16Weights, Some(width)) => {
                let rounded = weight.tensor().f_to_kind(Kind::BFloat16)?;
                return Ok(Self::Panels(PanelWeight::pack(&rounded, width)?));
            }
            _ => {}
        }
        match precision {
            Precision::Bf16 if packs && kernels::has_bfloat16() => {
                Ok(Self::Bfloat16(Bfloat16Weight::pack(weight.tensor())?))
            }
            Precision::Int8 if packs => Ok(Self::Int8(pack_int8(weight.tensor())?)),
            Precision::F32 | Precision::Bf16 if packs && precision.is_fast_on(Device::Cpu) => {
                Ok(Self::Packed(kernels::pack_linear(&weight.tensor().f_to_kind(precision.kind())?)?))
            }
            _ => weight.to_owned(precision.kind(), parts.first().map_or(Device::Cpu, Weights::device)).map(Self::Plain),
        }
    }
}

/// Packs a weight in int8, in panels where the processor has no instructions for its products: with AVX2 these were
/// measured to be as fast as oneDNN or faster for any number of rows.
///
/// # Errors
/// As [`Int8Weight::pack`].
fn pack_int8(weight: &Tensor) -> Result<Int8Weight> {
    match int8_levels()? {
        u8::MAX => Int8Weight::pack(weight, u8::MAX),
        _ if kernels::has_int8_panels() && kernels::panel_width() == Some(16) => Int8Weight::pack_panels(weight),
        levels => Int8Weight::pack(weight, levels),
    }
}

/// The largest number that inputs of int8 products are quantized to.
///
/// CPUs without VNNI add two 8-bit products in 16 bits and saturate, which one bit less avoids. The kernel that oneDNN
/// chooses depends on its environment variables too, so this is measured rather than looked up.
///
/// # Errors
/// If memory runs out.
fn int8_levels() -> Result<u8> {
    static LEVELS: OnceLock<u8> = OnceLock::new();
    match LEVELS.get() {
        Some(&levels) => Ok(levels),
        None => {
            let levels = if kernels::holds_int8_products(u8::MAX)? { u8::MAX } else { u8::MAX / 2 };
            Ok(*LEVELS.get_or_init(|| levels))
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
    /// torch's default, which diffusers uses everywhere in the prior.
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
    /// Applies the function element-wise.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if x.device() == Device::Cpu {
            return kernels::activate(x, self);
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
    fn int8_products_do_not_saturate() {
        let levels = int8_levels().unwrap();
        assert!(kernels::holds_int8_products(levels).unwrap(), "{levels} levels");
    }

    #[test]
    fn a_bias_is_added_as_it_is_stored() {
        // Neither the sum nor a part of it is a bfloat16 number.
        let (weight, bias, residual) = (2.0, 1.0 + 2_f64.powi(-12), 2_f64.powi(-13));
        let full = |size: &[i64], value: f64| Tensor::full(size, value, (Kind::Float, Device::Cpu));
        let folder = tempfile::TempDir::new().unwrap();
        let tensors = [("weight", full(&[3, 5], weight)), ("bias", full(&[3], bias))];
        Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
        let checkpoint = Checkpoint::open_folder(&Folder::from(folder.path())).unwrap();
        let precisions = [Precision::F32, Precision::Int8, Precision::Bf16];
        // For bfloat16, our own kernel alone: oneDNN's takes a bias in bfloat16.
        let is_ours = |precision: &Precision| *precision != Precision::Bf16 || kernels::has_bfloat16();
        let is_fast = |precision: &Precision| precision.is_fast_on(Device::Cpu) && is_ours(precision);
        for precision in precisions.into_iter().filter(is_fast) {
            let placement = Placement { device: Device::Cpu, precision };
            let layer = checkpoint.build("", placement, |weights| Linear::load(weights, 5, 3)).unwrap();
            // The input is zero, since quantization would round its product.
            let output = layer.forward_add(&full(&[2, 5], 0.0), &full(&[2, 3], residual)).unwrap();
            assert_eq!(output, full(&[2, 3], bias + residual), "{precision:?}");
        }
    }
}
