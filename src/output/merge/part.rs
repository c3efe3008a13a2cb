//! The output of a shard, read back row by row.

use super::arrays::{self, ArrayRows};
use super::tables::{JsonRows, TableRows};
use crate::bad_input;
use crate::bad_input::{BadInput, OrBadInput};
use crate::output::shard::{METADATA_KEY, ShardRecord, Summing};
use crate::output::{METADATA, OutputFormat, OutputRow, array_folder, shard_file, shown};
use anyhow::{Result, bail};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The longest record that is read.
const LONGEST_RECORD: u64 = 64 << 20;

/// A row of a part.
#[derive(Debug, Default)]
pub(super) struct PartRow {
    /// What the part knows of it, if its form has a place for that.
    pub(super) known: Option<OutputRow>,
    /// The arrays' numbers, in the order in which the record names them.
    pub(super) numbers: Vec<Vec<f32>>,
}

/// The output of a shard.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) format: OutputFormat,
    pub(super) record: ShardRecord,
    rows: Rows,
    /// Of the rows read so far.
    summing: Summing,
}

enum Rows {
    Arrays(Vec<ArrayRows>),
    Json(JsonRows),
    Table(TableRows),
    Folder(FolderRows),
}

impl Part {
    /// Opens the output at `path`, whose name tells its form, and checks that it is as long as its record says.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let format = if path.is_dir() { OutputFormat::Folder } else { OutputFormat::of_path(path)? };
        Self::open_as(path, format)
    }

    /// The same of an output of a known form.
    pub(super) fn open_as(path: &Path, format: OutputFormat) -> Result<Self> {
        if let Err(error) = fs::metadata(path) {
            return Err(error).or_bad_input(|| format!("cannot read {}", shown(path)));
        }
        Self::with_record(path, format, record(path, format)?)
    }

    /// The same of an output that has its record elsewhere.
    pub(super) fn with_record(path: &Path, format: OutputFormat, record: ShardRecord) -> Result<Self> {
        let name = shown(path);
        check(&record).or_bad_input(|| format!("{name}: what it says of its shard cannot be right; make it again"))?;
        let rows = match format {
            OutputFormat::Npy | OutputFormat::Npz | OutputFormat::Safetensors => {
                arrays::open(path, format, &record).map(Rows::Arrays)
            }
            OutputFormat::JsonLines => JsonRows::open(path).map(Rows::Json),
            OutputFormat::Parquet => TableRows::open(path, "prompt", &array_names(&record)).map(Rows::Table),
            OutputFormat::Folder => FolderRows::open(path, &record).map(Rows::Folder),
        };
        let rows = rows.map_err(|error| broken(&name, error))?;
        let summing = Summing::new(&record);
        Ok(Self { path: path.to_path_buf(), format, record, rows, summing })
    }

    /// Reads the next row, which is row `expected` of the whole.
    pub(super) fn next_row(&mut self, expected: u64, row: &mut PartRow) -> Result<()> {
        let arrays = self.record.arrays.names();
        row.known = None;
        row.numbers.resize(arrays.len(), Vec::new());
        row.numbers.iter_mut().for_each(Vec::clear);
        let read = match &mut self.rows {
            Rows::Arrays(inputs) => {
                inputs.iter_mut().zip(&mut row.numbers).try_for_each(|(input, numbers)| input.read(numbers))
            }
            Rows::Json(lines) => lines.read(arrays, row),
            Rows::Table(table) => table.read(row),
            Rows::Folder(folder) => folder.read(row),
        };
        let (dim, name) = (self.record.dim, shown(&self.path));
        read.and_then(|()| match &row.known {
            Some(known) if known.row != expected => bail!("row {} is where row {expected} should be", known.row),
            _ if row.numbers.iter().any(|numbers| numbers.len() != dim) => bail!("row {expected} is not {dim} numbers"),
            known => self.summing.add(known.as_ref(), &row.numbers),
        })
        .map_err(|error| broken(&name, error))
    }

    /// Checks that nothing follows the rows that were read, and that they are the ones that were written.
    pub(super) fn check_end(&mut self) -> Result<()> {
        let ended = match &mut self.rows {
            Rows::Arrays(_) => Ok(true),
            Rows::Json(lines) => lines.is_at_end(),
            Rows::Table(table) => table.is_at_end(),
            Rows::Folder(folder) => folder.is_at_end(),
        };
        let name = shown(&self.path);
        match ended.map_err(|error| broken(&name, error))? {
            true if self.summing.is(&self.record.checksums) => Ok(()),
            true => Err(bad_input!(
                "{name} is damaged (its rows are not those that were written with its record of them); make it again"
            )),
            false => Err(bad_input!("{name} holds more rows than it says; make it again")),
        }
    }
}

