//! What a prompt format is. Each format's file describes its own; [`super::formats`] lists them.

use super::field::Extras;
use super::input::Input;
use super::record::{Notices, PromptRows};
use anyhow::Result;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A file format for prompts.
pub struct PromptFormat {
    /// Its name on the command line.
    pub name: &'static str,
    /// File name extensions, lower case, without the dot.
    pub extensions: &'static [&'static str],
    /// Whether it has columns or keys that `--prompt-column` can name.
    pub(super) has_columns: bool,
    /// Whether `--no-header` applies.
    pub(super) has_header: bool,
    /// Opens a file of this format and checks its header.
    pub(super) open: fn(Input, &ReadOptions, &Notices) -> Result<PromptRows>,
}

impl fmt::Debug for PromptFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl PartialEq for PromptFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// How to read a prompt file.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// The format; by default the file name's extension tells.
    pub format: Option<&'static PromptFormat>,
    /// The column, or the key in JSON Lines, that holds the prompts; by default `prompt`, or else the only column of
    /// text that is not a setting. In a table without a header, the number of the column, counted from 1.
    pub prompt_column: Option<String>,
    /// Whether a text table has no header.
    pub no_header: bool,
    /// Whether another file has columns that `prompt_column` may be the name of.
    pub column_is_for_others: bool,
    /// Whether another file is one that may have no header.
    pub header_is_for_others: bool,
    /// Columns or keys that count beside those that always do.
    pub extras: Extras,
    /// Once set, reading a pipe ends with an error instead of waiting for data.
    pub interrupt: Arc<AtomicBool>,
}
