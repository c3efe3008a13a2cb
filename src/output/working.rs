//! The hidden folder in which the rows of an output are gathered: columns, and a journal of what of them is safe.

use super::arrays::{ArrayName, Arrays};
use super::claim::{JOURNAL, claim};
use super::column::{Column, ColumnSpec, Content, row_bytes};
use super::fingerprint::Fingerprint;
use super::journal::{self, BatchLine, End, Header, Journal, Line, NumberedFile};
use super::numbered::Numbering;
use super::options::WriteOptions;
use super::record::FileSum;
use super::shard::RowRuns;
use crate::atomic::{sync_data, sync_path};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::dir::Dir;
use crate::files::parent;
use anyhow::{Context, Error, Result};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long written rows may wait to be synced. A killed process loses nothing: the system has them by then.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// What a run expects to find in the folder.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    /// The output, as messages call it.
    pub(crate) name: &'a str,
    pub(crate) options: &'a WriteOptions,
    pub(crate) fingerprint: Fingerprint,
    /// The columns, but for those of a numbered folder's files.
    pub(crate) columns: Vec<ColumnSpec>,
    pub(crate) numbering: Option<&'a Numbering>,
}

impl Expected<'_> {
    /// The columns while the `files`-th file of a numbered folder is written.
    fn columns(&self, files: usize) -> Vec<ColumnSpec> {
        let numbered = self.numbering.into_iter().flat_map(|numbering| numbering.columns(files as u64));
        self.columns.iter().cloned().chain(numbered).collect()
    }
}

/// The folder, locked for this run.
#[derive(Debug)]
pub(crate) struct Working {
    dir: Dir,
    pub(crate) columns: Vec<Column>,
    /// Its file holds the lock.
    journal: Journal,
    /// Bytes of the journal's header.
    header_bytes: u64,
    /// The embedding dimension, once known.
    dim: Option<usize>,
    rows: u64,
    /// The rows by their indices in the whole, in a sharded run.
    runs: RowRuns,
    /// The whole files of a numbered folder.
    files: Vec<NumberedFile>,
    complete: bool,
    /// Bytes of the journal, and rows, that are known to be on disk.
    synced: (u64, u64),
    /// Whether rows wait to be synced.
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
    pub(crate) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { path: path.to_path_buf(), error }
    }
}

