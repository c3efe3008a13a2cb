//! Reads prompt files: text, JSON Lines, CSV, TSV or Parquet, one row at a time.
//!
//! [`PromptReader`] streams: it holds one row in memory (of Parquet, a few pages). Text formats may be compressed with
//! gzip or zstd, and encoded in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; lines end in `\n`, `\r\n`
//! or `\r`.
//!
//! - `txt`: each line is a prompt, with its spaces. Blank lines are skipped.
//! - `jsonl`: each line is an object with `prompt` and, optionally, `id`, `negative_prompt`, `seed`, `guidance_scale`,
//!   `steps` and `samples`, and the [`Extras`] where they are asked for. Other keys are ignored; null is the same as absent. Blank lines are skipped.
//! - `csv`, `tsv`: a header, unless the options say there is none, then records. One column holds the prompts; columns
//!   named like a key of `jsonl` mean the same. An empty cell is the empty prompt, and no value in other columns. Blank
//!   lines are skipped. What quotes mean stands in `csv.rs`.
//! - `parquet`: columns as in `csv`; null is no value.
//!
//! [`PromptListing`] finds the files in folders, and those that patterns match.
//!
//! Pictures are rows too: [`PictureReader`] lists them, from files, folders, `.tar` shards and lists of paths.
//!
//! A row that cannot be used is a [`PromptRow::Bad`], and reading goes on after it. Damage that makes the rest of the
//! file unreadable, as in a truncated compressed file, is an error and ends it.
//!
//! [`Bank`] reads embeddings.

mod arrays;
mod bank;
mod compression;
mod conditions;
mod csv;
mod encoding;
mod field;
mod format;
mod formats;
mod input;
mod interruptible;
mod item;
mod jsonl;
mod lines;
mod listing;
pub(crate) mod parquet;
mod peek;
mod picture_file;
mod pictures;
mod prompt_file;
mod prompt_listing;
mod reader;
mod record;
mod records;
mod table;
#[cfg(test)]
mod tests;
mod txt;

pub use arrays::{EmbeddingRows, read_latents};
pub use bank::{Bank, Label};
pub use conditions::read_conditions;
pub use field::Extras;
pub use format::{PromptFormat, ReadOptions};
pub use formats::FORMATS;
pub use item::Item;
pub use picture_file::PictureFile;
pub use pictures::{PictureInputs, PictureReader};
pub use prompt_file::PromptFile;
pub use prompt_listing::PromptListing;
pub use reader::PromptReader;
pub use record::{BadRow, GivenNoise, Notice, Place, PromptRecord, PromptRow};
