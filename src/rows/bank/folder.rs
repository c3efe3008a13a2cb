//! A folder of numbered files: clip-retrieval's `img_emb/img_emb_0000.npy` and `metadata/metadata_0000.parquet`, or
//! `.npy` files in the folder itself.

use super::names::{extension, shown};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The folder of the embeddings, which is also the start of their files' names, and that of the metadata.
const EMBEDDINGS: &str = "img_emb";
const METADATA: &str = "metadata";

/// The files of embeddings in their order, each with the table of its labels, if there is one.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the folder cannot be read or holds none.
pub(super) fn files(path: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let inner = path.join(EMBEDDINGS);
    let folder = if inner.is_dir() { &inner } else { path };
    let unreadable = || format!("cannot read the folder {}", shown(folder));
    let mut files = Vec::new();
    for entry in folder.read_dir().or_bad_input(unreadable)? {
        let file = entry.or_bad_input(unreadable)?.path();
        let is_hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if extension(&file).as_deref() == Some("npy") && !is_hidden {
            files.push((number(&file), file));
        }
    }
    if files.is_empty() {
        let name = shown(path);
        return Err(bad_input!("{name} holds no embeddings: neither .npy files nor a folder {EMBEDDINGS} of such"));
    }
    files.sort();
    let metadata = |file: &Path| {
        let stem = file.file_stem()?.to_str()?.strip_prefix(EMBEDDINGS)?;
        let table = path.join(METADATA).join(format!("{METADATA}{stem}.parquet"));
        table.is_file().then_some(table)
    };
    Ok(files.into_iter().map(|(_, file)| (file.clone(), metadata(&file))).collect())
}

/// The number at the end of a file's name.
fn number(file: &Path) -> Option<u64> {
    let stem = file.file_stem()?.to_str()?;
    stem[stem.trim_end_matches(|digit: char| digit.is_ascii_digit()).len()..].parse().ok()
}
