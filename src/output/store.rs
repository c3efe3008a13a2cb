//! Complete columns, read back to make an output of them.

use super::arrays::ArrayName;
use super::batch::{Interrupted, OutputRow};
use super::column::{Column, Content, row_bytes};
use super::dtype::OutputDtype;
use crate::dir::{Access, Dir};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Complete columns.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) columns: Vec<&'a Column>,
    pub(crate) rows: u64,
    /// The embedding dimension.
    pub(crate) dim: usize,
    pub(crate) dtype: OutputDtype,
    /// Ends the reading once set.
    pub(crate) interrupt: Arc<AtomicBool>,
}

/// The bytes of a column.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    path: PathBuf,
    /// Bytes that are still to come.
    left: u64,
    interrupt: Arc<AtomicBool>,
}

/// Rows that were written and cannot be read back: they are not kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path:?}: {cause}")]
pub(crate) struct Lost {
    path: PathBuf,
    cause: io::Error,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(io::Error::other(Interrupted));
        }
        let max = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read(&mut buffer[..max]) {
            Ok(0) if max > 0 => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            read => read,
        };
        let read = read.map_err(|cause| io::Error::other(Lost { path: self.path.clone(), cause }))?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Store<'_> {
    /// Bytes of an array's row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Bytes of an array.
    pub(crate) fn array_bytes(&self) -> u64 {
        self.rows * row_bytes(self.dim, self.dtype)
    }

    /// The column of `content`.
    ///
    /// # Errors
    /// If there is none: an internal error.
    pub(crate) fn column(&self, content: Content) -> Result<&Column> {
        let column = self.columns.iter().find(|column| column.spec.content.is(content));
        column.copied().with_context(|| format!("internal error: {content:?} was not written"))
    }

    fn input(&self, content: Content) -> Result<Input> {
        let stored = |column: &&&Column| column.spec.content.is(content) && column.spec.location.is_some();
        let column = self.columns.iter().find(stored);
        let Some((column, location)) = column.and_then(|column| Some((column, column.spec.location.as_ref()?))) else {
            bail!("internal error: {content:?} was not stored");
        };
        let open = || -> io::Result<File> {
            let mut file = self.dir.open_file(&location.file, Access::Read)?;
            file.seek(SeekFrom::Start(location.start))?;
            Ok(file)
        };
        let path = column.path.clone();
        match open() {
            Ok(file) => Ok(Input { file, path, left: column.sum().bytes, interrupt: Arc::clone(&self.interrupt) }),
            Err(cause) => Err(Lost { path, cause }.into()),
        }
    }

    /// The bytes of an array.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn values(&self, array: ArrayName) -> Result<impl Read + use<>> {
        Ok(BufReader::with_capacity(1 << 20, self.input(Content::Values(array))?))
    }

    /// Copies an array to `output`.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn copy_values(&self, array: ArrayName, output: &mut dyn Write) -> Result<()> {
        if io::copy(&mut self.values(array)?, output)? != self.array_bytes() {
            bail!("internal error: {} ends early", array.name());
        }
        Ok(())
    }

    /// What is known of each row.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn output_rows(&self) -> Result<OutputRows> {
        Ok(OutputRows { input: BufReader::new(self.input(Content::Rows)?), left: self.rows, line: Vec::new() })
    }
}

/// Reads what is known of each row.
#[derive(Debug)]
pub(crate) struct OutputRows {
    input: BufReader<Input>,
    left: u64,
    line: Vec<u8>,
}

impl Iterator for OutputRows {
    type Item = Result<OutputRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.line.clear();
        let read = self.input.read_until(b'\n', &mut self.line);
        Some(read.map_err(Into::into).and_then(|_| Ok(serde_json::from_slice(&self.line)?)))
    }
}
