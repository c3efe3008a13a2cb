//! Writes to files and folders, so that nothing is lost whenever the run ends.

use super::folder::create;
use super::paths::{
    MadeFolder, SHARD_SUFFIX, check_free, check_paths, holds_record, part_beside, places, resolve, shard_file, shown,
    with_suffix, working_folder,
};
use super::publish::{Publication, Rules, remove_stale};
use super::store::{self, Content, Store};
use super::values::Encoding;
use super::working::{Expected, Working};
use super::{Arrays, Batch, Interrupted, Output, OutputFormat, WriteOptions};
use super::{folder, jsonl, npy, npz, parquet, safetensors};
use crate::bad_input;
use crate::io::fingerprint::Fingerprint;
use crate::io::shard::{Checksums, RowRuns, Shard, ShardRecord};
use anyhow::{Context, Error, Result, anyhow, bail};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes rows into the hidden folder, and at the end the outputs that are files.
#[derive(Debug)]
pub(super) struct FileWriter {
    /// The main output, as messages call it.
    name: String,
    working: Working,
    outputs: Vec<Output>,
    arrays: Arrays,
    encoding: Encoding,
    rows_per_file: u64,
    overwrite: bool,
    keep: bool,
    shard: Option<Shard>,
    total_rows: Option<u64>,
    dim: Option<usize>,
    /// What decides the rows, without what decides how these outputs hold them.
    fingerprint: Fingerprint,
    /// Whether a write failed: what is in the data files beyond the journal is of no use.
    broken: bool,
    interrupt: Arc<AtomicBool>,
    /// Dropped after the working folder, which may be in it.
    _made: MadeFolder,
}

