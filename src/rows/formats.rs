//! The registry of prompt formats. A new format is a file of its own and a line in [`FORMATS`].

use super::compression::Compression;
use super::format::PromptFormat;
use super::{csv, jsonl, parquet, txt};
use crate::bad_input;
use anyhow::Result;
use std::path::Path;

/// All prompt formats.
pub static FORMATS: [&PromptFormat; 5] = [&txt::TXT, &jsonl::JSONL, &csv::CSV, &csv::TSV, &parquet::PARQUET];

/// The format that a file name's extension stands for, before `.gz` or `.zst` if it has that. Text for standard input,
/// `-`, and for a name without an extension.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the extension is unknown.
pub fn format_of_path(path: &Path) -> Result<&'static PromptFormat> {
    let plain = if Compression::of_path(path).is_some() { path.with_extension("") } else { path.to_path_buf() };
    let Some(extension) = plain.extension() else { return Ok(&txt::TXT) };
    let extension = extension.to_string_lossy().to_lowercase();
    FORMATS.into_iter().find(|format| format.extensions.contains(&extension.as_str())).ok_or_else(|| {
        let names = FORMATS.map(|format| format.name);
        let [others @ .., last] = &names;
        bad_input!(
            "prompts file {:?} ends in .{extension}; rename it, or say what it holds with --format-in {} or {last}",
            path.display().to_string(),
            others.join(", ")
        )
    })
}
