//! The output of a shard, read back row by row and compared with its record.

use crate::bad_input;
use crate::bad_input::{BadInput, OrBadInput};
use crate::output::arrays::Arrays;
use crate::output::formats::OutputFormat;
use crate::output::options::Output;
use crate::output::paths::{shard_file, shown};
use crate::output::record::{METADATA_KEY, OutputRecord, Summing};
use crate::output::shard::Shard;
use crate::output::sink::{PartRow, ReadRows};
use anyhow::{Error, Result, bail};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The output of a shard.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) format: OutputFormat,
    pub(super) record: OutputRecord,
    rows: Box<dyn ReadRows>,
    /// Of the rows that were read so far.
    summing: Summing,
}

impl Part {
    /// Opens the output at `path`, whose name tells its format, and checks that it is as long as its record says.
    ///
    /// # Errors
    /// [`BadInput`] if it cannot be read, has no record or is damaged.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = shown(path);
        if path.is_dir() {
            return Err(bad_input!(
                "{name} is a folder; shards of one need no merge if they are written to the same --out-dir"
            ));
        }
        Self::open_as(path, OutputFormat::of_path(path)?)
    }

    /// [`Part::open`] of an output of a known format.
    ///
    /// # Errors
    /// Those of [`Part::open`].
    pub(super) fn open_as(path: &Path, format: OutputFormat) -> Result<Self> {
        if let Err(error) = fs::metadata(path) {
            return Err(error).or_bad_input(|| format!("cannot read {}", shown(path)));
        }
        Self::with_record(path, format, record(path, format)?)
    }

    /// [`Part::open`] of an output whose record is known.
    ///
    /// # Errors
    /// Those of [`Part::open`].
    pub(super) fn with_record(path: &Path, format: OutputFormat, record: OutputRecord) -> Result<Self> {
        let name = shown(path);
        record.check().or_bad_input(|| format!("{name}: its record contradicts itself; make it again"))?;
        let rows = format.sink().open(path, &record).map_err(|error| broken(&name, error))?;
        let summing = Summing::new(&record);
        Ok(Self { path: path.to_path_buf(), format, record, rows, summing })
    }

    /// Reads the next row, which is row `expected` of the whole.
    ///
    /// # Errors
    /// [`BadInput`] if it is another, or cannot be read.
    pub(super) fn next_row(&mut self, expected: u64, row: &mut PartRow) -> Result<()> {
        row.known = None;
        row.numbers.resize(self.record.arrays.names().len(), Vec::new());
        row.numbers.iter_mut().for_each(Vec::clear);
        let (dim, name) = (self.record.dim, shown(&self.path));
        let read = self.rows.next_row(row).and_then(|()| match &row.known {
            Some(known) if known.row != expected => bail!("row {} is where row {expected} should be", known.row),
            _ if row.numbers.iter().any(|numbers| numbers.len() != dim) => bail!("row {expected} is not {dim} numbers"),
            known => self.summing.add(known.as_ref(), &row.numbers),
        });
        read.map_err(|error| broken(&name, error))
    }

    /// Checks that nothing follows the rows that were read, and their checksums.
    ///
    /// # Errors
    /// [`BadInput`] if something does, or they differ.
    pub(super) fn check_end(&mut self) -> Result<()> {
        let name = shown(&self.path);
        match self.rows.is_at_end().map_err(|error| broken(&name, error))? {
            true if self.summing.matches(&self.record.checksums) => Ok(()),
            true => Err(bad_input!(
                "{name} is damaged (its rows are not those that its record was made for); make it again"
            )),
            false => Err(bad_input!("{name} holds more rows than its record says; make it again")),
        }
    }
}

/// The error for a part that cannot be read.
fn broken(name: &str, error: Error) -> Error {
    let line = if error.chain().any(is_of_system) {
        format!("cannot read {name}")
    } else {
        format!("{name} is damaged ({error}); make it again")
    };
    error.context(BadInput(line))
}

/// Whether the system refuses to read a file that may well be intact.
fn is_of_system(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        error.raw_os_error().is_some() && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput)
    })
}

/// The record of a shard.
fn record(path: &Path, format: OutputFormat) -> Result<OutputRecord> {
    let (name, sink) = (shown(path), format.sink());
    if sink.holds_record() {
        let text = sink.read_record(path).map_err(|error| broken(&name, error))?;
        let text = text.ok_or_else(|| {
            bad_input!("{name} does not say which rows it holds ({METADATA_KEY}); merge takes what --shard wrote")
        })?;
        return serde_json::from_str(&text).or_bad_input(|| format!("{name}: its record cannot be read"));
    }
    let output = Output { path: path.to_path_buf(), format, arrays: Arrays::IMAGE };
    let file = shard_file(&output, Shard::WHOLE);
    OutputRecord::read(&file)?.ok_or_else(|| {
        let file = shown(&file);
        bad_input!("{name} has no {file} that says which rows it holds; merge takes what --shard wrote, with that file")
    })
}
