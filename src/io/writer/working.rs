//! The hidden folder beside an output in which its rows gather: data files, a journal of what of them is safe, a lock.

use super::lock::{LOCK, lock};
use super::publish::sync_folder;
use super::store::{Content, DataFile};
use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::parent;
use crate::io::fingerprint::Fingerprint;
use crate::io::journal::{self, BatchLine, Header, Journal, Line};
use crate::io::shard::RowRuns;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const JOURNAL: &str = "journal.jsonl";

/// How long written rows may wait to be on the disk. A killed process loses nothing: the system has them by then.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// What a run expects to find in the folder.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    /// The output, as messages call it.
    pub(super) name: &'a str,
    pub(super) contents: &'a [Content],
    /// Bytes of a number.
    pub(super) number_bytes: usize,
    /// Numbers in a row, if known.
    pub(super) dim: Option<usize>,
    pub(super) fingerprint: &'a Fingerprint,
    /// Whether the journal says of each batch which rows of the whole it is.
    pub(super) is_shard: bool,
    pub(super) resume: bool,
    pub(super) overwrite: bool,
    pub(super) restart: bool,
    pub(super) keep: bool,
}

/// The folder, locked for this run.
#[derive(Debug)]
pub(super) struct Working {
    folder: PathBuf,
    /// Held as long as this is.
    _lock: Option<File>,
    pub(super) data: Vec<DataFile>,
    journal: Journal,
    fingerprint: Fingerprint,
    /// Numbers in a row, once known.
    dim: Option<usize>,
    rows: u64,
    /// The rows by their numbers in the whole, in a sharded run.
    runs: RowRuns,
    complete: bool,
    /// Whether rows wait for the disk, and when they last did not.
    pub(super) is_unsynced: bool,
    pub(super) last_sync: Instant,
    removed: bool,
    keep: bool,
}

