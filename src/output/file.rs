//! Writes to files and folders so that nothing is lost whenever the run ends.

use super::arrays::Arrays;
use super::batch::{Batch, Interrupted};
use super::check::check_free;
use super::column::{Column, Content};
use super::formats::parquet::write_metadata;
use super::formats::{OutputFormat, npy};
use super::journal::NumberedFile;
use super::numbered::Numbering;
use super::options::{Output, WriteOptions};
use super::paths::{
    MadeFolder, check_paths, has_stopped_run, is_record, record_file, resolve, shard_file, shown, working_folder,
};
use super::publish::{Publication, Rules, remove_stale};
use super::record::{Checksums, FileSum, ITSELF, OutputRecord};
use super::shard::{RowRuns, Shard};
use super::sink::Layout;
use super::store::{Lost, Store};
use super::target::{Target, columns, create};
use super::working::{Expected, Failure, Working};
use crate::atomic::sync_all;
use crate::bad_input;
use crate::dir::{Access, Dir};
use anyhow::{Context, Error, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes rows into the hidden folder, and at the end the outputs that are files.
#[derive(Debug)]
pub(crate) struct FileWriter {
    /// The main output, as messages call it.
    name: String,
    pub(super) working: Working,
    targets: Vec<Target>,
    /// If the main output is a numbered folder.
    numbering: Option<Numbering>,
    /// Rows in its current file.
    rows_in_file: u64,
    /// Whether its files are moved into place once they are full, and not at the end.
    publishes_early: bool,
    /// The arrays of all outputs.
    arrays: Arrays,
    options: WriteOptions,
    /// The embedding dimension, once known.
    dim: Option<usize>,
    /// Whether a write failed: what the columns hold beyond the journal is of no use.
    broken: bool,
    /// Dropped after the working folder, which may be in it.
    _made: MadeFolder,
}

impl FileWriter {
    /// Checks the outputs and finds what an earlier run left.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if an output cannot be written, exists already, or is being written by another run;
    /// or if there is an earlier run that is not to be resumed, or had other settings.
    pub(crate) fn open(outputs: Vec<Output>, options: &WriteOptions) -> Result<Self> {
        let outputs = outputs.into_iter().map(resolve).collect::<Result<Vec<_>>>()?;
        check_paths(&outputs, options)?;
        let Some((main, others)) = outputs.split_first() else { bail!("internal error: no output") };
        if others.iter().any(|output| output.format == OutputFormat::Folder) {
            bail!("internal error: a folder is not the main output");
        }
        let arrays = others.iter().fold(main.arrays, |arrays, output| arrays.union(output.arrays));
        let dim = options.dim.map(|dim| options.width(arrays, dim));
        let options = &WriteOptions { dim, ..options.clone() };
        let name = shown(&main.path);
        let numbering = Numbering::new(main, options);
        if let Some(numbering) = &numbering {
            if options.shard.is_some() && !numbering.knows_names() {
                bail!("internal error: a shard of a folder without total rows");
            }
            numbering.check_siblings(&options.whole_fingerprint())?;
        }
        let stopped = has_stopped_run(main, options.shard);
        // What a stopped run has published of a folder is not in the way of one that resumes it.
        if !stopped || !options.resume && numbering.is_none() {
            check_free(&outputs, options, 0)?;
        }
        let made = MadeFolder::make(main)?;
        let targets = outputs.iter().enumerate().map(|(place, output)| Target::new(place, output.clone(), options));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        let expected = Expected {
            name: &name,
            columns: columns(&targets),
            numbering: numbering.as_ref(),
            options,
            fingerprint: options.whole_fingerprint(),
        };
        let working = Working::open(&working_folder(main, options.shard), &expected)?;
        let files = working.files().len() as u64;
        if stopped && !working.is_complete() {
            check_free(&outputs, options, files)?;
        }
        let is_free = |numbering: &Numbering| numbering.knows_names() && numbering.strangers(files).is_empty();
        Ok(Self {
            publishes_early: options.keep && numbering.as_ref().is_some_and(is_free),
            rows_in_file: working.rows().saturating_sub(working.rows_in_files()),
            name,
            numbering,
            arrays,
            dim: working.dim().or(options.dim),
            options: options.clone(),
            broken: false,
            _made: made,
            working,
            targets,
        })
    }

    pub(crate) fn rows_done(&self) -> u64 {
        self.working.rows()
    }

    pub(crate) fn set_total_rows(&mut self, rows: u64) {
        self.options.total_rows = Some(rows);
    }

    /// The hidden folder, for what goes beside the outputs.
    pub(crate) fn dir(&self) -> &Dir {
        self.working.dir()
    }

    /// Writes the next rows, at least one.
    ///
    /// # Errors
    /// If a number does not fit its type or format, or the rows cannot be written; [`Interrupted`].
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<()> {
        if self.broken || self.working.is_complete() {
            bail!("internal error: rows after the end of {}", self.name);
        }
        let dim = batch.dim(self.arrays)?;
        if let Some(before) = self.dim.filter(|before| *before != dim) {
            bail!("internal error: rows of {dim} numbers after rows of {before}");
        }
        let encoding = self.options.encoding();
        // All at once: a number that does not fit must leave nothing half written.
        let encode = |is_numbered: bool, batch: &Batch| -> Result<Vec<Vec<u8>>> {
            let columns = self.working.columns.iter().filter(|column| column.spec.is_numbered == is_numbered);
            columns.map(|column| column.spec.content.encode(batch, encoding)).collect()
        };
        let parts = encode(false, batch)?;
        let pieces = self.pieces(batch.rows.len()).into_iter();
        let pieces = pieces.map(|piece| Ok((piece.len() as u64, encode(true, &batch.slice(piece))?)));
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        let runs = self.options.shard.map(|_| self.runs(batch)).transpose()?;
        self.dim = Some(dim);
        self.working.append(false, &parts).map_err(|failure| self.kept(failure))?;
        for (rows, parts) in pieces {
            self.working.append(true, &parts).map_err(|failure| self.kept(failure))?;
            self.rows_in_file += rows;
            if self.numbering.as_ref().is_some_and(|numbering| self.rows_in_file == numbering.rows_per_file) {
                self.finish_file(dim)?;
            }
        }
        self.working.commit(batch.rows.len() as u64, dim, runs).map_err(|failure| self.kept(failure))
    }

    /// The rows of a batch that go into each file of a numbered folder. A run that was killed within a batch may have
    /// finished files with its first rows: a batch is resumed as a whole, since its rows are computed together.
    fn pieces(&self, rows: usize) -> Vec<Range<usize>> {
        let Some(numbering) = &self.numbering else { return Vec::new() };
        let held = self.working.rows_in_files() + self.rows_in_file;
        let skipped = usize::try_from(held.saturating_sub(self.working.rows())).unwrap_or(usize::MAX);
        let (mut pieces, mut start, mut room) = (Vec::new(), skipped, numbering.rows_per_file - self.rows_in_file);
        while start < rows {
            let end = usize::try_from(room).map_or(rows, |room| rows.min(start.saturating_add(room)));
            pieces.push(start..end);
            (start, room) = (end, numbering.rows_per_file);
        }
        pieces
    }

    /// The indices of a batch's rows, which come after those before.
    fn runs(&self, batch: &Batch) -> Result<RowRuns> {
        let mut runs = RowRuns::default();
        batch.rows.iter().try_for_each(|row| runs.push(row.row))?;
        if let (Some(last), Some(row)) = (self.working.runs().last(), batch.rows.first())
            && row.row <= last
        {
            bail!("internal error: row {} comes after row {last}", row.row);
        }
        Ok(runs.finish())
    }

    /// Completes the current file of a numbered folder.
    fn finish_file(&mut self, dim: usize) -> Result<()> {
        let Some(numbering) = self.numbering.clone() else { return Ok(()) };
        let place = self.working.files().len() as u64;
        let file = match self.make_file(&numbering, place, dim) {
            Ok(file) => file,
            Err(_) if self.options.interrupt.load(Ordering::Relaxed) => {
                self.broken = true;
                return Err(Interrupted.into());
            }
            Err(error) => {
                self.broken = true;
                let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
                let Some(cause) = cause.map(|cause| io::Error::new(cause.kind(), cause.to_string())) else {
                    return Err(error);
                };
                let path = self.dir().path().join(numbering.metadata_part(place));
                return Err(self.kept(Failure { path, error: cause }));
            }
        };
        let next = numbering.columns(place + 1);
        self.working.finish_file(file, next).map_err(|failure| self.kept(failure))?;
        // They are in the metadata now.
        self.dir().remove(numbering.rows_part(place))?;
        self.rows_in_file = 0;
        if self.publishes_early {
            numbering.publish(place, place + 1, self.rules())?;
        }
        Ok(())
    }

    /// Makes the current file of a numbered folder: its columns become `.npy` files, and those of its rows the
    /// metadata.
    fn make_file(&self, numbering: &Numbering, place: u64, dim: usize) -> Result<NumberedFile> {
        let store = self.store(true, self.rows_in_file, dim);
        let head = npy::header(store.rows, dim, store.dtype)?;
        let mut sums = Vec::new();
        for column in store.columns.iter().filter(|column| matches!(column.spec.content, Content::Values(_))) {
            let Some(file) = &column.file else { bail!("internal error: an array that is not stored") };
            file.write_all_at(&head, 0)?;
            sync_all(file)?;
            sums.push(column.sum_after(&head));
        }
        let metadata = numbering.metadata_part(place);
        create(store.dir, &metadata, |output| write_metadata(&store, output))?;
        sums.push(FileSum::of(store.dir.open_file(&metadata, Access::Read)?)?);
        Ok(NumberedFile { rows: store.rows, sums })
    }

    /// Complete columns, those of a numbered folder's current file or the others.
    fn store(&self, is_numbered: bool, rows: u64, dim: usize) -> Store<'_> {
        let columns: Vec<&Column> =
            self.working.columns.iter().filter(|column| column.spec.is_numbered == is_numbered).collect();
        let interrupt = Arc::clone(&self.options.interrupt);
        Store { dir: self.working.dir(), columns, rows, dim, dtype: self.options.out_dtype, interrupt }
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        self.working.sync().map_err(|failure| self.kept(failure))
    }

    pub(crate) fn sync_if_due(&mut self) -> Result<()> {
        self.working.sync_if_due().map_err(|failure| self.kept(failure))
    }

    /// A failure while rows are written, with what the user can do.
    fn kept(&mut self, Failure { path, error }: Failure) -> Error {
        self.broken = true;
        // Rows that cannot be synced do not count either.
        let _ = self.working.sync();
        let rows = self.working.rows();
        let what_now = match self.options.keep {
            true if rows > 0 => {
                format!("{rows} rows are kept, and --resume continues from row {rows} {}", once(&error))
            }
            _ => "nothing is kept".to_string(),
        };
        let line = format!("cannot write {}: {error}; {what_now}", shown(&path));
        Error::new(error).context(line)
    }

    /// A failure while the output is made of the rows, all of which are on disk.
    fn unfinished(&self, error: Error) -> Error {
        let rows = self.working.rows();
        let lost = error.chain().find_map(|cause| {
            let inner = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref()?.downcast_ref::<Lost>());
            inner.or_else(|| cause.downcast_ref()).map(Lost::to_string)
        });
        let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        let (cause, kept) = match (lost, cause) {
            (Some(lost), _) => (lost, "--resume continues from the last row that can be read".to_string()),
            (None, Some(cause)) => {
                (cause.to_string(), format!("all {rows} rows are kept, and --resume finishes it {}", once(cause)))
            }
            (None, None) => return error,
        };
        let what_now = if self.options.keep { kept } else { "nothing is kept".to_string() };
        let line = format!("cannot write {}: {cause}; {what_now}", self.name);
        error.context(line)
    }

    /// Completes the outputs and moves them into place, then calls `then`, and then drops the rows.
    ///
    /// # Errors
    /// If they cannot be written or moved; [`Interrupted`]; those of `then`.
    pub(crate) fn finish<T>(mut self, then: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.broken {
            bail!("internal error: {} was not written to its end", self.name);
        }
        let Some(dim) = self.dim else { return Err(bad_input!("{}: there are no rows to write", self.name)) };
        if !self.working.is_complete() {
            self.sync()?;
            // Without rows an empty file shows readers the embedding dimension.
            let is_empty = self.working.files().is_empty() && self.options.shard.is_none();
            if self.rows_in_file > 0 || is_empty {
                self.finish_file(dim)?;
            }
            let made = self.assemble(dim).and_then(|()| Ok(self.working.complete(dim)?));
            if made.is_err() && self.options.interrupt.load(Ordering::Relaxed) {
                return Err(Interrupted.into());
            }
            made.map_err(|error| self.unfinished(error))?;
        }
        self.publish()?;
        let result = then()?;
        self.working
            .remove()
            .with_context(|| format!("{} is written, but cannot remove the folder of its rows", self.name))?;
        Ok(result)
    }

    /// Gives up and removes everything.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn discard(mut self) -> Result<()> {
        let files = self.working.files().len() as u64;
        let numbering = self.numbering.as_ref().filter(|_| self.publishes_early);
        let removed = numbering.map_or(Ok(()), |numbering| numbering.remove(self.working.dir(), 0..files));
        let removed = removed.and_then(|()| self.working.remove());
        removed.with_context(|| format!("cannot remove the rows of {}", self.name))
    }

    fn rules(&self) -> Rules<'_> {
        Rules { overwrite: self.options.overwrite, keep: self.options.keep, dir: self.working.dir() }
    }

    /// Makes the outputs of the rows.
    pub(super) fn assemble(&self, dim: usize) -> Result<()> {
        for target in &self.targets {
            let width = self.options.width(target.output.arrays, dim);
            let store = self.store(false, self.working.rows(), width);
            let has_numbers = target.output.format.sink().holds_numbers();
            if !has_numbers {
                target.make(&store, None)?;
            }
            let record = self.record(target, &store)?;
            if has_numbers {
                target.make(&store, record.as_ref().filter(|_| self.options.shard.is_some()))?;
            }
            if let Some(record) = &record
                && self.record_file(&target.output).is_some()
            {
                create(store.dir, &record_part(target), |file| {
                    serde_json::to_writer(&mut *file, &record)?;
                    Ok(file.write_all(b"\n")?)
                })?;
            }
        }
        Ok(())
    }

    /// Where an output's record goes, if one goes beside it.
    fn record_file(&self, output: &Output) -> Option<PathBuf> {
        match self.options.shard {
            Some(shard) => (!output.format.sink().holds_record()).then(|| shard_file(output, shard)),
            None => record_file(&output.path).filter(|_| self.options.leaves_record()),
        }
    }

    fn record(&self, target: &Target, store: &Store) -> Result<Option<OutputRecord>> {
        let (Shard { index, count }, total_rows, rows) = match self.options.shard {
            Some(shard) => {
                let total_rows =
                    self.options.total_rows.ok_or_else(|| anyhow!("internal error: a shard without total rows"))?;
                (shard, total_rows, self.working.runs().clone().finish())
            }
            None if self.options.leaves_record() => (Shard::WHOLE, store.rows, RowRuns::all(store.rows)),
            None => return Ok(None),
        };
        let checksums = match (&target.layout, &self.numbering) {
            (Layout::Numbered, Some(numbering)) => {
                Checksums { files: numbering.sums(self.working.files()), ..Checksums::default() }
            }
            _ if !target.output.format.sink().holds_numbers() => {
                let sum = FileSum::of(store.dir.open_file(&target.part, Access::Read)?)?;
                Checksums { files: BTreeMap::from([(ITSELF.into(), sum)]), ..Checksums::default() }
            }
            _ => {
                let crc = |content| Ok(store.column(content)?.sum().crc);
                let arrays = target.output.arrays.names().iter().map(|array| crc(Content::Values(*array)));
                let rows = target.output.format.holds_rows().then(|| crc(Content::Rows)).transpose()?;
                Checksums { arrays: arrays.collect::<Result<_>>()?, rows, ..Checksums::default() }
            }
        };
        let (arrays, fingerprint) = (target.output.arrays, self.options.record_fingerprint());
        let (dtype, dim) = (store.dtype, store.dim);
        let provenance = self.options.provenance.as_deref().map(str::to_string);
        Ok(Some(OutputRecord {
            index,
            count,
            total_rows,
            rows,
            arrays,
            dtype,
            dim,
            fingerprint,
            checksums,
            provenance,
        }))
    }

    /// Moves the outputs into place, the main one last, and first removes what is stale there: a record must never lie
    /// beside rows that it was not made for.
    fn publish(&self) -> Result<()> {
        let rules = self.rules();
        let files = self.working.files().len() as u64;
        for target in self.targets.iter().rev() {
            let output = &target.output;
            let record = self.record_file(output);
            match (&target.layout, &self.numbering) {
                (Layout::Numbered, Some(numbering)) => numbering.clear(files, rules)?,
                _ if output.format.sink().holds_record() || self.options.shard.is_some() => {}
                _ => remove_stale(&shard_file(output, Shard::WHOLE), rules)?,
            }
            if let Some(file) = record {
                let publication = Publication { part: record_part(target), target: file };
                // An unsharded run that was to leave none may have made the output.
                if self.options.shard.is_some() || rules.dir.kind(&publication.part)?.is_some() {
                    let overwrite = rules.overwrite || is_record(&publication.target);
                    publication.publish(Rules { overwrite, ..rules })?;
                }
            }
            match (&target.layout, &self.numbering) {
                (Layout::Numbered, Some(numbering)) => {
                    (0..files).try_for_each(|place| numbering.publish(place, files, rules))?;
                }
                _ => {
                    let publication = Publication { part: target.part.clone(), target: output.path.clone() };
                    publication.publish(rules)?;
                }
            }
        }
        Ok(())
    }
}

/// The name of an output's record in the hidden folder.
fn record_part(target: &Target) -> String {
    target.part.replace("output", "record") + ".json"
}

/// When a run that failed so can be resumed.
fn once(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::FileTooLarge => "once files may be larger (ulimit -f)",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "once there is room",
        _ => "once it can be written",
    }
}

#[cfg(test)]
mod tests;
