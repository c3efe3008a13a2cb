//! Writes embeddings, batch by batch, in memory that does not grow with the rows.

use super::batch::{Batch, Flow};
use super::file::FileWriter;
use super::options::{Output, WriteOptions, is_stream};
use super::stream::StreamWriter;
use crate::dir::Dir;
use anyhow::Result;

/// Writes embeddings to all outputs of a run.
#[derive(Debug)]
pub struct EmbeddingWriter {
    pub(super) file: Option<FileWriter>,
    streams: Vec<StreamWriter>,
}

impl EmbeddingWriter {
    /// Checks and opens the outputs, and finds the rows of an earlier run if `options.resume` is set.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] for an output that cannot be written, exists already, or is being written by another
    /// run; for an earlier run that is not to be resumed, or had other settings.
    pub fn open(options: WriteOptions) -> Result<Self> {
        options.check()?;
        let (streamed, filed): (Vec<Output>, Vec<Output>) =
            options.outputs.iter().cloned().partition(|output| is_stream(&output.path));
        // A stream cannot be resumed, and so neither can what goes with it.
        let options = WriteOptions { keep: options.keep && streamed.is_empty(), ..options };
        // Streams last: once one is open, its reader waits.
        let file = if filed.is_empty() { None } else { Some(FileWriter::open(filed, &options)?) };
        let streams = streamed.into_iter().map(|output| StreamWriter::open(output, &options)).collect::<Result<_>>()?;
        Ok(Self { file, streams })
    }

    /// Rows that are written, those of the earlier run included.
    pub fn rows_done(&self) -> u64 {
        let streamed = self.streams.first().map_or(0, StreamWriter::rows_done);
        self.file.as_ref().map_or(streamed, FileWriter::rows_done)
    }

    /// Sets the rows of all shards together. Needed before [`EmbeddingWriter::finish`] of a shard without
    /// [`WriteOptions::total_rows`].
    pub fn set_total_rows(&mut self, rows: u64) {
        if let Some(file) = &mut self.file {
            file.set_total_rows(rows);
        }
    }

    /// Writes the next rows. When this returns they survive a crash of this process, and within a second one of the
    /// machine.
    ///
    /// # Errors
    /// If the disk is full or fails, with the row that `--resume` continues from; [`super::Interrupted`] at
    /// [`WriteOptions::interrupt`]. The writer is not usable afterwards.
    pub fn write(&mut self, batch: &Batch) -> Result<Flow> {
        if batch.rows.is_empty() {
            return Ok(Flow::Continue);
        }
        if let Some(file) = &mut self.file {
            file.write(batch)?;
        }
        let mut flow = Flow::Continue;
        for stream in &mut self.streams {
            if stream.write(batch)? == Flow::ReaderGone {
                flow = Flow::ReaderGone;
            }
        }
        Ok(flow)
    }

    /// Whether the reader of a stream is gone.
    pub fn has_lost_reader(&self) -> bool {
        self.streams.iter().any(StreamWriter::has_lost_reader)
    }

    /// Syncs rows to disk that have waited long enough, while no others come.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync_if_due(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), FileWriter::sync_if_due)
    }

    /// Syncs everything to disk, before the process ends early.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), FileWriter::sync)
    }

    /// Completes the outputs and moves them into place, the first of [`WriteOptions::outputs`] last.
    ///
    /// # Errors
    /// If the disk is full or fails, or a file appeared meanwhile; [`super::Interrupted`] at
    /// [`WriteOptions::interrupt`]. The rows are kept for `--resume`.
    pub fn finish(self) -> Result<()> {
        self.finish_and(|| Ok(()))
    }

    /// [`EmbeddingWriter::finish`], which calls `then` once all is in place and before the rows are dropped: if `then`
    /// fails, a resumed run can repeat it.
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

    /// The hidden folder in which rows are gathered, if there is one, for other files that go beside the output.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub(crate) fn dir(&self) -> Result<Option<Dir>> {
        Ok(self.file.as_ref().map(|file| file.dir().try_clone()).transpose()?)
    }

    /// Gives up and keeps nothing.
    ///
    /// # Errors
    /// If the rows cannot be removed.
    pub fn discard(self) -> Result<()> {
        self.file.map_or(Ok(()), FileWriter::discard)
    }

    /// A writer of a single stream.
    #[cfg(test)]
    pub(super) fn of_stream(stream: StreamWriter) -> Self {
        Self { file: None, streams: vec![stream] }
    }
}
