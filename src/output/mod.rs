//! Embeddings out, batch by batch, in memory that does not grow with the rows.
//!
//! To a file: rows gather in a hidden folder beside it, `.NAME.prior-embed`, where a [journal](journal) says what
//! is safe; [`EmbeddingWriter::finish`] makes the output of them and moves it into place. What is there at any moment is
//! enough to go on from, and the output's bytes depend on its rows alone: not on the batches they came in, nor on how
//! often the run was stopped.
//!
//! To standard output or a pipe: rows go out as they come where the format can ([`stream`]).

pub(crate) mod atomic;
mod check;
mod claim;
pub mod destination;
pub(crate) mod dir;
mod file;
pub mod fingerprint;
mod folder;
pub mod journal;
mod jsonl;
pub mod merge;
mod npy;
mod npz;
mod options;
mod parquet;
mod paths;
mod publish;
mod safetensors;
pub mod shard;
mod sink;
mod store;
mod stream;
mod values;
mod working;

pub(crate) use claim::stopped_run;
pub(crate) use folder::{METADATA, array_folder};
pub(crate) use npy::{HEADER_LEN as NPY_HEADER_LEN, header as npy_header};
pub(crate) use paths::{has_stopped_run, read_record, record_file, resolve, shard_file, shown, whole};

pub(crate) use paths::LONGEST_NAME;

pub use check::check;
pub use options::{ArrayName, Arrays, Output, OutputDtype, OutputFormat, WriteOptions};
pub use stream::is_stream;

use anyhow::{Result, bail};
use dir::Dir;
use file::FileWriter;
use ndarray::ArrayView2;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;
use stream::StreamWriter;

/// What is known of a row beside its embedding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRow {
    /// Its number in the whole, which sharding does not change.
    pub row: u64,
    /// What the prompts call it.
    pub id: Option<String>,
    /// What it is the embedding of.
    #[serde(serialize_with = "serialize_text", deserialize_with = "deserialize_text")]
    pub prompt: Arc<str>,
    /// What its noise was drawn from.
    pub seed: u64,
}

fn serialize_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn deserialize_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

/// Rows that were computed together.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// One for each row of the arrays.
    pub rows: &'a [OutputRow],
    /// `(rows, dim)`, if the output has them.
    pub image: Option<ArrayView2<'a, f32>>,
    /// `(rows, dim)`, if the output has them.
    pub negative: Option<ArrayView2<'a, f32>>,
}

impl<'a> Batch<'a> {
    /// An array, if it is there.
    pub fn values(&self, array: ArrayName) -> Option<ArrayView2<'a, f32>> {
        match array {
            ArrayName::Image => self.image,
            ArrayName::Negative => self.negative,
        }
    }

    /// The place of an array.
    pub fn values_mut(&mut self, array: ArrayName) -> &mut Option<ArrayView2<'a, f32>> {
        match array {
            ArrayName::Image => &mut self.image,
            ArrayName::Negative => &mut self.negative,
        }
    }

    /// Numbers in a row.
    ///
    /// # Errors
    /// If an array of `arrays` is not there, has another number of rows, or the arrays are of different widths.
    fn dim(&self, arrays: Arrays) -> Result<usize> {
        let mut dim = None;
        for array in arrays.names() {
            let Some(values) = self.values(*array) else { bail!("a batch without {}", array.name()) };
            if values.nrows() != self.rows.len() || dim.is_some_and(|dim| dim != values.ncols()) || values.ncols() == 0
            {
                bail!("{} of shape {:?} for {} rows", array.name(), values.shape(), self.rows.len());
            }
            dim = Some(values.ncols());
        }
        dim.ok_or_else(|| anyhow::anyhow!("no array to write"))
    }
}

/// Whether it makes sense to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// The next batch is welcome.
    GoOn,
    /// Whoever read the output has closed it: the run is over, and well.
    ReaderGone,
}

/// Why an output is not complete: somebody asked to stop before it was.
#[derive(Debug, thiserror::Error)]
#[error("stopped before the output was complete")]
pub struct Interrupted;

/// Writes embeddings to all outputs of a run.
#[derive(Debug)]
pub struct EmbeddingWriter {
    file: Option<FileWriter>,
    streams: Vec<StreamWriter>,
}

