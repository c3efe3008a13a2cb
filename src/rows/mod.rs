//! Reads prompts: a text file, JSON Lines, CSV, TSV or Parquet, one row at a time.
//!
//! [`PromptReader`] holds one row in memory (of Parquet, some pages), however many there are. In all formats but
//! Parquet, which is compressed inside, the file may be compressed with gzip or zstd. Its text may be UTF-8, UTF-16 or
//! UTF-32, with a byte order mark or where there is no doubt; lines end in `\n`, `\r\n` or, if all do, in `\r`.
//!
//! - `txt`: a line is a prompt, with the spaces it has. Blank lines are no prompts.
//! - `jsonl`: a line is an object with `prompt` and, optionally, `id`, `negative_prompt`, `seed`, `guidance_scale`,
//!   `steps` and `samples`. Other keys are ignored, and null is as good as absent. Blank lines are skipped.
//! - `csv`, `tsv`: a header, if there is one, then records. One column holds the prompts; those named like a key of
//!   `jsonl` hold what the key does. An empty cell is the empty prompt, and no value in the other columns. Empty lines
//!   are skipped. What quotes mean is told in the format's module: in TSV less than in CSV.
//! - `parquet`: columns as in `csv`; null is no value.
//!
//! A row that cannot be used is an [`Entry::Bad`], and reading goes on after it. What makes the rest unreadable (a
//! compressed file that is cut short) is an error and the end.

mod compression;
mod csv;
mod encoding;
mod interruptible;
mod jsonl;
mod lines;
pub(super) mod parquet;
mod peek;
mod record;
mod records;
mod source;
mod table;
#[cfg(test)]
mod tests;

use crate::bad_input;
use anyhow::Result;
use clap::ValueEnum;
use compression::Compression;
use source::Source;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

/// A file format for prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PromptFormat {
    /// One prompt a line.
    #[value(name = "txt")]
    Text,
    /// One JSON object a line.
    #[value(name = "jsonl")]
    JsonLines,
    /// Records of cells between commas, below a header.
    Csv,
    /// Records of cells between tabs, below a header.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

impl PromptFormat {
    /// The format that a file name asks for, whether it ends in `.gz` or `.zst` or not. Text for standard input, `-`,
    /// and for a name without an extension.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the extension is unknown.
    pub fn of_path(path: &Path) -> Result<Self> {
        let plain = if Compression::of_path(path).is_some() { path.with_extension("") } else { path.to_path_buf() };
        let extension = plain.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        Ok(match extension.as_deref() {
            None | Some("txt") => Self::Text,
            Some("jsonl" | "ndjson") => Self::JsonLines,
            Some("csv") => Self::Csv,
            Some("tsv") => Self::Tsv,
            Some("parquet") => Self::Parquet,
            Some(extension) => {
                let name = path.display().to_string();
                return Err(bad_input!(
                    "prompts file {name:?} ends in .{extension}; rename it, or say what it holds with --format-in \
                     txt, jsonl, csv, tsv or parquet"
                ));
            }
        })
    }
}

/// How to read prompts.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// The format; if not given, the file name tells.
    pub format: Option<PromptFormat>,
    /// The column, or the key in JSON Lines, that holds the prompts; `prompt` if not given. A table without it whose
    /// columns are all but one of other types or uses has its prompts in that one. Of a table without a header it is the
    /// number of the column, counted from 1.
    pub prompt_column: Option<String>,
    /// Whether a table in text has no header.
    pub no_header: bool,
    /// Once set, reading a pipe ends with an error instead of waiting for data.
    pub interrupt: Arc<AtomicBool>,
}

/// Something that the reader should know of a file that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether it may be a mistake; else it says how the file is read.
    pub is_warning: bool,
    /// What it says.
    pub text: String,
}

/// Notices that were not taken yet.
#[derive(Debug, Clone, Default)]
struct Notices(Arc<Mutex<Vec<Notice>>>);

impl Notices {
    fn note(&self, text: String) {
        self.add(Notice { is_warning: false, text });
    }

    fn warn(&self, text: String) {
        self.add(Notice { is_warning: true, text });
    }

