//! The names that files of weights have, and the order in which they are preferred.

use crate::json;
use serde_json::Value;

/// The library that a component is saved and loaded by. Each looks for weights in an order of its own, which matters where
/// a folder holds the weights of several saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The prior's. Its index of shards comes before a file that holds everything.
    Diffusers,
    /// The CLIP encoders'. A file that holds everything comes before an index of shards.
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

    /// The names without variant and ending of its safetensors and its torch files.
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

/// The endings of weight files.
const ENDINGS: [&str; 2] = ["safetensors", "bin"];

/// The variants of weights, in the order in which one that is there is loaded.
pub const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// The same for one that is still to be downloaded, where 16 bits are enough.
pub const SIXTEEN_BIT_VARIANTS: [&str; 3] = [".fp16", ".bf16", ""];

/// Whether a file holds weights: it may be large.
pub fn is_weights(path: &str) -> bool {
    ENDINGS.iter().any(|ending| path.rsplit('.').next() == Some(ending))
}

/// A file that may lead to weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name in the component's folder.
    pub name: String,
    /// Whether it is an index, which names the files.
    pub is_index: bool,
    /// Whether it is no variant: no other file holds more exact weights.
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

/// The files under one library's names, in its order.
fn of_library(library: Library, variant: &str) -> Vec<Candidate> {
    let is_plain = variant.is_empty();
    let candidate = |name: String, is_index: bool| Candidate { name, is_index, is_plain };
    let [safe, torch] = library.stems();
    let whole = |stem: &str, ending: &str| candidate(format!("{stem}{variant}.{ending}"), false);
    let index = |stem: &str, ending: &str| candidate(format!("{stem}.{ending}.index{variant}.json"), true);
    let [safe_ending, torch_ending] = ENDINGS;
    let mut found = match library {
        Library::Diffusers => vec![
            index(safe, safe_ending),
            // An older spelling, with a variant.
            candidate(format!("{safe}.{safe_ending}{variant}.index.json"), true),
            whole(safe, safe_ending),
            whole(torch, torch_ending),
            // Which diffusers reads only if it is told not to look for safetensors.
            index(torch, torch_ending),
        ],
        Library::Transformers => vec![
            whole(safe, safe_ending),
            index(safe, safe_ending),
            whole(torch, torch_ending),
            index(torch, torch_ending),
        ],
    };
    // Neither library reads these, but models with them have been published.
    let others = [(safe, safe_ending), (torch, torch_ending)];
    found.extend(others.map(|(stem, ending)| candidate(format!("{stem}{variant}.{ending}.index.json"), true)));
    if is_plain {
        // Without a variant the spellings of an index are one.
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
