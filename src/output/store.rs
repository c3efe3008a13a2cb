//! The data files that rows are gathered in until the output is made of them: raw numbers, and what is known of rows.

use super::dir::{Access, Dir};
use super::values::Encoding;
use super::{ArrayName, Arrays, Batch, Interrupted, OutputDtype, OutputRow};
use anyhow::{Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Numbers begin where they do in a `.npy` file, so that such a file needs its header only.
pub(crate) const VALUES_START: u64 = super::npy::HEADER_LEN;

/// What a data file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Values(ArrayName),
    /// An [`OutputRow`] a line, as JSON.
    Rows,
}

impl Content {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Values(array) => array.name(),
            Self::Rows => "rows",
        }
    }

    /// Where its data begins in the file.
    pub(crate) fn start(self) -> u64 {
        match self {
            Self::Values(_) => VALUES_START,
            Self::Rows => 0,
        }
    }
}

/// A data file that is open for appending.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) content: Content,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Bytes of data in it.
    pub(crate) bytes: u64,
}

impl DataFile {
    /// Opens the file of `content` in `dir`.
    pub(crate) fn open(dir: &Dir, content: Content) -> io::Result<Self> {
        let file = dir.open_file(content.file_name(), Access::Write)?;
        Ok(Self { content, file, path: dir.path().join(content.file_name()), bytes: 0 })
    }

    /// Makes an empty one.
    pub(crate) fn create(dir: &Dir, content: Content) -> io::Result<Self> {
        let file = dir.create(content.file_name(), Access::Write)?;
        let mut file = Self { content, file, path: dir.path().join(content.file_name()), bytes: 0 };
        file.cut(0)?;
        Ok(file)
    }

    /// Cuts the file to `bytes` bytes of data, after which it goes on.
    pub(crate) fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let end = self.content.start() + bytes;
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end))?;
        self.bytes = bytes;
        Ok(())
    }
}

/// The data files that a run needs for `arrays` and, with `rows`, for what is known of each row.
pub(crate) fn contents(arrays: Arrays, rows: bool) -> Vec<Content> {
    let values = arrays.names().iter().map(|array| Content::Values(*array));
    values.chain(rows.then_some(Content::Rows)).collect()
}

/// The bytes that a batch adds to a data file.
pub(crate) fn encode(batch: &Batch, content: Content, encoding: Encoding) -> Result<Vec<u8>> {
    match content {
        Content::Values(array) => {
            let Some(values) = batch.values(array) else { bail!("a batch without {}", array.name()) };
            encoding.encode(values, batch.rows)
        }
        Content::Rows => {
            let mut lines = Vec::new();
            for row in batch.rows {
                serde_json::to_writer(&mut lines, row)?;
                lines.push(b'\n');
            }
            Ok(lines)
        }
    }
}

/// Complete data files, to be read.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) rows: u64,
    /// Bytes of what is known of them.
    pub(crate) rows_bytes: u64,
    pub(crate) dim: usize,
    pub(crate) dtype: OutputDtype,
    /// Ends the reading when it is set.
    pub(crate) interrupt: Arc<AtomicBool>,
}

/// A data file that can be read until somebody asks to stop.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    path: PathBuf,
    /// Bytes that are still to come.
    left: u64,
    interrupt: Arc<AtomicBool>,
}

/// Rows that were written and cannot be read again: they are not kept.
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
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read(&mut buffer[..most]) {
            Ok(0) if most > 0 => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            read => read,
        };
        let read = read.map_err(|cause| io::Error::other(Lost { path: self.path.clone(), cause }))?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Store<'_> {
    /// Bytes of a row of numbers.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Bytes of an array.
    pub(crate) fn array_bytes(&self) -> u64 {
        self.rows * self.row_bytes() as u64
    }

    fn input(&self, content: Content, start: u64, bytes: u64) -> Result<Input> {
        let name = content.file_name();
        let path = self.dir.path().join(name);
        let open = || -> io::Result<File> {
            let mut file = self.dir.open_file(name, Access::Read)?;
            file.seek(SeekFrom::Start(content.start() + start))?;
            Ok(file)
        };
        let interrupt = Arc::clone(&self.interrupt);
        match open() {
            Ok(file) => Ok(Input { file, path, left: bytes, interrupt }),
            Err(cause) => Err(Lost { path, cause }.into()),
        }
    }

    /// The bytes of an array from row `first` on.
    pub(crate) fn values(&self, array: ArrayName, first: u64) -> Result<impl Read + use<>> {
        let start = first * self.row_bytes() as u64;
        let input = self.input(Content::Values(array), start, self.array_bytes() - start)?;
        Ok(BufReader::with_capacity(1 << 20, input))
    }

    /// Copies `rows` rows of an array from row `first` on to `output`.
    pub(crate) fn copy_values(&self, array: ArrayName, first: u64, rows: u64, output: &mut dyn Write) -> Result<()> {
        let bytes = rows * self.row_bytes() as u64;
        let copied = io::copy(&mut self.values(array, first)?.take(bytes), output)?;
        if copied != bytes {
            bail!("{} ends early", array.name());
        }
        Ok(())
    }

    /// What is known of each row.
    pub(crate) fn output_rows(&self) -> Result<OutputRows> {
        let input = self.input(Content::Rows, 0, self.rows_bytes)?;
        Ok(OutputRows { input: BufReader::new(input), left: self.rows, line: Vec::new() })
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
