//! Priors under their authors' tensor names: Karlo's and Kandinsky 2.1's, which share their code.
//!
//! Source: diffusers' `scripts/convert_kakao_brain_unclip_to_diffusers.py` and `convert_kandinsky_to_diffusers.py`. Tensors
//! are renamed in place, without a copy.

use super::entry::{Strided, TensorEntry};
use super::store::Checkpoint;
use crate::error::{Error, Hint, Result};
use crate::text;
use std::collections::BTreeMap;

/// The prefixes of all names in the authors' files.
const PREFIXES: [&str; 2] = ["model.", ""];

/// A tensor that only these priors have.
const TELLTALE: &str = "clip_img_proj.weight";

/// Modules and tensors outside the blocks: the authors' names and diffusers'.
const OUTSIDE: [(&str, &str); 12] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("clip_img_proj", "proj_in"),
    ("text_emb_proj", "embedding_proj"),
    ("text_enc_proj", "encoder_hidden_states_proj"),
    ("final_ln", "norm_out"),
    ("out_proj", "proj_to_clip_embeddings"),
    ("positional_embedding", "positional_embedding"),
    ("prd_emb", "prd_embedding"),
    ("clip_mean", "clip_mean"),
    ("clip_std", "clip_std"),
    ("transformer.resblocks", "transformer_blocks"),
];

/// The same for the modules of a block.
const INSIDE: [(&str, &str); 5] = [
    ("attn.c_proj", "attn1.to_out.0"),
    ("mlp.c_fc", "ff.net.0.proj"),
    ("mlp.c_proj", "ff.net.2"),
    ("ln_1", "norm1"),
    ("ln_2", "norm3"),
];

/// The module that is three in diffusers.
const QKV: &str = "attn.c_qkv";

/// The name of a tensor in diffusers.
enum Renamed {
    /// A single one.
    Whole(String),
    /// This name in each of `to_q`, `to_k` and `to_v` of the attention `attn1` of this block.
    Attention { block: String, name: String },
}

impl Checkpoint {
    /// Whether this is a prior under its authors' tensor names.
    pub fn is_original_prior(&self) -> bool {
        self.original_prefix().is_some()
    }

    fn original_prefix(&self) -> Option<&'static str> {
        PREFIXES.into_iter().find(|prefix| self.tensors.contains_key(&format!("{prefix}{TELLTALE}")))
    }

    /// The same prior under diffusers' tensor names. `statistics` holds the mean and the standard deviation of CLIP image
    /// embeddings as the authors save them, as a pair.
    ///
    /// # Errors
    /// [`Error::Tensor`] if heads of width `head_dim` do not fit the attention, [`Error::File`] if the statistics are not a pair.
    pub fn with_diffusers_names(mut self, statistics: Option<Self>, head_dim: i64) -> Result<Self> {
        let prefix = self.original_prefix().unwrap_or_default();
        let mut ignored = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.tensors) {
            match rename(name.strip_prefix(prefix).unwrap_or(&name)) {
                Some(Renamed::Whole(renamed)) => drop(tensors.insert(renamed, entry)),
                Some(Renamed::Attention { block, name: inner }) => {
                    for (part, target) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
                        let entry = attention_part(&entry, part as i64, head_dim).ok_or_else(|| {
                            let shape = &entry.shape;
                            let reason = format!("{name} is {shape:?}, which heads of width {head_dim} do not fit");
                            let hint = Hint::Other("give the configuration of this very model".into());
                            Error::tensor(&self.origin, &name, reason).with_hint(hint)
                        })?;
                        tensors.insert(format!("transformer_blocks.{block}.attn1.{target}.{inner}"), entry);
                    }
                }
                None => ignored.push(name),
            }
        }
        if !ignored.is_empty() {
            log::warn!("{}: tensors that do not belong to a prior are ignored: {}", self.origin, text::list(&ignored));
        }
        self.tensors = tensors;
        if let Some(statistics) = statistics {
            self.add_statistics(statistics)?;
        }
        Ok(self)
    }

    /// Adds the pair's tensors as `clip_mean` and `clip_std`, `(1, embedding_dim)`, and its files to this checkpoint's.
    fn add_statistics(&mut self, mut statistics: Self) -> Result<()> {
        let first = self.files.len();
        for (index, name) in ["clip_mean", "clip_std"].into_iter().enumerate() {
            let entry = statistics.tensors.remove(&index.to_string()).filter(|entry| entry.shape.len() == 1);
            let mut entry = entry.ok_or_else(|| {
                let reason = "is not a pair of CLIP's mean and standard deviation, (embedding_dim) each";
                Error::file(&statistics.origin, reason)
            })?;
            entry.file += first;
            entry.shape.insert(0, 1);
            self.tensors.insert(name.into(), entry);
        }
        self.files.append(&mut statistics.files);
        Ok(())
    }
}

