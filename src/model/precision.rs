//! The number types that networks compute in.

use tch::{Device, Kind};

/// What weights are kept in and products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Float32: diffusers' numbers with `torch_dtype=torch.float32`.
    F32,
    /// Products in bfloat16.
    Bf16,
    /// Products in float16.
    F16,
    /// The large weights in int8 with a scale a channel, their inputs in uint8 with a scale a token, all else in float32.
    /// For the CPU alone.
    Int8,
}

impl Precision {
    /// The type that matrices are kept in, and the inputs and outputs of their products, unless they are quantized.
    ///
    /// What runs from layer to layer beside the products, and is added to in each, is float32 always: rounding it every
    /// time would cost more precision than all the rest, and it is small.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::Int8 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// Bytes of a weight in a large matrix.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 => 1,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The same without quantization, for the networks that encode text and images.
    pub fn unquantized(self) -> Self {
        if self == Self::Int8 { Self::F32 } else { self }
    }

    /// Whether `device` has instructions for products in this type; without them they are slower than in float32.
    pub fn is_fast_on(self, device: Device) -> bool {
        match (self, device) {
            (Self::F32, _) => true,
            (Self::Int8, device) => device == Device::Cpu && super::kernels::has_packed_linear(),
            (Self::Bf16, Device::Cpu) => cpu_has_bfloat16(),
            (Self::F16, Device::Cpu) => false,
            (Self::Bf16 | Self::F16, _) => true,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bfloat16() -> bool {
    std::is_x86_feature_detected!("avx512bf16") && may_use("AVX512_CORE_BF16")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_bfloat16() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_bfloat16() -> bool {
    false
}

/// The largest number that inputs of int8 products are quantized to.
///
/// Processors without VNNI add two products of 8 bits in 16 bits and saturate; one bit less always fits.
pub(super) fn int8_levels() -> u8 {
    #[cfg(target_arch = "x86_64")]
    let is_exact = std::is_x86_feature_detected!("avx512vnni") && may_use("AVX512_CORE_VNNI");
    #[cfg(not(target_arch = "x86_64"))]
    let is_exact = false;
    if is_exact { 255 } else { 127 }
}

/// Whether oneDNN's own environment variable leaves it an instruction set, or a later one.
#[cfg(target_arch = "x86_64")]
fn may_use(instructions: &str) -> bool {
    const SETS: [&str; 7] =
        ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"];
    let cap = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"].iter().find_map(|name| std::env::var(name).ok());
    let place = |name: &str| SETS.iter().position(|set| set.eq_ignore_ascii_case(name));
    // A cap that is not listed is later than all that are.
    match (cap.as_deref().and_then(place), place(instructions)) {
        (Some(cap), Some(wanted)) => cap >= wanted,
        _ => true,
    }
}
