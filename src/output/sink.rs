//! What a format is to the writers: the trait that each file in `formats` implements.

use super::arrays::{ArrayName, Arrays};
use super::batch::OutputRow;
use super::column::{Content, Location};
use super::dtype::OutputDtype;
use super::record::OutputRecord;
use super::store::Store;
use crate::bad_input;
use anyhow::{Result, bail};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

/// A format.
pub(crate) trait Sink: Sync {
    /// Its name on the command line and its file extension.
    fn name(&self) -> &'static str;

    /// Whether one output holds several arrays by name.
    fn holds_several(&self) -> bool {
        true
    }

    /// Whether it holds ids, prompts and seeds.
    fn holds_rows(&self) -> bool {
        false
    }

    /// Whether a shard's record goes into the file itself.
    fn holds_record(&self) -> bool {
        false
    }

    /// Whether it holds the negative embeddings too, unless a file of their own is named: what decoders read.
    fn prefers_both(&self) -> bool {
        false
    }

    /// Whether it holds the numbers of its arrays, so that its rows can be read back.
    fn holds_numbers(&self) -> bool {
        true
    }

    /// Whether it is text, a line a row without a head.
    fn is_lines(&self) -> bool {
        false
    }

    /// Where rows go as they come.
    ///
    /// # Errors
    /// If the sizes overflow.
    fn layout(&self, shape: &Shape) -> Result<Layout>;

    /// The bytes before the first region of [`Layout::InPlace`], once the rows are counted.
    ///
    /// # Errors
    /// If the sizes overflow.
    fn head(&self, _shape: &Shape, _rows: u64, _dim: usize) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Makes a file of the columns of [`Layout::Gathered`].
    ///
    /// # Errors
    /// If it cannot be read or written.
    fn write(&self, _: &Store, _: Arrays, _: Option<&OutputRecord>, _: &mut BufWriter<File>) -> Result<()> {
        bail!("internal error: {} is not made of columns", self.name())
    }

    /// Opens an output to read its rows back.
    ///
    /// # Errors
    /// If it cannot be read, or does not fit its record.
    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>>;

    /// The record in a file, if [`Sink::holds_record`].
    ///
    /// # Errors
    /// If the file cannot be read.
    fn read_record(&self, path: &Path) -> Result<Option<String>> {
        Err(bad_input!("{path:?} holds no record"))
    }
}

/// What is known of an output before its first row.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) arrays: Arrays,
    pub(crate) dtype: OutputDtype,
    /// The embedding dimension, if known.
    pub(crate) dim: Option<usize>,
    /// The shape of a row that is no vector.
    pub(crate) row: Option<[usize; 2]>,
    /// Its number of rows, if known, which a shard's is not.
    pub(crate) rows: Option<u64>,
    /// What it was made of, as JSON, for formats that hold it.
    pub(crate) provenance: Option<Arc<str>>,
}

/// Where rows go as they come.
#[derive(Debug)]
pub(crate) enum Layout {
    /// Into the final file: a head, then regions that batches are appended to.
    InPlace(Vec<Region>),
    /// Into columns, of which the file is made at the end.
    Gathered(Vec<Content>),
    /// Into the numbered files of a folder.
    Numbered,
}

/// A part of a file that batches are appended to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) content: Content,
    pub(crate) start: u64,
    /// Whether the file ends where it does.
    pub(crate) is_last: bool,
}

impl Region {
    /// The only region, which starts after a head of `start` bytes.
    pub(crate) fn only(content: Content, start: u64) -> Self {
        Self { content, start, is_last: true }
    }

    /// Its location in a file of the hidden folder.
    pub(crate) fn at(self, file: &str) -> Location {
        Location { file: file.into(), start: self.start, is_last: self.is_last }
    }
}

/// Reads the rows of an output one by one.
pub(crate) trait ReadRows {
    /// Reads the next row. The numbers in `row` are empty before, one list per array of the record.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    fn next_row(&mut self, row: &mut PartRow) -> Result<()>;

    /// Whether nothing follows.
    ///
    /// # Errors
    /// If it cannot be read.
    fn is_at_end(&mut self) -> Result<bool> {
        Ok(true)
    }
}

/// A row that was read back.
#[derive(Debug, Default)]
pub(crate) struct PartRow {
    /// What is known of it, if its format holds that.
    pub(crate) known: Option<OutputRow>,
    /// Each array's numbers, in the order of [`Arrays::names`].
    pub(crate) numbers: Vec<Vec<f32>>,
}

/// The columns of all arrays, and of what is known of the rows.
pub(crate) fn contents(arrays: Arrays, rows: bool) -> Vec<Content> {
    let values = arrays.names().iter().map(|array: &ArrayName| Content::Values(*array));
    values.chain(rows.then_some(Content::Rows)).collect()
}