/// The error that reading a part ended in.
fn broken(name: &str, error: anyhow::Error) -> anyhow::Error {
    let line = if error.chain().any(is_of_system) {
        format!("cannot read {name}")
    } else {
        format!("{name} is damaged ({}); make it again", crate::error::one_line(&error, false))
    };
    error.context(BadInput(line))
}

/// Whether the system reports it of a file that may well be whole: not that one is missing, nor that a place is none.
fn is_of_system(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        error.raw_os_error().is_some() && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput)
    })
}

/// What an output says of its shard.
fn record(path: &Path, format: OutputFormat) -> Result<ShardRecord> {
    let name = shown(path);
    let text = match format {
        OutputFormat::Safetensors => arrays::safetensors_metadata(path).map_err(|error| broken(&name, error))?,
        OutputFormat::Parquet => super::tables::parquet_metadata(path).map_err(|error| broken(&name, error))?,
        _ => {
            let file = shard_file(path, format);
            match fs::metadata(&file) {
                Ok(metadata) if metadata.is_file() && metadata.len() <= LONGEST_RECORD => {
                    Some(fs::read_to_string(&file).or_bad_input(|| format!("cannot read {}", shown(&file)))?)
                }
                _ => {
                    let file = shown(&file);
                    return Err(bad_input!(
                        "{name} has no {file} that says which rows it holds; merge takes what --shard wrote, with that file"
                    ));
                }
            }
        }
    };
    let text = text.ok_or_else(|| {
        bad_input!("{name} does not say which rows it holds ({METADATA_KEY}); merge takes what --shard wrote")
    })?;
    serde_json::from_str(&text).or_bad_input(|| format!("{name}: what it says of its shard cannot be read"))
}

fn check(record: &ShardRecord) -> Result<()> {
    let ShardRecord { index, count, dim, dtype, arrays, checksums, .. } = record;
    if *index == 0 || index > count || *dim == 0 || *dim > i32::MAX as usize {
        bail!("shard {index} of {count}, {dim} numbers a row");
    }
    if checksums.arrays.len() != arrays.names().len() {
        bail!("{} checksums of {arrays:?}", checksums.arrays.len());
    }
    record.rows.check()?;
    let bytes = record.rows.count().checked_mul((dim.saturating_mul(dtype.size())) as u64);
    if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
        bail!("{} rows of {dim} numbers", record.rows.count());
    }
    Ok(())
}

fn array_names(record: &ShardRecord) -> Vec<&'static str> {
    record.arrays.names().iter().map(|array| array.name()).collect()
}

/// Reads a folder of numbered files, one after the other.
struct FolderRows {
    /// The files still to come, the next one last.
    numbers: Vec<String>,
    folder: PathBuf,
    record: ShardRecord,
    current: Option<(Vec<ArrayRows>, TableRows)>,
}

impl FolderRows {
    fn open(folder: &Path, record: &ShardRecord) -> Result<Self> {
        let prefix = format!("{METADATA}_");
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder.join(METADATA))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix(&prefix).and_then(|name| name.strip_suffix(".parquet"));
            numbers.extend(number.map(str::to_string));
        }
        numbers.sort_by(|left, right| right.cmp(left));
        Ok(Self { numbers, folder: folder.to_path_buf(), record: record.clone(), current: None })
    }

    fn read(&mut self, row: &mut PartRow) -> Result<()> {
        if self.is_at_end()? {
            bail!("it ends early");
        }
        if let Some((inputs, table)) = &mut self.current {
            table.read(row)?;
            inputs.iter_mut().zip(&mut row.numbers).try_for_each(|(input, numbers)| input.read(numbers))?;
        }
        Ok(())
    }

    /// Goes on to the next file with rows, and says whether there is none.
    fn is_at_end(&mut self) -> Result<bool> {
        loop {
            if let Some((_, table)) = &mut self.current
                && !table.is_at_end()?
            {
                return Ok(false);
            }
            let Some(number) = self.numbers.pop() else { return Ok(true) };
            let table = self.folder.join(METADATA).join(format!("{METADATA}_{number}.parquet"));
            let inputs = self.record.arrays.names().iter().map(|array| {
                let name = array_folder(*array);
                arrays::open_npy(&self.folder.join(name).join(format!("{name}_{number}.npy")), &self.record)
            });
            self.current = Some((inputs.collect::<Result<_>>()?, TableRows::open(&table, "caption", &[])?));
        }
    }
}
