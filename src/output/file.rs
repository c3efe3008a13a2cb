//! Writes to files and folders, so that nothing is lost whenever the run ends.

use super::dir::Dir;
use super::fingerprint::Fingerprint;
use super::folder::create;
use super::paths::{
    MadeFolder, check_free, check_paths, has_stopped_run, holds_record, is_record, places, record_file, resolve,
    shard_file, shown, working_folder,
};
use super::publish::{Publication, Rules, remove_stale};
use super::shard::{Checksums, RowRuns, Shard, ShardRecord};
use super::store::{self, Content, Lost, Store};
use super::values::Encoding;
use super::working::{Expected, Failure, Working};
use super::{Arrays, Batch, Interrupted, Output, OutputFormat, WriteOptions};
use super::{folder, jsonl, npy, npz, parquet, safetensors};
use crate::bad_input;
use anyhow::{Context, Error, Result, anyhow, bail};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes rows into the hidden folder, and at the end the outputs that are files.
#[derive(Debug)]
pub(crate) struct FileWriter {
    /// The main output, as messages call it.
    name: String,
    working: Working,
    outputs: Vec<Output>,
    arrays: Arrays,
    encoding: Encoding,
    rows_per_file: u64,
    overwrite: bool,
    keep: bool,
    /// Whether a record of the output goes beside it, by which a run that is sent again finds it done.
    leaves_record: bool,
    shard: Option<Shard>,
    total_rows: Option<u64>,
    dim: Option<usize>,
    /// What the record says of the settings.
    fingerprint: Fingerprint,
    /// Whether a write failed: what is in the data files beyond the journal is of no use.
    broken: bool,
    interrupt: Arc<AtomicBool>,
    /// Dropped after the working folder, which may be in it.
    _made: MadeFolder,
}

impl FileWriter {
    /// Checks the outputs and finds what an earlier run left.
    pub(crate) fn open(outputs: Vec<Output>, options: &WriteOptions) -> Result<Self> {
        let outputs = outputs.into_iter().map(resolve).collect::<Result<Vec<_>>>()?;
        check_paths(&outputs, options)?;
        let Some((main, others)) = outputs.split_first() else { bail!("no output") };
        if others.iter().any(|output| output.format == OutputFormat::Folder) {
            bail!("a folder is a main output");
        }
        let arrays = others.iter().fold(main.arrays, |arrays, output| arrays.union(output.arrays));
        let needs_rows = outputs.iter().any(|output| output.format.holds_rows());
        let name = shown(&main.path);
        let folder = working_folder(main);
        let stopped = has_stopped_run(main);
        if !(options.resume && stopped) {
            check_free(&outputs, options)?;
        }
        let made = MadeFolder::make(main)?;
        let expected = Expected {
            name: &name,
            contents: &store::contents(arrays, needs_rows),
            number_bytes: options.out_dtype.size(),
            dim: options.dim,
            fingerprint: &options.whole_fingerprint(),
            is_shard: options.shard.is_some(),
            resume: options.resume,
            overwrite: options.overwrite,
            restart: options.restart,
            keep: options.keep,
        };
        let working = Working::open(&folder, &expected)?;
        if stopped && !working.is_complete() {
            check_free(&outputs, options)?;
        }
        Ok(Self {
            name,
            arrays,
            encoding: Encoding { dtype: options.out_dtype, normalize: options.normalize },
            rows_per_file: options.rows_per_file,
            overwrite: options.overwrite,
            keep: options.keep,
            leaves_record: options.leaves_record(),
            shard: options.shard,
            total_rows: options.total_rows,
            dim: working.dim().or(options.dim),
            fingerprint: options.record_fingerprint(),
            broken: false,
            interrupt: Arc::clone(&options.interrupt),
            _made: made,
            working,
            outputs,
        })
    }

    pub(crate) fn rows_done(&self) -> u64 {
        self.working.rows()
    }

    pub(crate) fn set_total_rows(&mut self, rows: u64) {
        self.total_rows = Some(rows);
    }

