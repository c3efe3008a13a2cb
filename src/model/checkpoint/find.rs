//! Which of the files in a component's folder are its weights.

use super::candidates::{Candidate, VARIANTS, candidates};
use crate::bad_input;
use crate::files::Folder;
use anyhow::Result;

/// What a component's weights are in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A file.
    Whole(String),
    /// The files that this index names.
    Sharded(String),
}

/// Finds the weights of a component, in the order in which diffusers and transformers look: plain files of any format
/// before variants, safetensors before `.bin`, one file before shards.
///
/// # Errors
/// [`crate::error::BadInput`] if there are none.
pub(super) fn weights(folder: &Folder) -> Result<Found> {
    match candidates(VARIANTS).find(|candidate| folder.has_file(&candidate.name)) {
        Some(Candidate { name, is_index: true, .. }) => Ok(Found::Sharded(name)),
        Some(Candidate { name, .. }) => Ok(Found::Whole(name)),
        None => {
            let plain = candidates(VARIANTS).filter(|candidate| candidate.is_plain && !candidate.is_index);
            let expected = plain.map(|candidate| candidate.name).collect::<Vec<_>>().join(", ");
            Err(bad_input!(
                "{folder} must hold weights, whole or sharded with an index, as one of {expected}; it has none"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Found> {
        let folder = tempfile::TempDir::new().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        weights(&Folder::from(folder.path()))
    }

    #[test]
    fn safetensors_come_before_pickles_and_plain_files_before_variants() {
        let whole = |name: &str| Found::Whole(name.into());
        let all = ["pytorch_model.bin", "model.safetensors", "model.fp16.safetensors", "pytorch_model.fp16.bin"];
        for (names, expected) in [
            (&all[..], whole("model.safetensors")),
            (&["pytorch_model.bin", "model.fp16.safetensors"], whole("pytorch_model.bin")),
            (&["pytorch_model.fp16.bin", "model.fp16.safetensors"], whole("model.fp16.safetensors")),
            (&["pytorch_model.fp16.bin", "training_args.bin"], whole("pytorch_model.fp16.bin")),
            (&["pytorch_model.bin.index.json"], Found::Sharded("pytorch_model.bin.index.json".into())),
            (
                &["pytorch_model.bin.index.json", "model.safetensors.index.fp16.json"],
                Found::Sharded("pytorch_model.bin.index.json".into()),
            ),
        ] {
            assert_eq!(found(names).unwrap(), expected, "{names:?}");
        }
        assert!(found(&["training_args.bin", "model.onnx"]).is_err());
    }
}
