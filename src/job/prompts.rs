//! Where a job's prompts come from.

use super::progress::JobProgress;
use crate::bad_input;
use crate::rows::{BadRow, PictureInputs, PictureReader, Place, PromptReader, PromptRecord, PromptRow, ReadOptions};
use anyhow::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prompts from the command line, followed by those of a file; or conditions in their place.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Those of the command line.
    pub given: Vec<String>,
    /// The file, `-` for standard input.
    pub file: Option<PathBuf>,
    /// How to read the file.
    pub read: ReadOptions,
    /// Rows of conditions, and what messages call their file.
    pub conditions: Option<(String, usize)>,
    /// Pictures in the place of prompts.
    pub pictures: Option<PictureInputs>,
}

impl Prompts {
    /// Opens the file, checks its header, and returns all entries from the first on.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the file cannot be opened or does not have the format it should have.
    pub fn open(&self) -> Result<Entries> {
        let reader = self.file.as_ref().map(|file| PromptReader::open(file, &self.read)).transpose()?;
        let pictures = self.pictures.as_ref().map(PictureInputs::open).transpose()?;
        let name = match (&reader, &self.conditions, &pictures) {
            (Some(reader), ..) => reader.name().to_string(),
            (None, Some((name, _)), _) => name.clone(),
            (None, None, Some(_)) => "the list of pictures".to_string(),
            (None, None, None) => "--prompt".to_string(),
        };
        let conditions = 0..self.conditions.as_ref().map_or(0, |(_, rows)| *rows);
        let given = self.given.clone().into_iter();
        Ok(Entries { name, given, conditions, reader, pictures, rows: 0, progress: None })
    }

    /// Whether the prompts can be read only once, and may arrive slowly: from a pipe, a terminal or a device.
    pub fn is_stream(&self) -> bool {
        let is_pipe = |file: &Path| file == Path::new("-") || !file.is_file();
        self.file.as_deref().is_some_and(is_pipe) || self.pictures.as_ref().is_some_and(PictureInputs::is_stream)
    }
}

/// The entries of [`Prompts`], in order.
pub struct Entries {
    name: String,
    given: std::vec::IntoIter<String>,
    conditions: Range<usize>,
    reader: Option<PromptReader>,
    pictures: Option<PictureReader>,
    /// Entries of the command line so far.
    rows: u64,
    progress: Option<Arc<dyn JobProgress>>,
}

impl Entries {
    /// What messages call the prompts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Passes on what the reader notices about the file.
    pub(super) fn report_to(&mut self, progress: &Arc<dyn JobProgress>) {
        self.progress = Some(Arc::clone(progress));
    }
}

impl Iterator for Entries {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        if let Some(prompt) = self.given.next() {
            self.rows += 1;
            let record = PromptRecord { prompt: prompt.into(), ..PromptRecord::default() };
            return Some(Ok(PromptRow::Prompt { place: Place::Row(self.rows), record }));
        }
        if let Some(row) = self.conditions.next() {
            let record = PromptRecord { condition: Some(row), ..PromptRecord::default() };
            return Some(Ok(PromptRow::Prompt { place: Place::Row(row as u64 + 1), record }));
        }
        if let Some(pictures) = &mut self.pictures {
            return pictures.next();
        }
        let reader = self.reader.as_mut()?;
        let entry = reader.next();
        if let Some(progress) = &self.progress {
            reader.take_notices().iter().for_each(|notice| progress.notice(notice));
        }
        entry
    }
}

/// The error for a row that cannot be used.
pub fn refused(name: &str, row: &BadRow) -> Error {
    match row {
        BadRow { place: Place::Line(number), reason } => bad_input!("{name}:{number}: {reason}"),
        row => bad_input!("{name}: {row}"),
    }
}

/// The error for a source without prompts.
pub(super) fn no_prompts(name: &str) -> Error {
    bad_input!("{name} holds no prompts; write one a line")
}

/// The error for a file whose rows are not those that were counted.
pub(super) fn edited(name: &str) -> Error {
    bad_input!("{name} was edited while it was read, and nothing is kept; run again")
}
