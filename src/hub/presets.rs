//! The models with a short name.

use crate::error::Component;
use crate::pipeline::builtin;

/// A model on the hub with a short name: a repository and, for some, components from other repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The short name.
    pub name: &'static str,
    /// The repository on the hub.
    pub repository: &'static str,
    /// The components that come from elsewhere, each with its repository.
    pub components: &'static [(Component, &'static str)],
    /// The embedding dimension.
    pub dimension: u32,
    /// The licence of the weights, if it is one for all.
    pub licence: Option<&'static str>,
    /// The approximate size of a float32 download in bytes, without the image encoder.
    pub bytes: u64,
}

/// The short names, the smallest download first.
///
/// Each prior has 1.02 G parameters, ECLIPSE's 0.03 G, Shap-E's 0.3 G; the text encoder 0.12 G (ViT-L/14) or 0.69 G
/// (ViT-bigG/14).
pub const PRESETS: [Preset; 7] = [
    // ECLIPSE (arXiv 2312.04655) published priors alone, at their repositories' roots; all else is the base model's.
    Preset {
        name: "eclipse-karlo",
        repository: "kakaobrain/karlo-v1-alpha",
        components: &[(Component::Prior, "ECLIPSE-Community/ECLIPSE_Karlo_Prior")],
        dimension: 768,
        licence: None,
        bytes: 630_000_000,
    },
    Preset {
        name: "shap-e",
        repository: "openai/shap-e",
        components: &[],
        dimension: 1024,
        licence: Some("mit"),
        bytes: 1_730_000_000,
    },
    Preset {
        name: "eclipse-kandinsky-2.2",
        repository: "kandinsky-community/kandinsky-2-2-prior",
        components: &[(Component::Prior, "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior")],
        dimension: 1280,
        licence: None,
        bytes: 2_920_000_000,
    },
    Preset {
        name: "karlo",
        repository: "kakaobrain/karlo-v1-alpha",
        components: &[],
        dimension: 768,
        licence: Some("creativeml-openrail-m"),
        bytes: 4_580_000_000,
    },
    Preset {
        name: "kandinsky-2.1",
        repository: "kandinsky-community/kandinsky-2-1-prior",
        components: &[],
        dimension: 768,
        licence: Some("apache-2.0"),
        bytes: 4_580_000_000,
    },
    // Stability's own repositories hold the decoder alone. This one, by the authors of diffusers, is the decoder together
    // with Karlo's prior, saved as a `StableUnCLIPPipeline`: the weights are Karlo's, and so is the licence. The `-l`
    // stands for ViT-L/14, which is what Karlo's embeddings are of; there is a `-h` too, whose decoder takes others.
    Preset {
        name: "stable-unclip",
        repository: "diffusers/stable-diffusion-2-1-unclip-t2i-l",
        components: &[],
        dimension: 768,
        licence: Some("creativeml-openrail-m"),
        bytes: 4_580_000_000,
    },
    Preset {
        name: "kandinsky-2.2",
        repository: "kandinsky-community/kandinsky-2-2-prior",
        components: &[],
        dimension: 1280,
        licence: Some("apache-2.0"),
        bytes: 6_890_000_000,
    },
];

impl Preset {
    /// The preset of this name.
    pub fn of(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }
}

/// The licence of the built-in models.
pub const EMOJI_LICENCE: &str = "CC BY 4.0";

/// The short names, for messages.
pub fn names() -> String {
    let presets = PRESETS.map(|preset| preset.name).join(", ");
    let builtin: Vec<&str> = builtin::MODELS.iter().map(|model| model.name).collect();
    format!("the built-in {}, {presets}", builtin.join(" and "))
}