impl EmbeddingWriter {
    /// Checks and opens the outputs, and finds the rows that an earlier run left if `options.resume` asks for them.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for an output that cannot be written, is there already, or is being written by another
    /// run; for rows of an earlier run that are not asked for, or that other settings made.
    pub fn open(options: WriteOptions) -> Result<Self> {
        options.check()?;
        let (streamed, filed): (Vec<Output>, Vec<Output>) =
            options.outputs.iter().cloned().partition(|output| stream::is_stream(&output.path));
        // A stream cannot be gone on with, and so neither can what goes with it.
        let options = WriteOptions { keep: options.keep && streamed.is_empty(), ..options };
        // Streams last: opening one may already make its reader wait for us.
        let file = if filed.is_empty() { None } else { Some(FileWriter::open(filed, &options)?) };
        let streams = streamed.into_iter().map(|output| StreamWriter::open(output, &options)).collect::<Result<_>>()?;
        Ok(Self { file, streams })
    }

    /// Rows that an earlier run left or this one wrote.
    pub fn rows_done(&self) -> u64 {
        let streamed = self.streams.first().map_or(0, StreamWriter::rows_done);
        self.file.as_ref().map_or(streamed, FileWriter::rows_done)
    }

    /// Rows of all shards together, where that is only known at the end. Needed before [`EmbeddingWriter::finish`] of a
    /// shard if [`WriteOptions::total_rows`] was not given.
    pub fn set_total_rows(&mut self, rows: u64) {
        if let Some(file) = &mut self.file {
            file.set_total_rows(rows);
        }
    }

    /// Writes the next rows. When this returns, they survive the end of this process; of the machine, within a second.
    ///
    /// # Errors
    /// If the disk is full or fails, saying from where `--resume` goes on; [`Interrupted`] if nobody took the rows until
    /// [`WriteOptions::interrupt`]. The writer is of no use afterwards.
    pub fn write(&mut self, batch: &Batch) -> Result<Flow> {
        if batch.rows.is_empty() {
            return Ok(Flow::GoOn);
        }
        if let Some(file) = &mut self.file {
            file.write(batch)?;
        }
        let mut flow = Flow::GoOn;
        for stream in &mut self.streams {
            if stream.write(batch)? == Flow::ReaderGone {
                flow = Flow::ReaderGone;
            }
        }
        Ok(flow)
    }

    /// Puts on the disk what has waited for it long enough, for times at which no rows come.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync_if_due(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), FileWriter::sync_if_due)
    }

    /// Puts everything safely on the disk, as far as it goes: before the process ends early.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), FileWriter::sync)
    }

    /// Completes the outputs and moves files into their places, the first of [`WriteOptions::outputs`] last.
    ///
    /// # Errors
    /// If the disk is full or fails, or a file appeared in the meantime; [`Interrupted`] at
    /// [`WriteOptions::interrupt`]. The rows are kept for `--resume`.
    pub fn finish(self) -> Result<()> {
        self.finish_and(|| Ok(()))
    }

    /// The same, and calls `then` when all is in its place and before the rows are dropped that it was made of: what
    /// belongs to the outputs and is not there yet, a run that goes on can still make.
    ///
    /// # Errors
    /// Those of [`EmbeddingWriter::finish`], and of `then`.
    pub fn finish_and<T>(self, then: impl FnOnce() -> Result<T>) -> Result<T> {
        let Self { file, streams } = self;
        let finish_streams = || streams.into_iter().try_for_each(StreamWriter::finish);
        match file {
            Some(file) => file.finish(|| {
                finish_streams()?;
                then()
            }),
            None => finish_streams().and_then(|()| then()),
        }
    }

    /// The hidden folder in which rows gather, if there is one, for what else is made there.
    ///
    /// # Errors
    /// If the system has no more descriptors.
    pub(crate) fn dir(&self) -> Result<Option<Dir>> {
        Ok(self.file.as_ref().map(|file| file.dir().try_clone()).transpose()?)
    }

    /// Gives up, and keeps nothing: no reader is left to write for.
    ///
    /// # Errors
    /// If what was written cannot be removed.
    pub fn discard(self) -> Result<()> {
        self.file.map_or(Ok(()), FileWriter::discard)
    }
}

#[cfg(test)]
pub(crate) mod tests;
