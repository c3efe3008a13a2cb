//! The hidden folder beside an output in which its rows gather: data files, and a journal of what of them is safe.

use super::atomic::{sync_data, sync_path};
use super::claim::{JOURNAL, claim};
use super::dir::Dir;
use super::fingerprint::Fingerprint;
use super::journal::{self, BatchLine, End, Header, Journal, Line};
use super::shard::RowRuns;
use super::store::{Content, DataFile};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::files::parent;
use anyhow::{Context, Error, Result};
use crc32fast::Hasher;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long written rows may wait to be on the disk. A killed process loses nothing: the system has them by then.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// What a run expects to find in the folder.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    /// The output, as messages call it.
    pub(crate) name: &'a str,
    pub(crate) contents: &'a [Content],
    /// Bytes of a number.
    pub(crate) number_bytes: usize,
    /// Numbers in a row, if known.
    pub(crate) dim: Option<usize>,
    pub(crate) fingerprint: &'a Fingerprint,
    /// Whether the journal says of each batch which rows of the whole it is.
    pub(crate) is_shard: bool,
    pub(crate) resume: bool,
    pub(crate) overwrite: bool,
    pub(crate) restart: bool,
    pub(crate) keep: bool,
}

/// The folder, locked for this run.
#[derive(Debug)]
pub(crate) struct Working {
    dir: Dir,
    pub(crate) data: Vec<DataFile>,
    /// CRC-32 of what is in each of them.
    sums: Vec<Hasher>,
    /// Its file holds the lock.
    journal: Journal,
    /// Bytes of the journal's header.
    header_bytes: u64,
    /// Numbers in a row, once known.
    dim: Option<usize>,
    rows: u64,
    /// The rows by their numbers in the whole, in a sharded run.
    runs: RowRuns,
    complete: bool,
    /// Bytes of the journal, and rows, that are known to be on the disk.
    synced: (u64, u64),
    /// Whether rows wait for the disk, and when they last did not.
    pub(crate) is_unsynced: bool,
    pub(crate) last_sync: Instant,
    removed: bool,
    keep: bool,
}

/// Why rows were not written.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

impl Failure {
    fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { path: path.to_path_buf(), error }
    }
}

