//! The registry of prompt formats. A new format is a file of its own and a line in [`FORMATS`].

use super::compression::Compression;
use super::format::PromptFormat;
use super::{csv, jsonl, parquet, txt};
use crate::bad_input;
use anyhow::Result;
use std::path::Path;

/// All prompt formats.
pub static FORMATS: [&PromptFormat; 5] = [&txt::TXT, &jsonl::JSONL, &csv::CSV, &csv::TSV, &parquet::PARQUET];

/// The extension of a file's name, before `.gz` or `.zst` if it has that, in lower case.
fn extension(path: &Path) -> Option<String> {
    let plain = if Compression::of_path(path).is_some() { path.with_extension("") } else { path.to_path_buf() };
    Some(plain.extension()?.to_string_lossy().to_lowercase())
}

/// The format that a file name's extension stands for, if there is one.
pub(super) fn format_of_extension(path: &Path) -> Option<&'static PromptFormat> {
    let extension = extension(path)?;
    FORMATS.into_iter().find(|format| format.extensions.contains(&extension.as_str()))
}

/// The same; text for standard input, `-`, and for a name without an extension.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the extension is unknown; it calls the file `name`.
pub(super) fn format_of_path(path: &Path, name: &str) -> Result<&'static PromptFormat> {
    let Some(extension) = extension(path) else { return Ok(&txt::TXT) };
    format_of_extension(path).ok_or_else(|| {
        let names = FORMATS.map(|format| format.name);
        let [others @ .., last] = &names;
        bad_input!(
            "prompts file {name:?} ends in .{extension}; rename it, or say what it holds with --format-in {} or {last}",
            others.join(", ")
        )
    })
}