    /// Writes the next rows, which there are.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<()> {
        if self.broken || self.working.is_complete() {
            bail!("rows after the end of {}", self.name);
        }
        let dim = batch.dim(self.arrays)?;
        if let Some(before) = self.dim.filter(|before| *before != dim) {
            bail!("rows of {dim} numbers after rows of {before}");
        }
        let encode = |content: Content| store::encode(batch, content, self.encoding);
        let parts = self.working.data.iter().map(|file| encode(file.content)).collect::<Result<Vec<_>>>()?;
        let runs = self.shard.map(|_| self.runs(batch)).transpose()?;
        self.dim = Some(dim);
        self.working.append(&parts, batch.rows.len() as u64, dim, runs).map_err(|failure| self.kept(failure))
    }

    /// The numbers of a batch's rows, which come after those before.
    fn runs(&self, batch: &Batch) -> Result<RowRuns> {
        let mut runs = RowRuns::default();
        batch.rows.iter().try_for_each(|row| runs.push(row.row))?;
        if let (Some(last), Some(row)) = (self.working.runs().last(), batch.rows.first())
            && row.row <= last
        {
            bail!("row {} comes after row {last}", row.row);
        }
        Ok(runs.finish())
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
        // What cannot be synced does not count either.
        let _ = self.working.sync();
        let rows = self.working.rows();
        let what_now = match self.keep {
            true if rows > 0 => format!("{rows} rows are kept, and --resume goes on from row {rows} {}", once(&error)),
            _ => "nothing is kept".to_string(),
        };
        let line = format!("cannot write {:?}: {error}; {what_now}", path.display().to_string());
        Error::new(error).context(line)
    }

    /// A failure while the output is made of the rows, all of which were on the disk by then.
    fn unfinished(&self, error: Error) -> Error {
        let rows = self.working.rows();
        let lost = error.chain().find_map(|cause| {
            let inner = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref()?.downcast_ref::<Lost>());
            inner.or_else(|| cause.downcast_ref()).map(Lost::to_string)
        });
        let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        let (cause, kept) = match (lost, cause) {
            (Some(lost), _) => (lost, "--resume goes on from the last row that can be read".to_string()),
            (None, Some(cause)) => {
                (cause.to_string(), format!("all {rows} rows are kept, and --resume finishes it {}", once(cause)))
            }
            (None, None) => return error,
        };
        let what_now = if self.keep { kept } else { "nothing is kept".to_string() };
        let line = format!("cannot write {}: {cause}; {what_now}", self.name);
        error.context(line)
    }

    /// Completes the outputs and moves them into their places, then calls `then`, and then drops the rows.
    pub(crate) fn finish<T>(mut self, then: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.broken {
            bail!("{} was not written to its end", self.name);
        }
        let Some(dim) = self.dim else { return Err(bad_input!("{}: there are no rows to write", self.name)) };
        if !self.working.is_complete() {
            self.sync()?;
            let made = self.assemble(dim).and_then(|()| Ok(self.working.complete(dim)?));
            if made.is_err() && self.interrupt.load(Ordering::Relaxed) {
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

    /// The hidden folder, for what goes beside the outputs.
    pub(crate) fn dir(&self) -> &Dir {
        self.working.dir()
    }

    /// Moves the outputs into their places, the main one last, and what is stale there out of the way first: a record
    /// must never lie beside rows that it was not made for.
    fn publish(&self) -> Result<()> {
        let dir = self.working.dir();
        let rules = Rules { overwrite: self.overwrite, keep: self.keep, dir };
        for place in (0..self.outputs.len()).rev() {
            let publications = self.publications(place);
            let is_ours = |place: &PathBuf| publications.iter().any(|publication| publication.target == *place);
            let all = places(&self.outputs[place]);
            all.iter().filter(|place| !is_ours(place)).try_for_each(|place| remove_stale(place, rules))?;
            for publication in &publications {
                let overwrite = rules.overwrite || is_record(&publication.target);
                publication.publish(Rules { overwrite, ..rules })?;
            }
        }
        Ok(())
    }

    pub(crate) fn discard(mut self) -> Result<()> {
        self.working.remove().with_context(|| format!("cannot remove the folder of the rows of {}", self.name))
    }

    /// Makes the outputs of the rows.
    fn assemble(&self, dim: usize) -> Result<()> {
        let (rows, dtype, interrupt) = (self.working.rows(), self.encoding.dtype, Arc::clone(&self.interrupt));
        let rows_bytes = self.working.sum(Content::Rows).map_or(0, |(bytes, _)| bytes);
        let store = Store { dir: self.working.dir(), rows, rows_bytes, dim, dtype, interrupt };
        for (place, output) in self.outputs.iter().enumerate() {
            let record = self.record(output, &store)?;
            let in_file = record.as_ref().filter(|_| self.shard.is_some());
            write_output(&store, output, in_file, self.rows_per_file, &self.part(place))?;
            if let Some(record) = &record
                && self.record_file(output).is_some()
            {
                create(store.dir, &record_part(place), |file| {
                    serde_json::to_writer(&mut *file, &record)?;
                    Ok(file.write_all(b"\n")?)
                })?;
            }
        }
        Ok(())
    }

    /// Where an output's record goes, if one goes beside it.
    fn record_file(&self, output: &Output) -> Option<PathBuf> {
        match self.shard {
            Some(_) => (!holds_record(output.format)).then(|| shard_file(&output.path, output.format)),
            None => record_file(&output.path).filter(|_| self.leaves_record),
        }
    }

    fn record(&self, output: &Output, store: &Store) -> Result<Option<ShardRecord>> {
        let Shard { index, count } = match self.shard {
            Some(shard) => shard,
            None if self.leaves_record => Shard::WHOLE,
            None => return Ok(None),
        };
        let total_rows = match (self.shard, self.total_rows) {
            (None, _) => store.rows,
            (_, rows) => rows.ok_or_else(|| anyhow!("a shard without the number of all rows"))?,
        };
        let rows = match self.shard {
            Some(_) => self.working.runs().clone().finish(),
            None => RowRuns::all(store.rows),
        };
        let sum = |content| {
            let sum = self.working.sum(content).map(|(_, crc)| crc);
            sum.ok_or_else(|| anyhow!("an output of what was not written"))
        };
        let arrays = output.arrays.names().iter().map(|array| sum(Content::Values(*array)));
        let known = output.format.holds_rows().then(|| sum(Content::Rows)).transpose()?;
        Ok(Some(ShardRecord {
            checksums: Checksums { arrays: arrays.collect::<Result<_>>()?, rows: known },
            index,
            count,
            total_rows,
            rows,
            arrays: output.arrays,
            dtype: store.dtype,
            dim: store.dim,
            fingerprint: self.fingerprint.clone(),
        }))
    }

    /// The name under which an output is made in the hidden folder.
    fn part(&self, place: usize) -> String {
        match self.outputs.get(place) {
            // The data file becomes the output.
            Some(output) if place == 0 && output.format == OutputFormat::Npy => output.arrays.names()[0].name().into(),
            _ => format!("output-{place}"),
        }
    }

    /// What has to be moved for an output, in this order.
    fn publications(&self, place: usize) -> Vec<Publication> {
        let output = &self.outputs[place];
        let part = PathBuf::from(self.part(place));
        let mut publications = Vec::new();
        if let Some(target) = self.record_file(output) {
            let record = Publication { part: record_part(place).into(), target };
            // A run that was to leave none may have made the output.
            if self.shard.is_some() || record.is_there(self.working.dir()) {
                publications.push(record);
            }
        }
        if output.format == OutputFormat::Folder {
            let parts = folder::parts(output.arrays).into_iter();
            publications
                .extend(parts.map(|name| Publication { part: part.join(name), target: output.path.join(name) }));
        } else {
            publications.push(Publication { part, target: output.path.clone() });
        }
        publications
    }
}

/// The name under which an output's record is made in the hidden folder.
fn record_part(place: usize) -> String {
    format!("record-{place}.json")
}

/// When a run that failed so may be gone on with.
fn once(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::FileTooLarge => "once files may be larger (ulimit -f)",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "once there is room",
        _ => "once it can be written",
    }
}

/// Writes one output to where it is made.
pub(crate) fn write_output(
    store: &Store,
    output: &Output,
    record: Option<&ShardRecord>,
    rows_per_file: u64,
    part: &str,
) -> Result<()> {
    let arrays = output.arrays;
    let array = arrays.names()[0];
    match output.format {
        OutputFormat::Npy if part == array.name() => npy::write_in_place(store, array),
        OutputFormat::Npy => create(store.dir, part, |file| npy::write(store, array, 0, store.rows, file)),
        OutputFormat::Npz => create(store.dir, part, |file| npz::write(store, arrays, file)),
        OutputFormat::Safetensors => create(store.dir, part, |file| safetensors::write(store, arrays, record, file)),
        OutputFormat::JsonLines => create(store.dir, part, |file| jsonl::write(store, arrays, file)),
        OutputFormat::Parquet => create(store.dir, part, |file| parquet::write(store, arrays, record, file)),
        OutputFormat::Folder => {
            store.dir.remove(part)?;
            folder::write(store, arrays, rows_per_file, &store.dir.make_dir(part)?)
        }
    }
}

#[cfg(test)]
mod tests;