impl Working {
    /// Makes or finds the folder at `path`, and brings it to what its journal says is safe.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the folder cannot be made, is not ours, another run works in it, or its rows are not
    /// asked for, do not fit or cannot be trusted.
    pub(crate) fn open(path: &Path, expected: &Expected) -> Result<Self> {
        let name = expected.name;
        let (dir, file) = claim(path, name)?;
        let mut journal = Journal::new(file, path.join(JOURNAL));
        let survey = Survey::of(&journal)?;
        let is_temporary = survey.header.as_ref().is_some_and(|header| header.is_temporary);
        let resume = expected.resume && !is_temporary && survey.header.is_some();
        let failed = || format!("cannot write {name}: folder {path:?} cannot be written to");
        let (found, data) = if resume {
            let header = survey.header.as_ref();
            header.map_or(Ok(()), |header| check_header(header, expected))?;
            // A complete run's data may be in its place already: an empty file in its stead would be taken for the output.
            if survey.is_complete {
                (survey.into_found(), Vec::new())
            } else {
                let data = open_data(&dir, &survey, expected)?;
                (verify(&journal, &data, &survey, expected)?, data)
            }
        } else {
            let is_ours = survey.header.as_ref().is_some_and(|header| header.fingerprint == *expected.fingerprint);
            let may_drop = is_temporary || expected.overwrite || expected.restart && is_ours && !survey.is_damaged;
            if !may_drop && (survey.rows > 0 || survey.is_damaged) {
                let rows = survey.rows;
                return Err(bad_input!(
                    "an earlier run of {name} stopped after {rows} rows; --resume goes on, --overwrite starts again"
                ));
            }
            let begun = begin(&dir, &mut journal, expected);
            // The name of the folder itself, too.
            begun.and_then(|begun| sync_path(parent(path)).map(|()| begun)).map_err(|error| {
                // Like any run that ends before its first row.
                let _ = empty(&dir).and_then(|()| dir.remove(JOURNAL)).and_then(|()| fs::remove_dir(path));
                let line = format!("cannot write {name}: {error}; nothing is kept");
                Error::new(error).context(line)
            })?
        };
        let mut working = Self {
            dir,
            data,
            sums: found.sums,
            journal,
            header_bytes: found.header_bytes,
            dim: found.dim.or(expected.dim),
            rows: found.rows,
            runs: found.runs,
            complete: found.is_complete,
            synced: (found.journal_bytes, found.rows),
            is_unsynced: false,
            last_sync: Instant::now(),
            removed: false,
            keep: expected.keep,
        };
        if resume && !working.complete {
            working.journal.cut(found.journal_bytes).or_bad_input(failed)?;
            let mut cut = working.data.iter_mut().zip(found.bytes);
            cut.try_for_each(|(file, bytes)| file.cut(bytes)).or_bad_input(failed)?;
        }
        Ok(working)
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn dim(&self) -> Option<usize> {
        self.dim
    }

    pub(crate) fn runs(&self) -> &RowRuns {
        &self.runs
    }

    /// Bytes in the data file of `content`, and their CRC-32.
    pub(crate) fn sum(&self, content: Content) -> Option<(u64, u32)> {
        let place = self.data.iter().position(|file| file.content == content)?;
        Some((self.data[place].bytes, self.sums[place].clone().finalize()))
    }

    /// Whether the output was made of the rows, and only needs to be moved into place.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Appends a batch: its bytes for each data file. Journalled when this returns.
    pub(crate) fn append(
        &mut self,
        parts: &[Vec<u8>],
        rows: u64,
        dim: usize,
        runs: Option<RowRuns>,
    ) -> Result<(), Failure> {
        let rows = self.rows + rows;
        let bytes: Vec<u64> = self.data.iter().zip(parts).map(|(file, part)| file.bytes + part.len() as u64).collect();
        let mut hasher = BatchLine::hasher(rows, &bytes);
        parts.iter().for_each(|part| hasher.update(part));
        for ((file, sum), part) in self.data.iter_mut().zip(&mut self.sums).zip(parts) {
            file.file.write_all(part).map_err(Failure::of(&file.path))?;
            file.bytes += part.len() as u64;
            sum.update(part);
        }
        let all_runs = &mut self.runs;
        runs.iter().cloned().flat_map(RowRuns::into_rows).for_each(|row| {
            // That they rise was checked when these were made.
            let _ = all_runs.push(row);
        });
        let line = Line::Batch(BatchLine { rows, bytes, crc: hasher.finalize(), runs });
        self.journal.append(line).map_err(Failure::of(self.journal.path()))?;
        self.dim = Some(dim);
        self.rows = rows;
        self.is_unsynced = true;
        self.sync_if_due()
    }

    /// Puts the rows on the disk unless that was done a moment ago.
    pub(crate) fn sync_if_due(&mut self) -> Result<(), Failure> {
        if self.is_unsynced && self.last_sync.elapsed() >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    /// Waits until all rows are on the disk. Those that may not be there if that fails do not count any more: the system
    /// may show them to whoever reads them now, and not after its next start.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let result = self.try_sync();
        if result.is_err() {
            let (bytes, rows) = self.synced;
            let _ = self.journal.cut(bytes);
            self.rows = rows;
        }
        result
    }

    fn try_sync(&mut self) -> Result<(), Failure> {
        for file in &self.data {
            sync_data(&file.file).map_err(Failure::of(&file.path))?;
        }
        self.journal.sync().map_err(Failure::of(self.journal.path()))?;
        let bytes = self.journal.bytes().map_err(Failure::of(self.journal.path()))?;
        (self.synced, self.is_unsynced, self.last_sync) = ((bytes, self.rows), false, Instant::now());
        Ok(())
    }

    /// Notes that the output is made of the rows.
    pub(crate) fn complete(&mut self, dim: usize) -> io::Result<()> {
        self.dir.sync()?;
        self.journal.append(Line::Complete { rows: self.rows, dim })?;
        self.journal.sync()?;
        self.complete = true;
        Ok(())
    }

    /// Removes the folder with all that is in it, the journal last: a run that is killed meanwhile finds that its output
    /// is in its place, or that no rows are left.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.removed = true;
        if !self.complete {
            self.journal.cut(self.header_bytes)?;
        }
        empty(&self.dir)?;
        self.dir.remove(JOURNAL)?;
        fs::remove_dir(self.dir.path())
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

/// Begins anew: drops what an earlier run left, and writes the header.
fn begin(dir: &Dir, journal: &mut Journal, expected: &Expected) -> io::Result<(Found, Vec<DataFile>)> {
    empty(dir)?;
    journal.cut(0)?;
    let Expected { dim, fingerprint, keep, .. } = *expected;
    let header = Header { version: journal::VERSION, dim, fingerprint: fingerprint.clone(), is_temporary: !keep };
    let bytes = journal.append(Line::Header(header))?;
    journal.sync()?;
    let data = expected.contents.iter().map(|content| DataFile::create(dir, *content));
    let data = data.collect::<io::Result<Vec<_>>>()?;
    dir.sync()?;
    let sums = vec![Hasher::new(); data.len()];
    Ok((Found { dim, sums, header_bytes: bytes, journal_bytes: bytes, ..Found::default() }, data))
}

/// Opens the data files of a run that is not complete. A run that was killed as it began may have left without some.
fn open_data(dir: &Dir, survey: &Survey, expected: &Expected) -> Result<Vec<DataFile>> {
    let open = |content: Content| match DataFile::open(dir, content) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && survey.rows == 0 => DataFile::create(dir, content),
        file => file,
    };
    expected.contents.iter().map(|content| open(*content)).collect::<io::Result<Vec<_>>>().or_bad_input(|| {
        let Expected { name, .. } = expected;
        let folder = dir.path();
        format!("cannot go on with {name}: rows that {folder:?} should hold cannot be opened; --overwrite starts again")
    })
}

/// What a journal says, without a look at the data.
struct Survey {
    header: Option<Header>,
    header_bytes: u64,
    rows: u64,
    /// Numbers in a row, of a complete output.
    dim: Option<usize>,
    is_complete: bool,
    /// Whether there is more in it, which is not as it was written.
    is_damaged: bool,
    journal_bytes: u64,
}

impl Survey {
    fn of(journal: &Journal) -> Result<Self> {
        let read = || -> io::Result<Self> {
            let mut lines = journal.read()?;
            let (mut header, mut header_bytes, mut rows, mut complete) = (None, 0, 0, None);
            while let Some(line) = lines.next_line()? {
                match line {
                    Line::Header(first) => (header, header_bytes) = (Some(first), lines.position()),
                    Line::Batch(batch) => rows = batch.rows,
                    Line::Complete { rows: all, dim } if all == rows => complete = Some(dim),
                    Line::Complete { .. } => {}
                }
            }
            let (is_complete, is_damaged) = (complete.is_some(), lines.end() == Some(End::Damaged));
            let journal_bytes = lines.position();
            Ok(Self { header, header_bytes, rows, dim: complete, is_complete, is_damaged, journal_bytes })
        };
        read().with_context(|| format!("cannot read {:?}", journal.path()))
    }

