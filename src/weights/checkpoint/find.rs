//! Finds the weights among the files in a component's folder.

use super::candidates::{Candidate, Library, VARIANTS, candidates};
use super::index::ShardIndex;
use crate::error::{Error, Hint, Result};
use crate::files::Folder;

/// The files of a component's weights.
#[derive(Debug)]
pub(crate) enum Found {
    /// A single file.
    Whole(String),
    /// The index of this name, and what it says.
    Sharded(String, ShardIndex),
}

/// Finds the weights of a component: the file that was named or, in its library's order, plain files of any format
/// before variants.
///
/// An index without all of its shards is left over from an older save, which a later save of a whole file replaced. It
/// counts only if there is nothing else.
///
/// # Errors
/// [`Error::File`] if there are none, or the index is damaged.
pub(crate) fn weights(folder: &Folder) -> Result<Found> {
    if let Some(name) = folder.weights() {
        return Ok(match name.ends_with(".index.json") {
            true => Found::Sharded(name.into(), read_index(folder, name)?),
            false => Found::Whole(name.into()),
        });
    }
    let library = Library::of_config(&folder.read_text("config.json").unwrap_or_default());
    let mut incomplete = None;
    for Candidate { name, is_index, .. } in candidates(library, VARIANTS) {
        if !folder.has_file(&name) {
            continue;
        }
        if !is_index {
            if let Some((index, shard)) = &incomplete {
                log::warn!("{folder}: {index} names {shard}, which is not there, so {name} is read instead");
            }
            return Ok(Found::Whole(name));
        }
        let index = read_index(folder, &name)?;
        let missing = index.shards().into_iter().find(|shard| !folder.has_file(shard)).map(String::from);
        match missing {
            None => return Ok(Found::Sharded(name, index)),
            Some(shard) => incomplete = incomplete.or(Some((name, shard))),
        }
    }
    if let Some((index, shard)) = incomplete {
        let reason = format!("names {}, which is not there", folder.path_of(&shard));
        return Err(Error::file(folder.path_of(&index), reason).with_hint(Hint::FetchAgain));
    }
    let plain = candidates(library, VARIANTS).filter(|candidate| candidate.is_plain && !candidate.is_index);
    let expected = plain.map(|candidate| candidate.name).collect::<Vec<_>>().join(", ");
    Err(Error::file(
        folder.to_string(),
        format!("holds no weights: none of {expected}, whole or in shards with an index"),
    ))
}

fn read_index(folder: &Folder, name: &str) -> Result<ShardIndex> {
    ShardIndex::parse(&folder.read_text(name)?, &folder.path_of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFFUSERS: &str = r#"{"_class_name": "PriorTransformer"}"#;
    const TRANSFORMERS: &str = r#"{"model_type": "clip_text_model"}"#;

    /// The name of the file or index that is found among these files, each index listing the file `shard`.
    fn found(config: &str, names: &[&str]) -> Result<String> {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        for name in names {
            let text = if name.ends_with(".json") { r#"{"weight_map": {"a": "shard"}}"# } else { "" };
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        weights(&Folder::from(folder.path())).map(|found| match found {
            Found::Whole(name) | Found::Sharded(name, _) => name,
        })
    }

    #[test]
    fn safetensors_come_before_pickles_and_plain_files_before_variants() {
        let all = ["pytorch_model.bin", "model.safetensors", "model.fp16.safetensors", "pytorch_model.fp16.bin"];
        for (names, expected) in [
            (&all[..], "model.safetensors"),
            (&["pytorch_model.bin", "model.fp16.safetensors"], "pytorch_model.bin"),
            (&["pytorch_model.fp16.bin", "model.fp16.safetensors"], "model.fp16.safetensors"),
            (&["pytorch_model.fp16.bin", "training_args.bin"], "pytorch_model.fp16.bin"),
            (&["shard", "pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
            (
                &["shard", "pytorch_model.bin.index.json", "model.safetensors.index.fp16.json"],
                "pytorch_model.bin.index.json",
            ),
        ] {
            assert_eq!(found(TRANSFORMERS, names).unwrap(), expected, "{names:?}");
        }
        assert!(found(TRANSFORMERS, &["training_args.bin", "model.onnx"]).is_err());
    }

    #[test]
    fn the_library_decides_between_a_whole_file_and_shards() {
        for (variant, legacy) in [("", ""), (".fp16", ".fp16")] {
            let whole = format!("diffusion_pytorch_model{variant}.safetensors");
            let index = format!("diffusion_pytorch_model.safetensors.index{variant}.json");
            let older = format!("diffusion_pytorch_model.safetensors{legacy}.index.json");
            let torch = format!("diffusion_pytorch_model{variant}.bin");
            assert_eq!(found(DIFFUSERS, &["shard", &whole, &index]).unwrap(), index);
            assert_eq!(found(DIFFUSERS, &["shard", &whole, &older]).unwrap(), older);
            assert_eq!(found(DIFFUSERS, &[&whole, &index]).unwrap(), whole, "the shards are gone");
            assert_eq!(found(DIFFUSERS, &[&torch, &index]).unwrap(), torch, "likewise");
            assert_eq!(found(DIFFUSERS, &[&torch, &whole]).unwrap(), whole);
            let torch_index = format!("diffusion_pytorch_model.bin.index{variant}.json");
            assert_eq!(found(DIFFUSERS, &["shard", &torch, &torch_index]).unwrap(), torch);
            assert_eq!(found(DIFFUSERS, &["shard", &torch_index]).unwrap(), torch_index);

            let whole = format!("model{variant}.safetensors");
            let index = format!("model.safetensors.index{variant}.json");
            assert_eq!(found(TRANSFORMERS, &["shard", &whole, &index]).unwrap(), whole);
            assert_eq!(
                found(TRANSFORMERS, &["shard", "pytorch_model.bin", &index]).unwrap() == index,
                variant.is_empty()
            );
        }
        let error = found(DIFFUSERS, &["diffusion_pytorch_model.safetensors.index.json"]).unwrap_err().to_string();
        assert!(error.contains("names") && error.contains("shard, which is not there"), "{error}");
    }

    #[test]
    fn the_names_of_the_other_library_come_last() {
        let both = ["diffusion_pytorch_model.bin", "model.safetensors"];
        assert_eq!(found(DIFFUSERS, &both).unwrap(), "diffusion_pytorch_model.bin");
        assert_eq!(found(TRANSFORMERS, &both).unwrap(), "model.safetensors");
        assert_eq!(found(DIFFUSERS, &["model.safetensors", "model.fp16.safetensors"]).unwrap(), "model.safetensors");
    }
}
