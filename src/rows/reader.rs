//! Reads a prompt file of any format.

use super::format::{PromptFormat, ReadOptions};
use super::formats::format_of_path;
use super::input::Input;
use super::prompt_file::PromptFile;
use super::record::{Notice, Notices, PromptRow, PromptRows};
use crate::bad_input;
use anyhow::Result;

/// The rows of a prompt file, in order. An error is the last item.
pub struct PromptReader {
    name: String,
    notices: Notices,
    state: ReaderState,
}

/// How far the file was read.
enum ReaderState {
    /// Not at all: reading a stream may block.
    Unread { input: Input, format: &'static PromptFormat, options: ReadOptions },
    /// Past the header.
    Open(PromptRows),
    /// To its end or to an error.
    Done,
}

impl PromptReader {
    /// Opens a file, or standard input.
    ///
    /// A file's header is checked here. Standard input is not read before the first row is asked for, and then no
    /// further than to the end of the row, so that the program at its other end can wait for answers; but Parquet is
    /// first copied to a temporary file.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the file cannot be opened, is of an unknown format, or has no prompt column.
    pub fn open(file: &PromptFile, options: &ReadOptions) -> Result<Self> {
        let format = format_of(file, options)?;
        Self::of_input(Input::open(file, &options.interrupt)?, format, options.clone())
    }

    /// The options for one of several files: those that a format has no use for are an error only if no format has.
    pub fn options_for(files: &[PromptFile], options: ReadOptions) -> ReadOptions {
        let (mut has_columns, mut has_header) = (false, false);
        for format in files.iter().filter_map(|file| format_of(file, &options).ok()) {
            has_columns |= format.has_columns;
            has_header |= format.has_header;
        }
        ReadOptions { column_is_for_others: has_columns, header_is_for_others: has_header, ..options }
    }

    pub(super) fn of_input(input: Input, format: &'static PromptFormat, options: ReadOptions) -> Result<Self> {
        let (name, notices) = (input.name.clone(), Notices::default());
        if options.no_header && !format.has_header && !options.header_is_for_others {
            return Err(bad_input!(
                "--no-header: {name} is read as {}, which has no header line; leave the option out, or give \
                 --format-in csv or tsv",
                format.name
            ));
        }
        if let (false, Some(column)) = (format.has_columns || options.column_is_for_others, &options.prompt_column) {
            return Err(bad_input!(
                "--prompt-column {column:?}: {name} is read as text, which has no columns; leave the option out, or \
                 give --format-in"
            ));
        }
        let state = if input.blocks {
            ReaderState::Unread { input, format, options }
        } else {
            ReaderState::Open((format.open)(input, &options, &notices)?)
        };
        Ok(Self { name, notices, state })
    }

    /// The notices since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.notices.take()
    }

    /// The file's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn format_of(file: &PromptFile, options: &ReadOptions) -> Result<&'static PromptFormat> {
    options.format.map_or_else(|| format_of_path(&file.path, &file.name), Ok)
}

impl Iterator for PromptReader {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        let mut rows = match std::mem::replace(&mut self.state, ReaderState::Done) {
            ReaderState::Unread { input, format, options } => match (format.open)(input, &options, &self.notices) {
                Ok(rows) => rows,
                Err(error) => return Some(Err(error)),
            },
            ReaderState::Open(rows) => rows,
            ReaderState::Done => return None,
        };
        let row = rows.next();
        if matches!(row, Some(Ok(_))) {
            self.state = ReaderState::Open(rows);
        }
        row
    }
}
