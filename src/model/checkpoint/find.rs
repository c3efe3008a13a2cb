//! Which of the files in a component's folder are its weights.

use crate::bad_input;
use crate::files::Folder;
use anyhow::Result;

/// Infixes of the variants that the hub holds beside or in place of the plain files; the plain one comes first.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// Stems and extensions of weight files, as diffusers (first) and transformers write them; safetensors come first.
const NAMES: [(&str, &str); 4] = [
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
];

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
    for variant in VARIANTS {
        for (stem, extension) in NAMES {
            let whole = format!("{stem}{variant}.{extension}");
            if folder.has_file(&whole) {
                return Ok(Found::Whole(whole));
            }
            // Both libraries have put the variant at either end over the years.
            let indices =
                [format!("{stem}.{extension}.index{variant}.json"), format!("{stem}{variant}.{extension}.index.json")];
            if let Some(index) = indices.into_iter().find(|name| folder.has_file(name)) {
                return Ok(Found::Sharded(index));
            }
        }
    }
    let expected = NAMES.map(|(stem, extension)| format!("{stem}.{extension}")).join(", ");
    Err(bad_input!("{folder} must hold weights, whole or sharded with an index, as one of {expected}; it has none"))
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