impl Working {
    /// Makes or finds `folder`, and brings it to what its journal says is safe.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the folder cannot be made, another run works in it, or its rows are not asked for
    /// or do not fit.
    pub(super) fn open(folder: PathBuf, expected: &Expected) -> Result<Self> {
        let name = expected.name;
        let lock = lock(&folder, name)?;
        let survey = Survey::of(&folder)?;
        let is_temporary = survey.header.as_ref().is_some_and(|header| header.is_temporary);
        let resume = expected.resume && !is_temporary;
        if !resume {
            let is_ours = survey.header.as_ref().is_some_and(|header| header.fingerprint == *expected.fingerprint);
            let may_drop = is_temporary || expected.overwrite || expected.restart && is_ours;
            if !may_drop && survey.rows > 0 {
                let rows = survey.rows;
                return Err(bad_input!(
                    "an earlier run of {name} stopped after {rows} rows; --resume goes on, --overwrite starts again"
                ));
            }
            empty(&folder).with_context(|| format!("cannot empty {folder:?}"))?;
        } else if let Some(header) = &survey.header {
            check_header(header, expected)?;
        }
        let failed = || format!("cannot write {name}: folder {folder:?} cannot be written to");
        // A complete run's data may be in its place already: an empty file in its stead would be taken for the output.
        let is_complete = resume && survey.complete;
        let contents = if is_complete { &[] } else { expected.contents };
        let data = contents.iter().map(|content| DataFile::open(&folder, *content));
        let data = data.collect::<io::Result<Vec<_>>>().or_bad_input(failed)?;
        let mut found = match resume {
            true if is_complete => survey.into_found(),
            true => verify(&folder, &data, expected)?,
            false => Found::default(),
        };
        let journal = Journal::open(&folder.join(JOURNAL), found.journal_bytes).or_bad_input(failed)?;
        // The names of the files, and of the folder itself.
        sync_folder(&folder).and_then(|()| sync_folder(parent(&folder))).or_bad_input(failed)?;
        found.bytes.resize(data.len(), 0);
        let mut working = Self {
            folder,
            _lock: lock,
            data,
            journal,
            fingerprint: expected.fingerprint.clone(),
            dim: found.dim,
            rows: found.rows,
            runs: found.runs,
            complete: found.complete,
            is_unsynced: false,
            last_sync: Instant::now(),
            removed: false,
            keep: expected.keep,
        };
        if !working.complete {
            let cut = working.data.iter_mut().zip(found.bytes).try_for_each(|(file, bytes)| file.cut(bytes));
            cut.with_context(|| format!("cannot write to {:?}", working.folder))?;
        }
        Ok(working)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn dim(&self) -> Option<usize> {
        self.dim
    }

    pub(super) fn runs(&self) -> &RowRuns {
        &self.runs
    }

    /// Whether the output was made of the rows, and only needs to be moved into place.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Appends a batch: its bytes for each data file. Journalled when this returns.
    pub(super) fn append(
        &mut self,
        parts: &[Vec<u8>],
        rows: u64,
        dim: usize,
        runs: Option<RowRuns>,
    ) -> Result<(), (PathBuf, io::Error)> {
        self.begin(dim).map_err(|error| (self.journal.path().to_path_buf(), error))?;
        let rows = self.rows + rows;
        let bytes: Vec<u64> = self.data.iter().zip(parts).map(|(file, part)| file.bytes + part.len() as u64).collect();
        let mut hasher = BatchLine::hasher(rows, &bytes);
        parts.iter().for_each(|part| hasher.update(part));
        for (file, part) in self.data.iter_mut().zip(parts) {
            file.file.write_all(part).map_err(|error| (file.path.clone(), error))?;
            file.bytes += part.len() as u64;
        }
        let all_runs = &mut self.runs;
        runs.iter().cloned().flat_map(RowRuns::into_rows).for_each(|row| {
            // That they rise was checked when these were made.
            let _ = all_runs.push(row);
        });
        let line = Line::Batch(BatchLine { rows, bytes, crc: hasher.finalize(), runs });
        self.journal.append(&line).map_err(|error| (self.journal.path().to_path_buf(), error))?;
        self.rows = rows;
        self.is_unsynced = true;
        self.sync_if_due()
    }

    /// Puts the rows on the disk unless that was done a moment ago.
    pub(super) fn sync_if_due(&mut self) -> Result<(), (PathBuf, io::Error)> {
        if self.is_unsynced && self.last_sync.elapsed() >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    /// Writes the header, if it is not there yet.
    fn begin(&mut self, dim: usize) -> io::Result<()> {
        if self.dim.is_none() {
            let fingerprint = self.fingerprint.clone();
            let (version, is_temporary) = (journal::VERSION, !self.keep);
            self.journal.append(&Line::Header(Header { version, dim, fingerprint, is_temporary }))?;
            self.dim = Some(dim);
        }
        Ok(())
    }

    /// Waits until all rows are on the disk.
    pub(super) fn sync(&mut self) -> Result<(), (PathBuf, io::Error)> {
        for file in &self.data {
            file.file.sync_data().map_err(|error| (file.path.clone(), error))?;
        }
        self.journal.sync().map_err(|error| (self.journal.path().to_path_buf(), error))?;
        (self.is_unsynced, self.last_sync) = (false, Instant::now());
        Ok(())
    }

    /// Notes that the output is made of the rows; `dim` where there are none.
    pub(super) fn complete(&mut self, dim: usize) -> io::Result<()> {
        self.begin(dim)?;
        sync_folder(&self.folder)?;
        self.journal.append(&Line::Complete { rows: self.rows })?;
        self.journal.sync()?;
        self.complete = true;
        Ok(())
    }

    /// Removes the folder with all that is in it.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.removed = true;
        empty(&self.folder)?;
        fs::remove_file(self.folder.join(LOCK))?;
        fs::remove_dir(&self.folder)
    }
}

impl Drop for Working {
    /// A run that failed before its first row, or that none can go on with, leaves nothing behind.
    fn drop(&mut self) {
        if !self.removed && (!self.keep || self.rows == 0 && !self.complete) {
            let _ = self.remove();
        }
    }
}

/// What a journal says, without a look at the data.
struct Survey {
    header: Option<Header>,
    rows: u64,
    complete: bool,
    journal_bytes: u64,
}

impl Survey {
    fn of(folder: &Path) -> Result<Self> {
        let mut reader = journal::Reader::open(&folder.join(JOURNAL))?;
        let mut survey = Self { header: None, rows: 0, complete: false, journal_bytes: 0 };
        while let Some(line) = reader.next_line()? {
            match line {
                Line::Header(header) => survey.header = Some(header),
                Line::Batch(batch) => survey.rows = batch.rows,
                Line::Complete { rows } => (survey.rows, survey.complete) = (rows, true),
            }
        }
        survey.journal_bytes = reader.position();
        Ok(survey)
    }

