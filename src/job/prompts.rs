//! Where a job's prompts come from.

use super::progress::JobProgress;
use crate::bad_input;
use crate::rows::{
    BadRow, Notice, PictureInputs, PictureReader, Place, PromptFile, PromptReader, PromptRecord, PromptRow, ReadOptions,
};
use anyhow::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prompts from the command line, followed by those of files; or conditions in their place.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Those of the command line.
    pub given: Vec<String>,
    /// The files, in this order.
    pub files: Arc<[PromptFile]>,
    /// The data sets on the hub that files are from, with their commits.
    pub datasets: BTreeMap<String, String>,
    /// How to read the files.
    pub read: ReadOptions,
    /// Rows of conditions, and what messages call their file.
    pub conditions: Option<(String, usize)>,
    /// Pictures in the place of prompts.
    pub pictures: Option<PictureInputs>,
}

/// A part of the prompts: a file, or all that is in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its place in the order: 0 for what is in no file.
    pub index: usize,
    /// What messages call it.
    pub name: String,
    /// The folder in which the paths of its rows begin.
    pub folder: PathBuf,
}

/// A row, and where it is from.
#[derive(Debug)]
pub struct Entry {
    /// Where it is from.
    pub source: Arc<Source>,
    /// The row.
    pub row: PromptRow,
}

impl Prompts {
    /// Opens the first file, checks its header, and returns all entries from the first on. The other files are opened
    /// when they are read.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the file cannot be opened or does not have the format it should have.
    pub fn open(&self) -> Result<Entries> {
        let reader = self.files.first().map(|file| PromptReader::open(file, &self.read)).transpose()?;
        let pictures = self.pictures.as_ref().map(PictureInputs::open).transpose()?;
        let conditions = 0..self.conditions.as_ref().map_or(0, |(_, rows)| *rows);
        let source = self.source(0);
        let told = BTreeSet::new();
        let given = self.given.clone().into_iter();
        let prompts = self.clone();
        Ok(Entries { prompts, source, given, conditions, reader, pictures, rows: 0, told, progress: None })
    }

    /// Sets the files, and checks the headers of those that are no pipes.
    ///
    /// # Errors
    /// As [`Prompts::open`]'s.
    pub fn set_files(&mut self, files: Vec<PromptFile>) -> Result<()> {
        self.read = PromptReader::options_for(&files, std::mem::take(&mut self.read));
        self.files = files.into();
        // A single one is opened before anything else is done.
        let mut checked = self.files.iter().filter(|file| self.files.len() > 1 && !file.is_stream());
        checked.try_for_each(|file| PromptReader::open(file, &self.read).map(drop))
    }

    /// What messages call the prompts.
    pub fn name(&self) -> String {
        match (&*self.files, &self.conditions, &self.pictures) {
            ([file], ..) => file.name.clone(),
            ([_, _, ..], ..) => "--prompts".to_string(),
            ([], Some((name, _)), _) => name.clone(),
            ([], None, Some(_)) => "the list of pictures".to_string(),
            ([], None, None) => "--prompt".to_string(),
        }
    }

    /// Whether the prompts can be read only once, and may arrive slowly: from a pipe, a terminal or a device.
    pub fn is_stream(&self) -> bool {
        self.stream_name().is_some()
    }

    /// What messages call what can be read only once.
    pub(super) fn stream_name(&self) -> Option<String> {
        let stream = self.files.iter().find(|file| file.is_stream()).map(|file| file.name.clone());
        let has_list = self.pictures.as_ref().is_some_and(PictureInputs::is_stream);
        stream.or_else(|| has_list.then(|| self.name()))
    }

    /// How many sources there are.
    pub(super) fn sources(&self) -> usize {
        self.files.len() + 1
    }

    pub(super) fn source(&self, index: usize) -> Arc<Source> {
        let file = index.checked_sub(1).and_then(|index| self.files.get(index));
        let (name, folder) = match file {
            Some(file) => (file.name.clone(), file.folder()),
            None if self.files.is_empty() => (self.name(), Path::new("")),
            None => ("--prompt".to_string(), Path::new("")),
        };
        Arc::new(Source { index, name, folder: folder.into() })
    }
}

/// The entries of [`Prompts`], in order. An error is the last item.
pub struct Entries {
    prompts: Prompts,
    /// That of the current entry.
    source: Arc<Source>,
    given: std::vec::IntoIter<String>,
    conditions: Range<usize>,
    /// Of the first file, or of the one that is read.
    reader: Option<PromptReader>,
    pictures: Option<PictureReader>,
    /// Entries of the command line so far.
    rows: u64,
    /// Notices that were passed on, without the names of files.
    told: BTreeSet<String>,
    progress: Option<Arc<dyn JobProgress>>,
}

impl Entries {
    /// Passes on what the readers notice about the files.
    pub(super) fn report_to(&mut self, progress: &Arc<dyn JobProgress>) {
        self.progress = Some(Arc::clone(progress));
    }

    /// Leaves out the rest of the current file.
    pub(super) fn skip_file(&mut self) {
        self.reader = None;
    }

    /// The next row of the current source, or of the one that is opened for it.
    fn next_row(&mut self) -> Option<Result<PromptRow>> {
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
        loop {
            if self.source.index == 0 && self.reader.is_some() {
                self.source = self.prompts.source(1);
            }
            let row = self.reader.as_mut().and_then(PromptReader::next);
            self.pass_on_notices();
            if row.is_some() {
                return row;
            }
            let file = self.prompts.files.get(self.source.index)?.clone();
            self.source = self.prompts.source(self.source.index + 1);
            match PromptReader::open(&file, &self.prompts.read) {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Of files that are read alike, the first one's notices will do.
    fn pass_on_notices(&mut self) {
        let (Some(progress), Some(reader)) = (&self.progress, &self.reader) else { return };
        for notice in reader.take_notices() {
            let Notice { is_warning, text } = &notice;
            if *is_warning || self.told.insert(text.replacen(reader.name(), "", 1)) {
                progress.notice(&notice);
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        let row = self.next_row()?;
        if row.is_err() {
            // Nothing comes after it.
            self.prompts.files = Arc::default();
            self.reader = None;
        }
        Some(row.map(|row| Entry { source: Arc::clone(&self.source), row }))
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