    /// Of a complete output: its data may be gone already, moved into place.
    fn into_found(self) -> Found {
        Found {
            dim: self.dim,
            rows: self.rows,
            is_complete: true,
            header_bytes: self.header_bytes,
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
    if let (Some(was), Some(dim)) = (header.dim, expected.dim)
        && was != dim
    {
        differences.push(format!("the embedding's width was {was}, is {dim}"));
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
    sums: Vec<Hasher>,
    runs: RowRuns,
    is_complete: bool,
    header_bytes: u64,
    journal_bytes: u64,
}

/// Follows the journal as far as the data files hold what it says, and says so if that is not to its end.
fn verify(journal: &Journal, data: &[DataFile], survey: &Survey, expected: &Expected) -> Result<Found> {
    let failed = || format!("cannot read {:?}", journal.path());
    let mut lines = journal.read().with_context(failed)?;
    let mut found = Found { bytes: vec![0; data.len()], sums: vec![Hasher::new(); data.len()], ..Found::default() };
    let Some(Line::Header(header)) = lines.next_line().with_context(failed)? else { return Ok(found) };
    found.dim = header.dim;
    (found.header_bytes, found.journal_bytes) = (lines.position(), lines.position());
    let mut inputs = data.iter().map(input).collect::<io::Result<Vec<_>>>().with_context(failed)?;
    while let Some(Line::Batch(batch)) = lines.next_line().with_context(failed)? {
        let dim = found.dim.or_else(|| dim_of(&batch, data, expected));
        let row_bytes = dim.and_then(|dim| (dim as u64).checked_mul(expected.number_bytes as u64));
        let values = row_bytes.and_then(|bytes| batch.rows.checked_mul(bytes));
        let sized = data.iter().zip(&batch.bytes).all(|(file, bytes)| match file.content {
            Content::Values(_) => Some(*bytes) == values,
            Content::Rows => true,
        });
        let grows = found.bytes.iter().zip(&batch.bytes).all(|(old, new)| old <= new) && batch.rows > found.rows;
        if batch.bytes.len() != data.len() || !sized || !grows {
            break;
        }
        let Some(sums) = sums_if_whole(&batch, &found, &mut inputs).with_context(failed)? else { break };
        let runs = batch.runs.unwrap_or_default();
        let rows = if expected.is_shard { batch.rows - found.rows } else { 0 };
        if runs.check().is_err() || runs.count() != rows {
            break;
        }
        // If they do not come after those before, the first of them is refused.
        if runs.into_rows().try_for_each(|row| found.runs.push(row)).is_err() {
            break;
        }
        (found.rows, found.dim, found.bytes, found.sums) = (batch.rows, dim, batch.bytes, sums);
        found.journal_bytes = lines.position();
    }
    if found.rows < survey.rows || survey.is_damaged {
        let (name, rows, all) = (expected.name, found.rows, survey.rows);
        log::warn!(
            "of the {all} rows that an earlier run of {name} left, the first {rows} are as they were written; the others \
             are damaged, and computed again"
        );
    }
    Ok(found)
}

/// Numbers in a row, as a batch has them.
fn dim_of(batch: &BatchLine, data: &[DataFile], expected: &Expected) -> Option<usize> {
    let place = data.iter().position(|file| matches!(file.content, Content::Values(_)))?;
    let row_bytes = batch.bytes.get(place)?.checked_div(batch.rows)?;
    usize::try_from(row_bytes).ok()?.checked_div(expected.number_bytes)
}

fn input(file: &DataFile) -> io::Result<File> {
    let mut input = file.file.try_clone()?;
    input.seek(SeekFrom::Start(file.content.start()))?;
    Ok(input)
}

/// The checksums of the data files with a batch, if their next bytes are those of the batch.
fn sums_if_whole(batch: &BatchLine, found: &Found, inputs: &mut [File]) -> io::Result<Option<Vec<Hasher>>> {
    let mut hasher = BatchLine::hasher(batch.rows, &batch.bytes);
    let mut sums = found.sums.clone();
    let mut buffer = vec![0; 1 << 16];
    for (((input, before), after), sum) in inputs.iter_mut().zip(&found.bytes).zip(&batch.bytes).zip(&mut sums) {
        let mut input = input.take(after - before);
        loop {
            match input.read(&mut buffer)? {
                0 => break,
                read => {
                    hasher.update(&buffer[..read]);
                    sum.update(&buffer[..read]);
                }
            }
        }
        if input.limit() > 0 {
            return Ok(None);
        }
    }
    Ok((hasher.finalize() == batch.crc).then_some(sums))
}

/// Removes all that is in the folder but the journal.
fn empty(dir: &Dir) -> io::Result<()> {
    dir.names()?.iter().filter(|name| *name != JOURNAL).try_for_each(|name| dir.remove(name))
}