    /// Of a complete output: its data may be gone already, moved into place.
    fn into_found(self) -> Found {
        Found {
            dim: self.header.map(|header| header.dim),
            rows: self.rows,
            complete: true,
            journal_bytes: self.journal_bytes,
            ..Found::default()
        }
    }
}

fn check_header(header: &Header, expected: &Expected) -> Result<()> {
    let name = expected.name;
    if header.version != journal::VERSION {
        return Err(bad_input!(
            "the earlier run of {name} was another version's; go on with that, or --overwrite starts again"
        ));
    }
    let mut differences = header.fingerprint.differences(expected.fingerprint);
    if let Some(dim) = expected.dim.filter(|dim| *dim != header.dim) {
        differences.push(format!("the embedding's width was {}, is {dim}", header.dim));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let differences = differences.join("; ");
    Err(bad_input!(
        "cannot go on with {name}: {differences}; give what the earlier run had, or --overwrite to start again"
    ))
}

/// What of an earlier run is safe.
#[derive(Debug, Default)]
struct Found {
    dim: Option<usize>,
    rows: u64,
    bytes: Vec<u64>,
    runs: RowRuns,
    complete: bool,
    journal_bytes: u64,
}

/// Follows the journal as far as the data files hold what it says.
fn verify(folder: &Path, data: &[DataFile], expected: &Expected) -> Result<Found> {
    let mut reader = journal::Reader::open(&folder.join(JOURNAL))?;
    let mut found = Found { bytes: vec![0; data.len()], ..Found::default() };
    let Some(Line::Header(header)) = reader.next_line()? else { return Ok(found) };
    found.dim = Some(header.dim);
    found.journal_bytes = reader.position();
    let mut inputs = data.iter().map(input).collect::<io::Result<Vec<_>>>()?;
    while let Some(Line::Batch(batch)) = reader.next_line()? {
        let values = batch.rows.checked_mul((header.dim * expected.number_bytes) as u64);
        let sized = data.iter().zip(&batch.bytes).all(|(file, bytes)| match file.content {
            Content::Values(_) => Some(*bytes) == values,
            Content::Rows => true,
        });
        let grows = found.bytes.iter().zip(&batch.bytes).all(|(old, new)| old <= new) && batch.rows > found.rows;
        if batch.bytes.len() != data.len() || !sized || !grows || !is_whole(&batch, &found.bytes, &mut inputs)? {
            break;
        }
        let runs = batch.runs.unwrap_or_default();
        let rows = if expected.is_shard { batch.rows - found.rows } else { 0 };
        if runs.check().is_err() || runs.count() != rows {
            break;
        }
        // If they do not come after those before, the first of them is refused.
        if runs.into_rows().try_for_each(|row| found.runs.push(row)).is_err() {
            break;
        }
        (found.rows, found.bytes, found.journal_bytes) = (batch.rows, batch.bytes, reader.position());
    }
    Ok(found)
}

fn input(file: &DataFile) -> io::Result<File> {
    let mut input = File::open(&file.path)?;
    input.seek(SeekFrom::Start(file.content.start()))?;
    Ok(input)
}

/// Whether the next bytes of the data files are those of the batch.
fn is_whole(batch: &BatchLine, before: &[u64], inputs: &mut [File]) -> io::Result<bool> {
    let mut hasher = BatchLine::hasher(batch.rows, &batch.bytes);
    let mut buffer = vec![0; 1 << 16];
    for ((input, before), after) in inputs.iter_mut().zip(before).zip(&batch.bytes) {
        let mut input = input.take(after - before);
        loop {
            match input.read(&mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        if input.limit() > 0 {
            return Ok(false);
        }
    }
    Ok(hasher.finalize() == batch.crc)
}

/// Removes all that is in the folder but the lock; the journal first, since without it the rest counts for nothing.
fn empty(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(JOURNAL)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}
