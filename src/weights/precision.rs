//! The number types that networks compute in.

use crate::kernels;
use tch::{Device, Kind};

/// The type that weights are kept in and products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Float32: equal to diffusers with `torch_dtype=torch.float32`.
    F32,
    /// Products in bfloat16.
    Bf16,
    /// Large weights in bfloat16, all else in float32: what [`Precision::Bf16`] becomes on a CPU that has no products in
    /// bfloat16.
    Bf16Weights,
    /// Products in float16.
    F16,
    /// Large weights in int8 with a scale per channel, their inputs in uint8 with a scale per token, all else in
    /// float32. On the CPU alone.
    Int8,
}

impl Precision {
    /// The type of matrices, and of the inputs and outputs of their products, where these are not quantized.
    ///
    /// The residual stream is float32 always: rounding it after every layer would cost more precision than all the
    /// rest, and it is small.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::Bf16Weights | Self::Int8 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// Bytes per element of a large matrix.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::Bf16Weights | Self::F16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 | Self::Bf16Weights => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The same without quantization, for the text and image encoders.
    pub fn unquantized(self) -> Self {
        if self == Self::Int8 { Self::F32 } else { self }
    }

    /// What it becomes on `device`: itself, or [`Precision::Bf16Weights`].
    pub fn on(self, device: Device) -> Self {
        let is_instead = self == Self::Bf16 && !self.is_fast_on(device) && Self::Bf16Weights.is_fast_on(device);
        if is_instead { Self::Bf16Weights } else { self }
    }

    /// Whether `device` has instructions for products in this type; without them they are slower than in float32.
    pub fn is_fast_on(self, device: Device) -> bool {
        match (self, device) {
            (Self::F32, _) => true,
            (Self::Int8, device) => device == Device::Cpu && kernels::has_packed_linear(),
            (Self::Bf16, Device::Cpu) => cpu_has_bfloat16(),
            (Self::Bf16Weights, device) => device == Device::Cpu && kernels::panel_width().is_some(),
            (Self::F16, Device::Cpu) => false,
            (Self::Bf16 | Self::F16, _) => true,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bfloat16() -> bool {
    let cap = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"].iter().find_map(|name| std::env::var(name).ok());
    std::is_x86_feature_detected!("avx512bf16") && cap.is_none_or(|cap| has_bfloat16(&cap))
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_bfloat16() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_bfloat16() -> bool {
    false
}

/// Whether an instruction set, by oneDNN's name, has products in bfloat16. Names that are not listed are newer ones, or
/// unknown to oneDNN and ignored.
#[cfg(target_arch = "x86_64")]
fn has_bfloat16(instructions: &str) -> bool {
    const WITHOUT: [&str; 7] = ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"];
    !WITHOUT.iter().any(|name| name.eq_ignore_ascii_case(instructions))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instruction_sets_with_bfloat16_are_known() {
        for (name, expected) in
            [("avx2", false), ("AVX2_VNNI_2", false), ("AVX512_CORE_BF16", true), ("avx10_1_512", true)]
        {
            assert_eq!(super::has_bfloat16(name), expected, "{name}");
        }
    }
}
