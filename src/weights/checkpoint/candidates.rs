//! The names of weight files, and the order in which they are preferred.

use crate::json;
use serde_json::Value;

/// The library that saves and loads a component. Each looks for weights in its own order, which matters where a folder holds
/// the weights of several saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The prior's. It prefers shards to a whole file.
    Diffusers,
    /// The CLIP encoders'. It prefers a whole file to shards.
    Transformers,
}

impl Library {
    /// The library that wrote a component's `config.json`.
    pub fn of_config(text: &str) -> Self {
        let config: Option<Value> = json::from_str(text).ok();
        let has = |key: &str| config.as_ref().is_some_and(|config| config.get(key).is_some());
        if !has("_class_name") && (has("model_type") || has("architectures")) {
            Self::Transformers
        } else {
            Self::Diffusers
        }
    }

    /// The names of its safetensors and its torch files, without variant and extension.
    fn stems(self) -> [&'static str; 2] {
        match self {
            Self::Diffusers => ["diffusion_pytorch_model", "diffusion_pytorch_model"],
            Self::Transformers => ["model", "pytorch_model"],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Diffusers => Self::Transformers,
            Self::Transformers => Self::Diffusers,
        }
    }
}

/// The extensions of weight files.
const EXTENSIONS: [&str; 2] = ["safetensors", "bin"];

/// The variants of weights, in the order of preference for loading.
pub const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// The same for downloading, where 16 bits are enough.
pub const SIXTEEN_BIT_VARIANTS: [&str; 3] = [".fp16", ".bf16", ""];

/// Whether a file holds weights, and so may be large.
pub fn is_weights(path: &str) -> bool {
    EXTENSIONS.iter().any(|extension| path.rsplit('.').next() == Some(extension))
}

/// A file that may hold weights, or lead to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name in the component's folder.
    pub name: String,
    /// Whether it is an index of shards.
    pub is_index: bool,
    /// Whether it is not a variant: no other file holds more exact weights.
    pub is_plain: bool,
}

/// The files that the weights of a component of `library` may be in, in the order of preference: variants, then the
/// library's own names before the other's.
///
/// Source: diffusers 0.42 `models/modeling_utils.py` and `models/model_loading_utils.py`, transformers 5.23
/// `modeling_utils.py` (`_get_resolved_checkpoint_files`), as both are called without `use_safetensors`.
pub fn candidates(library: Library, variants: [&'static str; 3]) -> impl Iterator<Item = Candidate> {
    variants.into_iter().flat_map(move |variant| {
        [library, library.other()].into_iter().flat_map(move |library| of_library(library, variant))
    })
}

/// The candidates under one library's names, in its order.
fn of_library(library: Library, variant: &str) -> Vec<Candidate> {
    let is_plain = variant.is_empty();
    let candidate = |name: String, is_index: bool| Candidate { name, is_index, is_plain };
    let [safe, torch] = library.stems();
    let whole = |stem: &str, extension: &str| candidate(format!("{stem}{variant}.{extension}"), false);
    let index = |stem: &str, extension: &str| candidate(format!("{stem}.{extension}.index{variant}.json"), true);
    let [safe_extension, torch_extension] = EXTENSIONS;
    let mut found = match library {
        Library::Diffusers => vec![
            index(safe, safe_extension),
            // An older spelling of a variant.
            candidate(format!("{safe}.{safe_extension}{variant}.index.json"), true),
            whole(safe, safe_extension),
            whole(torch, torch_extension),
            // diffusers reads it with use_safetensors=False only.
            index(torch, torch_extension),
        ],
        Library::Transformers => vec![
            whole(safe, safe_extension),
            index(safe, safe_extension),
            whole(torch, torch_extension),
            index(torch, torch_extension),
        ],
    };
    // Neither library reads these, but models with them are published.
    let others = [(safe, safe_extension), (torch, torch_extension)];
    found.extend(others.map(|(stem, extension)| candidate(format!("{stem}{variant}.{extension}.index.json"), true)));
    if is_plain {
        // Without a variant, the spellings of an index are the same.
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|candidate| seen.insert(candidate.name.clone()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(library: Library, variant: &str) -> Vec<String> {
        of_library(library, variant).into_iter().map(|candidate| candidate.name).collect()
    }

    #[test]
    fn each_library_has_its_own_order() {
        let prior = names(Library::Diffusers, "");
        assert_eq!(
            prior,
            [
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.bin.index.json",
            ]
        );
        let encoder = names(Library::Transformers, "");
        assert_eq!(
            encoder,
            ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
        );
        assert_eq!(
            names(Library::Diffusers, ".fp16")[..4],
            [
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.safetensors.fp16.index.json",
                "diffusion_pytorch_model.fp16.safetensors",
                "diffusion_pytorch_model.fp16.bin",
            ]
        );
        assert_eq!(
            names(Library::Transformers, ".fp16")[..2],
            ["model.fp16.safetensors", "model.safetensors.index.fp16.json"]
        );
    }

    #[test]
    fn a_configuration_tells_its_library() {
        for (text, library) in [
            (r#"{"_class_name": "PriorTransformer"}"#, Library::Diffusers),
            (r#"{"architectures": ["CLIPTextModelWithProjection"]}"#, Library::Transformers),
            (r#"{"model_type": "clip"}"#, Library::Transformers),
            (r#"{"embedding_dim": 768}"#, Library::Diffusers),
            ("broken", Library::Diffusers),
        ] {
            assert_eq!(Library::of_config(text), library, "{text}");
        }
    }
}
