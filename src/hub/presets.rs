//! The models with a short name.

use crate::pipeline::builtin::EMOJI;

/// A repository on the hub with a short name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The short name.
    pub name: &'static str,
    /// The repository on the hub.
    pub repository: &'static str,
    /// The embedding dimension.
    pub dimension: u32,
    /// The licence of the weights.
    pub licence: &'static str,
    /// The approximate size of a float32 download in bytes, without the image encoder.
    pub bytes: u64,
}

/// The short names, the smallest download first.
///
/// Each prior has 1.02 G parameters, but Shap-E's 0.3 G; the text encoder 0.12 G (ViT-L/14) or 0.69 G (ViT-bigG/14).
pub const PRESETS: [Preset; 5] = [
    Preset { name: "shap-e", repository: "openai/shap-e", dimension: 1024, licence: "mit", bytes: 1_730_000_000 },
    Preset {
        name: "karlo",
        repository: "kakaobrain/karlo-v1-alpha",
        dimension: 768,
        licence: "creativeml-openrail-m",
        bytes: 4_580_000_000,
    },
    Preset {
        name: "kandinsky-2.1",
        repository: "kandinsky-community/kandinsky-2-1-prior",
        dimension: 768,
        licence: "apache-2.0",
        bytes: 4_580_000_000,
    },
    // Stability's own repositories hold the decoder alone. This one, by the authors of diffusers, is the decoder together
    // with Karlo's prior, saved as a `StableUnCLIPPipeline`: the weights are Karlo's, and so is the licence. The `-l`
    // stands for ViT-L/14, which is what Karlo's embeddings are of; there is a `-h` too, whose decoder takes others.
    Preset {
        name: "stable-unclip",
        repository: "diffusers/stable-diffusion-2-1-unclip-t2i-l",
        dimension: 768,
        licence: "creativeml-openrail-m",
        bytes: 4_580_000_000,
    },
    Preset {
        name: "kandinsky-2.2",
        repository: "kandinsky-community/kandinsky-2-2-prior",
        dimension: 1280,
        licence: "apache-2.0",
        bytes: 6_890_000_000,
    },
];

/// The licence of the built-in model.
pub const EMOJI_LICENCE: &str = "CC BY 4.0";

/// The short names, for messages.
pub fn names() -> String {
    let presets = PRESETS.map(|preset| preset.name).join(", ");
    format!("the built-in {EMOJI}, {presets}")
}