    fn add(&self, notice: Notice) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
    }

    fn take(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A prompt and what its row says about it. What it does not say, the command line does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptRecord {
    /// What the user calls the row.
    pub id: Option<String>,
    /// The prompt, which may be empty.
    pub prompt: Arc<str>,
    /// What the embedding is to lead away from.
    pub negative_prompt: Option<String>,
    /// The seed of the row's noise.
    pub seed: Option<u64>,
    /// The scale of classifier-free guidance, finite.
    pub guidance_scale: Option<f64>,
    /// Number of denoising steps, 1 or more.
    pub steps: Option<usize>,
    /// Number of embeddings of this prompt, 1 or more.
    pub samples: Option<usize>,
}

/// Where in its file an entry is, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The line that it is, or starts on.
    Line(u64),
    /// The row of a format without lines.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(formatter, "line {number}"),
            Self::Row(number) => write!(formatter, "row {number}"),
        }
    }
}

/// A row that cannot be used. Printed, it says where it is and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Where it is.
    pub place: Place,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.reason)
    }
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A prompt.
    Prompt {
        /// Where it is.
        place: Place,
        /// The prompt, and what the row says about it.
        record: PromptRecord,
    },
    /// Something else. The caller decides whether that is the end.
    Bad(BadRow),
}

impl Entry {
    fn new(place: Place, record: Result<PromptRecord, String>) -> Self {
        match record {
            Ok(record) => Self::Prompt { place, record },
            Err(reason) => Self::Bad(BadRow { place, reason }),
        }
    }
}

/// The rows of a file: what each format's module makes.
type Rows = Box<dyn Iterator<Item = Result<Entry>> + Send>;

/// The entries of a file, in order. After an error there are no more.
pub struct PromptReader {
    name: String,
    notices: Notices,
    /// A source that was not looked into yet.
    unread: Option<Unread>,
    rows: Option<Rows>,
}

struct Unread {
    source: Source,
    format: PromptFormat,
    options: ReadOptions,
}

impl Unread {
    fn rows(self, notices: &Notices) -> Result<Rows> {
        let Self { source, format, options } = self;
        match format {
            PromptFormat::Text => lines::prompts(source.text(notices)?),
            PromptFormat::JsonLines => jsonl::rows(source.text(notices)?, options.prompt_column.as_deref()),
            PromptFormat::Csv => csv::rows(source.text(notices)?, b',', &options),
            PromptFormat::Tsv => csv::rows(source.text(notices)?, b'\t', &options),
            PromptFormat::Parquet => parquet::rows(source, options.prompt_column.as_deref(), notices),
        }
    }
}

impl PromptReader {
    /// Opens the file `path`, or standard input if it is `-`.
    ///
    /// A file's header is checked here. From standard input nothing is read before the first entry is asked for, and
    /// from then on no further than to the end of the entry, so that a program at its other end can wait for answers;
    /// but Parquet is read to its end first, and kept in a temporary file.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the file cannot be opened, is of an unknown kind, or has no column of prompts.
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let format = options.format.map_or_else(|| PromptFormat::of_path(path), Ok)?;
        Self::of_source(Source::open(path, &options.interrupt)?, format, options.clone())
    }

    fn of_source(source: Source, format: PromptFormat, options: ReadOptions) -> Result<Self> {
        let name = &source.name;
        if options.no_header && !matches!(format, PromptFormat::Csv | PromptFormat::Tsv) {
            return Err(bad_input!(
                "--no-header: {name} is read as {}, which has no header line; leave the option out, or give --format-in \
                 csv or tsv",
                format.to_possible_value().as_ref().map_or("it is", |value| value.get_name())
            ));
        }
        if let (PromptFormat::Text, Some(column)) = (format, &options.prompt_column) {
            return Err(bad_input!(
                "--prompt-column {column:?}: {name} is read as text, which has no columns; leave the option out, or \
                 give --format-in"
            ));
        }
        let name = source.name.clone();
        let waits = source.waits;
        let notices = Notices::default();
        let unread = Unread { source, format, options };
        if waits {
            return Ok(Self { name, notices, unread: Some(unread), rows: None });
        }
        let rows = unread.rows(&notices)?;
        Ok(Self { name, notices, unread: None, rows: Some(rows) })
    }

    /// What there is to say of the file so far, and was not given before.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.notices.take()
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Iterator for PromptReader {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if let Some(unread) = self.unread.take() {
            match unread.rows(&self.notices) {
                Ok(rows) => self.rows = Some(rows),
                Err(error) => return Some(Err(error)),
            }
        }
        let entry = self.rows.as_mut()?.next();
        if !matches!(entry, Some(Ok(_))) {
            self.rows = None;
        }
        entry
    }
}