impl FileWriter {
    /// Checks the outputs and finds what an earlier run left.
    pub(super) fn open(outputs: Vec<Output>, options: &WriteOptions) -> Result<Self> {
        let outputs: Vec<Output> = outputs.into_iter().map(resolve).collect();
        check_paths(&outputs, options.shard.is_some())?;
        let Some((main, others)) = outputs.split_first() else { bail!("no output") };
        if others.iter().any(|output| output.format == OutputFormat::Folder) {
            bail!("a folder is a main output");
        }
        let arrays = others.iter().fold(main.arrays, |arrays, output| arrays.union(output.arrays));
        let needs_rows = outputs.iter().any(|output| output.format.holds_rows());
        let name = shown(&main.path);
        let folder = working_folder(main);
        let stopped = folder.exists();
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
        let working = Working::open(folder, &expected)?;
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
            shard: options.shard,
            total_rows: options.total_rows,
            dim: working.dim().or(options.dim),
            fingerprint: options.row_fingerprint(),
            broken: false,
            interrupt: Arc::clone(&options.interrupt),
            _made: made,
            working,
            outputs,
        })
    }

    pub(super) fn rows_done(&self) -> u64 {
        self.working.rows()
    }

    pub(super) fn set_total_rows(&mut self, rows: u64) {
        self.total_rows = Some(rows);
    }

    /// Writes the next rows, which there are.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<()> {
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
        let appended = self.working.append(&parts, batch.rows.len() as u64, dim, runs);
        self.broken = appended.is_err();
        self.dim = Some(dim);
        appended.map_err(|(path, error)| self.kept(&path, error))
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

    pub(super) fn sync(&mut self) -> Result<()> {
        self.working.sync().map_err(|(path, error)| self.kept(&path, error))
    }

    pub(super) fn sync_if_due(&mut self) -> Result<()> {
        self.working.sync_if_due().map_err(|(path, error)| self.kept(&path, error))
    }

    /// A failure while rows are written, with what the user can do.
    fn kept(&self, path: &Path, error: io::Error) -> Error {
        let rows = self.working.rows();
        let what_now = if self.keep {
            format!("{rows} rows are kept, and --resume goes on from row {rows} once there is room")
        } else {
            "nothing is kept".to_string()
        };
        let line = format!("cannot write {:?}: {error}; {what_now}", path.display().to_string());
        Error::new(error).context(line)
    }

    pub(super) fn finish(mut self) -> Result<()> {
        if self.broken {
            bail!("{} was not written to its end", self.name);
        }
        let Some(dim) = self.dim else { return Err(bad_input!("{}: there are no rows to write", self.name)) };
        if !self.working.is_complete() {
            self.sync()?;
            let rows = self.working.rows();
            let made = self.assemble(dim).and_then(|()| Ok(self.working.complete(dim)?));
            if made.is_err() && self.interrupt.load(Ordering::Relaxed) {
                return Err(Interrupted.into());
            }
            made.map_err(|error| match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()) {
                Some(cause) => {
                    let what_now = if self.keep {
                        format!("all {rows} rows are kept, and --resume finishes it once there is room")
                    } else {
                        "nothing is kept".to_string()
                    };
                    let line = format!("cannot write {}: {cause}; {what_now}", self.name);
                    error.context(line)
                }
                None => error,
            })?;
        }
        self.publish()?;
        self.working
            .remove()
            .with_context(|| format!("{} is written, but cannot remove the folder of its rows", self.name))
    }

    /// Moves the outputs into their places, the main one last, and what is stale there out of the way first: a record
    /// must never lie beside rows that it was not made for.
    fn publish(&self) -> Result<()> {
        let trash = self.working.folder().join("replaced");
        let rules = Rules { overwrite: self.overwrite, keep: self.keep, trash: &trash };
        for place in (0..self.outputs.len()).rev() {
            let publications = self.publications(place);
            let is_ours = |place: &Path| publications.iter().any(|publication| publication.target == place);
            let all = places(&self.outputs[place]);
            all.iter().filter(|place| !is_ours(place)).try_for_each(|place| remove_stale(place, rules))?;
            publications.iter().try_for_each(|publication| publication.publish(rules))?;
        }
        Ok(())
    }

    /// Removes what outputs are made of that lies beside them and not in the hidden folder.
    fn remove_parts(&self) {
        for publication in (1..self.outputs.len()).flat_map(|place| self.publications(place)) {
            let _ = fs::remove_file(publication.part);
        }
    }

    pub(super) fn discard(mut self) -> Result<()> {
        self.remove_parts();
        self.working.remove().with_context(|| format!("cannot remove the folder of the rows of {}", self.name))
    }

    /// Makes the outputs of the rows.
    fn assemble(&self, dim: usize) -> Result<()> {
        let (rows, dtype, interrupt) = (self.working.rows(), self.encoding.dtype, Arc::clone(&self.interrupt));
        let store = Store { folder: self.working.folder(), rows, dim, dtype, interrupt };
        for (place, output) in self.outputs.iter().enumerate() {
            let record = self.record(output, &store)?;
            let part = self.part(place);
            write_output(&store, output, record.as_ref(), self.rows_per_file, &part)?;
            if let Some(record) = record.filter(|_| !holds_record(output.format)) {
                create(&with_suffix(&part, SHARD_SUFFIX), |file| {
                    serde_json::to_writer(&mut *file, &record)?;
                    Ok(file.write_all(b"\n")?)
                })?;
            }
        }
        Ok(())
    }

    fn record(&self, output: &Output, store: &Store) -> Result<Option<ShardRecord>> {
        let Some(Shard { index, count }) = self.shard else { return Ok(None) };
        let total_rows = self.total_rows.ok_or_else(|| anyhow!("a shard without the number of all rows"))?;
        let arrays = output.arrays.names().iter().map(|array| store.checksum(Content::Values(*array)));
        let rows = output.format.holds_rows().then(|| store.checksum(Content::Rows)).transpose()?;
        Ok(Some(ShardRecord {
            checksums: Checksums { arrays: arrays.collect::<Result<_>>()?, rows },
            index,
            count,
            total_rows,
            rows: self.working.runs().clone().finish(),
            arrays: output.arrays,
            dtype: store.dtype,
            dim: store.dim,
            fingerprint: self.fingerprint.clone(),
        }))
    }

    /// Where an output is made.
    fn part(&self, place: usize) -> PathBuf {
        match self.outputs.get(place) {
            // The data file becomes the output.
            Some(output) if place == 0 && output.format == OutputFormat::Npy => {
                self.working.folder().join(output.arrays.names()[0].name())
            }
            Some(output) if place > 0 => part_beside(&output.path, &self.outputs[0].path),
            _ => self.working.folder().join("output"),
        }
    }

    /// What has to be moved for an output, in this order.
    fn publications(&self, place: usize) -> Vec<Publication> {
        let output = &self.outputs[place];
        let part = self.part(place);
        let mut publications = Vec::new();
        if self.shard.is_some() && !holds_record(output.format) {
            publications.push(Publication {
                part: with_suffix(&part, SHARD_SUFFIX),
                target: shard_file(&output.path, output.format),
            });
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

impl Drop for FileWriter {
    /// What no run can go on with is not left behind.
    fn drop(&mut self) {
        if !self.keep {
            self.remove_parts();
        }
    }
}

/// Writes one output to where it is made.
pub(super) fn write_output(
    store: &Store,
    output: &Output,
    record: Option<&ShardRecord>,
    rows_per_file: u64,
    part: &Path,
) -> Result<()> {
    let arrays = output.arrays;
    let array = arrays.names()[0];
    match output.format {
        OutputFormat::Npy if part == store.path(array) => npy::write_in_place(store, array, part),
        OutputFormat::Npy => create(part, |file| npy::write(store, array, 0, store.rows, file)),
        OutputFormat::Npz => create(part, |file| npz::write(store, arrays, file)),
        OutputFormat::Safetensors => create(part, |file| safetensors::write(store, arrays, record, file)),
        OutputFormat::JsonLines => create(part, |file| jsonl::write(store, arrays, file)),
        OutputFormat::Parquet => create(part, |file| parquet::write(store, arrays, record, file)),
        OutputFormat::Folder => {
            if part.exists() {
                fs::remove_dir_all(part)?;
            }
            folder::write(store, arrays, rows_per_file, part)
        }
    }
}

#[cfg(test)]
mod tests;
