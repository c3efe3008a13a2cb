//! Names in and of the files of a bank.

use std::path::Path;

/// The array, or the column of a table, that embeddings are in, if there are several.
pub(super) const EMBEDS: &str = "image_embeds";

/// The extension of a file, in small letters.
pub(super) fn extension(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase())
}

/// A path as messages show it.
pub(super) fn shown(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard input".into(),
        false => format!("{:?}", path.display().to_string()),
    }
}
