//! The names that files of weights have, and the order in which they are preferred.

/// Stems of weight files by their ending, as diffusers (first) and transformers write them.
const STEMS: [(&str, [&str; 2]); 2] =
    [("safetensors", ["diffusion_pytorch_model", "model"]), ("bin", ["diffusion_pytorch_model", "pytorch_model"])];

/// The variants of weights, in the order in which one that is there is loaded.
pub const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// The same for one that is still to be downloaded, where 16 bits are enough.
pub const SIXTEEN_BIT_VARIANTS: [&str; 3] = [".fp16", ".bf16", ""];

/// Whether a file holds weights: it may be large.
pub fn is_weights(path: &str) -> bool {
    STEMS.iter().any(|(ending, _)| path.rsplit('.').next() == Some(ending))
}

/// A file that may lead to weights.
pub struct Candidate {
    /// Its name in the component's folder.
    pub name: String,
    /// Whether it is an index, which names the files.
    pub is_index: bool,
    /// Whether it is no variant: no other file holds more exact weights.
    pub is_plain: bool,
}

/// The files that weights may be in, in the order of preference: variants, then formats, then stems, whole before sharded.
pub fn candidates(variants: [&'static str; 3]) -> impl Iterator<Item = Candidate> {
    variants.into_iter().flat_map(|variant| {
        STEMS.into_iter().flat_map(move |(ending, stems)| {
            stems.into_iter().flat_map(move |stem| {
                let whole = format!("{stem}{variant}.{ending}");
                // Both libraries have put the variant at either end over the years.
                let index = format!("{stem}.{ending}.index{variant}.json");
                let older_index = format!("{stem}{variant}.{ending}.index.json");
                let older_index = (older_index != index).then_some(older_index);
                let is_plain = variant.is_empty();
                let whole = Candidate { name: whole, is_index: false, is_plain };
                let indices = std::iter::once(index).chain(older_index);
                std::iter::once(whole).chain(indices.map(move |name| Candidate { name, is_index: true, is_plain }))
            })
        })
    })
}