fn rename(name: &str) -> Option<Renamed> {
    let (module, rest, renamed) = OUTSIDE.into_iter().find_map(|(module, renamed)| {
        let rest = name.strip_prefix(module)?;
        (rest.is_empty() || rest.starts_with('.')).then_some((module, rest, renamed))
    })?;
    if module != "transformer.resblocks" {
        return Some(Renamed::Whole(format!("{renamed}{rest}")));
    }
    let (block, inside) = rest.strip_prefix('.')?.split_once('.')?;
    if let Some(name) = inside.strip_prefix(QKV).and_then(|name| name.strip_prefix('.')) {
        return Some(Renamed::Attention { block: block.into(), name: name.into() });
    }
    INSIDE.into_iter().find_map(|(module, inner)| {
        let name = inside.strip_prefix(module)?.strip_prefix('.')?;
        Some(Renamed::Whole(format!("{renamed}.{block}.{inner}.{name}")))
    })
}

/// The queries, keys or values of a tensor that interleaves them by heads: `(heads · 3 · head_dim, …)` to
/// `(heads · head_dim, …)`.
fn attention_part(entry: &TensorEntry, part: i64, head_dim: i64) -> Option<TensorEntry> {
    let (&rows, rest) = entry.shape.split_first()?;
    let head_rows = head_dim.checked_mul(3).filter(|&head_rows| head_rows > 0)?;
    if rows % head_rows != 0 || rows == 0 || entry.strided.is_some() {
        return None;
    }
    let (heads, width) = (rows / head_rows, rest.iter().product::<i64>());
    let sizes = [&[heads, head_dim], rest].concat();
    let mut strides = Strided::contiguous(&sizes).strides;
    strides[0] = head_rows * width;
    let element = entry.range.len() / usize::try_from(rows * width).ok().filter(|&count| count > 0)?;
    let start = entry.range.start + (part * head_dim * width) as usize * element;
    let len = ((heads - 1) * head_rows + head_dim) * width;
    Some(TensorEntry {
        shape: [&[heads * head_dim], rest].concat(),
        strided: Some(Strided { sizes, strides }),
        range: start..start + len as usize * element,
        ..entry.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::Dtype;

    fn renamed(name: &str) -> Option<String> {
        match rename(name)? {
            Renamed::Whole(name) => Some(name),
            Renamed::Attention { block, name } => Some(format!("{block} {name}")),
        }
    }

    #[test]
    fn names_are_those_of_diffusers() {
        let pairs = [
            ("time_embed.0.weight", Some("time_embedding.linear_1.weight")),
            ("positional_embedding", Some("positional_embedding")),
            ("prd_emb", Some("prd_embedding")),
            ("out_proj.bias", Some("proj_to_clip_embeddings.bias")),
            ("transformer.resblocks.11.ln_2.weight", Some("transformer_blocks.11.norm3.weight")),
            ("transformer.resblocks.0.mlp.c_proj.bias", Some("transformer_blocks.0.ff.net.2.bias")),
            ("transformer.resblocks.3.attn.c_qkv.weight", Some("3 weight")),
            ("transformer.resblocks.3.attn.c_other.weight", None),
            ("transformer.resblocks", None),
            ("prd_embed", None),
            ("time_embed.1.weight", None),
        ];
        for (name, expected) in pairs {
            assert_eq!(renamed(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn queries_keys_and_values_are_interleaved_by_heads() {
        // Two heads of width 1 over two inputs: rows q, k, v of the first head, then of the second.
        let entry = TensorEntry { file: 0, dtype: Dtype::F32, shape: vec![6, 2], strided: None, range: 100..148 };
        let keys = attention_part(&entry, 1, 1).unwrap();
        assert_eq!((keys.shape, keys.range), (vec![2, 2], 108..140));
        assert_eq!(keys.strided.unwrap(), Strided { sizes: vec![2, 1, 2], strides: vec![6, 2, 1] });
        assert!(attention_part(&entry, 0, 4).is_none());
        assert!(attention_part(&entry, 0, 0).is_none());
        assert_eq!(attention_part(&entry, 2, 2).unwrap().range, 132..148, "one head");
    }
}