impl Working {
    /// Creates or finds the folder at `path`, and truncates it to what its journal says is safe.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the folder cannot be created, is not ours, another run works in it, or its rows
    /// are not wanted, do not fit or cannot be trusted.
    pub(crate) fn open(path: &Path, expected: &Expected) -> Result<Self> {
        let Expected { name, options, .. } = *expected;
        let (dir, file) = claim(path, name)?;
        let mut journal = Journal::new(file, path.join(JOURNAL));
        let survey = State::of(&journal)?;
        let all_files = survey.files.len() as u64;
        let is_temporary = survey.header.as_ref().is_some_and(|header| header.is_temporary);
        let resume = options.resume && !is_temporary && survey.header.is_some();
        let failed = || format!("cannot write {name}: folder {path:?} cannot be written to");
        let (found, columns) = if resume {
            let header = survey.header.as_ref();
            header.map_or(Ok(()), |header| check_header(header, expected))?;
            // A complete run's columns may be in place already: an empty file would be taken for the output.
            if survey.is_complete {
                (survey, Vec::new())
            } else {
                let columns = open_columns(&dir, &survey, expected)?;
                (verify(&dir, &journal, &columns, &survey, expected)?, columns)
            }
        } else {
            let is_ours = survey.header.as_ref().is_some_and(|header| header.fingerprint == expected.fingerprint);
            let may_drop = is_temporary || options.overwrite || options.restart && is_ours && !survey.is_damaged;
            let rows = survey.rows;
            if !may_drop && (rows > 0 || !survey.files.is_empty() || survey.is_damaged) {
                return Err(bad_input!(
                    "an earlier run of {name} stopped after {rows} rows; --resume continues, --overwrite starts again"
                ));
            }
            let begun = start(&dir, &mut journal, &survey, expected);
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
            columns,
            journal,
            header_bytes: found.header_bytes,
            dim: found.dim.or(options.dim),
            rows: found.rows,
            runs: found.runs,
            files: found.files,
            complete: found.is_complete,
            synced: (found.journal_bytes, found.rows),
            is_unsynced: false,
            last_sync: Instant::now(),
            removed: false,
            keep: options.keep,
        };
        if resume && !working.complete {
            working.journal.truncate(found.journal_bytes).or_bad_input(failed)?;
            let whole_files = working.files.len() as u64;
            if let Some(numbering) = expected.numbering.filter(|_| whole_files < all_files) {
                numbering.remove(&working.dir, whole_files..all_files).or_bad_input(failed)?;
                working.start_file(numbering.columns(whole_files)).or_bad_input(failed)?;
            }
            let mut truncated = working.columns.iter_mut().zip(found.columns);
            truncated.try_for_each(|(column, sum)| column.truncate(sum)).or_bad_input(failed)?;
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

    /// The whole files of a numbered folder.
    pub(crate) fn files(&self) -> &[NumberedFile] {
        &self.files
    }

    /// Rows in them. This may be more than [`Working::rows`]: part of a batch that was not finished.
    pub(crate) fn rows_in_files(&self) -> u64 {
        rows_in(&self.files)
    }

    /// Whether the output was made of the rows, and only needs to be moved into place.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Appends to the columns, which those of a numbered folder are or are not among: the bytes for each.
    pub(crate) fn append(&mut self, is_numbered: bool, parts: &[Vec<u8>]) -> Result<(), Failure> {
        let columns = self.columns.iter_mut().filter(|column| column.spec.is_numbered == is_numbered);
        for (column, part) in columns.zip(parts) {
            column.append(part).map_err(Failure::of(&column.path))?;
        }
        Ok(())
    }

    /// Commits a batch that was appended. Journalled when this returns.
    pub(crate) fn commit(&mut self, rows: u64, dim: usize, runs: Option<RowRuns>) -> Result<(), Failure> {
        let rows = self.rows + rows;
        for row in runs.iter().cloned().flat_map(RowRuns::into_rows) {
            // That they ascend was checked when the runs were made.
            let _ = self.runs.push(row);
        }
        let columns = self.columns.iter().map(Column::sum).collect();
        let line = Line::Batch(BatchLine { rows, dim, columns, runs });
        self.journal.append(line).map_err(Failure::of(self.journal.path()))?;
        (self.dim, self.rows, self.is_unsynced) = (Some(dim), rows, true);
        self.sync_if_due()
    }

    /// Notes that the next file of a numbered folder is whole and on disk, and starts the columns of the one after it.
    pub(crate) fn finish_file(&mut self, file: NumberedFile, next: Vec<ColumnSpec>) -> Result<(), Failure> {
        let folder = self.dir.path().to_path_buf();
        self.dir.sync().map_err(Failure::of(&folder))?;
        self.journal.append(Line::File(file.clone())).map_err(Failure::of(self.journal.path()))?;
        self.files.push(file);
        self.start_file(next).map_err(Failure::of(&folder))?;
        self.sync()
    }

    fn start_file(&mut self, columns: Vec<ColumnSpec>) -> io::Result<()> {
        self.columns.retain(|column| !column.spec.is_numbered);
        self.columns.extend(create_columns(&self.dir, columns)?);
        Ok(())
    }

    /// Syncs the rows to disk unless that was done a moment ago.
    pub(crate) fn sync_if_due(&mut self) -> Result<(), Failure> {
        if self.is_unsynced && self.last_sync.elapsed() >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    /// Syncs all rows to disk. If that fails, those that may not be there do not count any more: the system may show
    /// them to readers now, and not after its next start.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let result = self.try_sync();
        if result.is_err() {
            let (bytes, rows) = self.synced;
            let _ = self.journal.truncate(bytes);
            self.rows = rows;
        }
        result
    }

    fn try_sync(&mut self) -> Result<(), Failure> {
        for column in &self.columns {
            column.file.as_ref().map_or(Ok(()), sync_data).map_err(Failure::of(&column.path))?;
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

    /// Removes the folder and everything in it, the journal last: a run that is killed meanwhile finds its output in
    /// place, or no rows.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.removed = true;
        if !self.complete {
            self.journal.truncate(self.header_bytes)?;
        }
        empty(&self.dir)?;
        self.dir.remove(JOURNAL)?;
        fs::remove_dir(self.dir.path())
    }
}

impl Drop for Working {
    /// A run that failed before its first row, or that cannot be resumed, leaves nothing behind.
    fn drop(&mut self) {
        let is_empty = self.rows == 0 && self.files.is_empty() && !self.complete;
        if !self.removed && (!self.keep || is_empty) {
            let _ = self.remove();
        }
    }
}

fn rows_in(files: &[NumberedFile]) -> u64 {
    files.iter().map(|file| file.rows).sum()
}

/// Starts anew: drops what an earlier run left, and writes the header.
fn start(dir: &Dir, journal: &mut Journal, survey: &State, expected: &Expected) -> io::Result<(State, Vec<Column>)> {
    if let Some(numbering) = expected.numbering
        && !survey.files.is_empty()
    {
        numbering.remove(dir, 0..survey.files.len() as u64)?;
    }
    empty(dir)?;
    journal.truncate(0)?;
    let WriteOptions { dim, keep, .. } = *expected.options;
    let fingerprint = expected.fingerprint.clone();
    let header = Header { version: journal::VERSION, dim, fingerprint, is_temporary: !keep };
    let bytes = journal.append(Line::Header(header))?;
    journal.sync()?;
    let columns = create_columns(dir, expected.columns(0))?;
    dir.sync()?;
    Ok((State { dim, header_bytes: bytes, journal_bytes: bytes, ..State::default() }, columns))
}

/// Creates empty columns, in place of what has their names.
fn create_columns(dir: &Dir, specs: Vec<ColumnSpec>) -> io::Result<Vec<Column>> {
    for location in specs.iter().filter_map(|spec| spec.location.as_ref()) {
        dir.remove(&location.file)?;
    }
    specs.into_iter().map(|spec| Column::create(dir, spec)).collect()
}

/// Opens the columns of a run that is not complete. One that was killed as it started, or between two files of a
/// numbered folder, may have left without some.
fn open_columns(dir: &Dir, survey: &State, expected: &Expected) -> Result<Vec<Column>> {
    let open = |spec: ColumnSpec| match Column::open(dir, spec.clone()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && (survey.rows == 0 || survey.is_between(&spec)) => {
            Column::create(dir, spec)
        }
        column => column,
    };
    let columns = expected.columns(survey.files.len()).into_iter().map(open).collect::<io::Result<Vec<_>>>();
    columns.or_bad_input(|| {
        let Expected { name, .. } = expected;
        let folder = dir.path();
        format!("cannot resume {name}: the rows that {folder:?} should hold cannot be opened; --overwrite starts again")
    })
}

/// What a journal says, or as much of it as is safe.
#[derive(Debug, Clone, Default)]
struct State {
    header: Option<Header>,
    header_bytes: u64,
    /// Bytes of all lines that count.
    journal_bytes: u64,
    /// The embedding dimension, once known.
    dim: Option<usize>,
    rows: u64,
    columns: Vec<FileSum>,
    runs: RowRuns,
    /// The whole files of a numbered folder.
    files: Vec<NumberedFile>,
    is_complete: bool,
    /// Whether a damaged line follows.
    is_damaged: bool,
}

impl State {
    /// What a journal says, without a look at the columns.
    fn of(journal: &Journal) -> Result<Self> {
        let read = || -> io::Result<Self> {
            let (mut lines, mut state) = (journal.read()?, Self::default());
            while let Some(line) = lines.next_line()? {
                state.journal_bytes = lines.position();
                match line {
                    Line::Header(header) => (state.header, state.header_bytes) = (Some(header), lines.position()),
                    Line::Batch(batch) => state.rows = batch.rows,
                    Line::File(file) => state.files.push(file),
                    Line::Complete { rows, dim } if rows == state.rows => {
                        (state.is_complete, state.dim) = (true, Some(dim));
                    }
                    Line::Complete { .. } => {}
                }
            }
            state.is_damaged = lines.end() == Some(End::Damaged);
            Ok(state)
        };
        read().with_context(|| format!("cannot read {:?}", journal.path()))
    }

    /// Whether a column is of a file of a numbered folder that has no rows yet.
    fn is_between(&self, spec: &ColumnSpec) -> bool {
        spec.is_numbered && self.rows <= rows_in(&self.files)
    }
}

fn check_header(header: &Header, expected: &Expected) -> Result<()> {
    let name = expected.name;
    if header.version != journal::VERSION {
        return Err(bad_input!(
            "the earlier run of {name} was another version's; resume it with that, or --overwrite starts again"
        ));
    }
    let mut differences = header.fingerprint.differences(&expected.fingerprint);
    if let (Some(was), Some(dim)) = (header.dim, expected.options.dim)
        && was != dim
    {
        differences.push(format!("the embedding dimension was {was}, is {dim}"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let differences = differences.join("; ");
    Err(bad_input!("cannot resume {name}: {differences}; repeat the earlier settings, or --overwrite to start again"))
}

/// Follows the journal as far as columns and files hold what it says, and warns if that is not to its end.
fn verify(dir: &Dir, journal: &Journal, columns: &[Column], survey: &State, expected: &Expected) -> Result<State> {
    let failed = || format!("cannot read {:?}", journal.path());
    let mut lines = journal.read().with_context(failed)?;
    let empty = FileSum { bytes: 0, crc: 0 };
    let mut found = State { columns: vec![empty; columns.len()], ..State::default() };
    let Some(Line::Header(header)) = lines.next_line().with_context(failed)? else { return Ok(found) };
    found.dim = header.dim;
    (found.header_bytes, found.journal_bytes) = (lines.position(), lines.position());
    // The state before the first batch of a numbered folder's current file.
    let mut before_file = None;
    while let Some(line) = lines.next_line().with_context(failed)? {
        match line {
            Line::Batch(batch) => {
                if !fits(&batch, &found, columns, expected) {
                    break;
                }
                let runs = batch.runs.clone().unwrap_or_default();
                let rows = if expected.options.shard.is_some() { batch.rows - found.rows } else { 0 };
                if runs.check().is_err() || runs.count() != rows {
                    break;
                }
                // The columns of earlier files of a numbered folder are gone; the files have checksums of their own.
                let is_gone = |column: &Column| column.spec.is_numbered && found.files.len() < survey.files.len();
                let mut grown = columns.iter().zip(found.columns.iter().zip(&batch.columns));
                let is_whole = grown.try_fold(true, |is_whole, (column, (from, to))| {
                    Ok::<_, io::Error>(is_whole && (is_gone(column) || column.has_grown(*from, *to)?))
                });
                if !is_whole.with_context(failed)? {
                    break;
                }
                if (found.rows..batch.rows).contains(&rows_in(&found.files)) {
                    before_file = Some(found.clone());
                }
                // The first row is refused if it does not come after those before.
                if runs.into_rows().try_for_each(|row| found.runs.push(row)).is_err() {
                    break;
                }
                (found.rows, found.dim, found.columns) = (batch.rows, Some(batch.dim), batch.columns);
            }
            Line::File(file) => {
                let place = found.files.len() as u64;
                let is_whole = expected.numbering.map(|numbering| numbering.is_whole(dir, place, &file));
                if !matches!(is_whole.transpose(), Ok(Some(true))) {
                    break;
                }
                found.files.push(file);
                let sums = found.columns.iter_mut().zip(columns).filter(|(_, column)| column.spec.is_numbered);
                sums.for_each(|(sum, _)| *sum = empty);
            }
            Line::Header(_) | Line::Complete { .. } => break,
        }
        found.journal_bytes = lines.position();
    }
    // The columns of files that are damaged or missing are gone.
    if found.files.len() < survey.files.len() && found.rows > rows_in(&found.files) {
        found = before_file.unwrap_or_default();
    }
    if found.rows < survey.rows || survey.is_damaged {
        let (name, rows, all) = (expected.name, found.rows, survey.rows);
        log::warn!(
            "of the {all} rows that an earlier run of {name} left, the first {rows} are intact; the others are damaged \
             and computed again"
        );
    }
    Ok(found)
}

/// Whether a batch follows those that were found.
fn fits(batch: &BatchLine, found: &State, columns: &[Column], expected: &Expected) -> bool {
    let in_files = rows_in(&found.files);
    let fits = |column: &Column, from: &FileSum, to: &FileSum| {
        let rows = if column.spec.is_numbered { batch.rows.saturating_sub(in_files) } else { batch.rows };
        let width = match column.spec.content {
            Content::Values(ArrayName::Scores) => Some(expected.options.width(Arrays::SCORES, batch.dim)),
            Content::Values(_) => Some(batch.dim),
            _ => None,
        };
        let is_whole = |width| rows.checked_mul(row_bytes(width, expected.options.out_dtype)) == Some(to.bytes);
        to.bytes >= from.bytes && width.is_none_or(is_whole)
    };
    let mut sums = columns.iter().zip(&found.columns).zip(&batch.columns);
    batch.columns.len() == columns.len()
        && batch.rows > found.rows
        && found.dim.is_none_or(|dim| dim == batch.dim)
        && sums.all(|((column, from), to)| fits(column, from, to))
}

/// Removes everything in the folder but the journal.
fn empty(dir: &Dir) -> io::Result<()> {
    dir.names()?.iter().filter(|name| *name != JOURNAL).try_for_each(|name| dir.remove(name))
}
