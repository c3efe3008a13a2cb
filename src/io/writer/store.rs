//! The data files that rows are gathered in until the output is made of them: raw numbers, and what is known of rows.

use super::values::Encoding;
use super::{ArrayName, Arrays, Batch, Interrupted, OutputDtype, OutputRow};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Numbers begin where they do in a `.npy` file, so that such a file needs its header only.
pub(super) const VALUES_START: u64 = super::npy::HEADER_LEN;

/// What a data file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Values(ArrayName),
    /// An [`OutputRow`] a line, as JSON.
    Rows,
}

impl Content {
    fn file_name(self) -> &'static str {
        match self {
            Self::Values(array) => array.name(),
            Self::Rows => "rows",
        }
    }

    /// Where its data begins in the file.
    pub(super) fn start(self) -> u64 {
        match self {
            Self::Values(_) => VALUES_START,
            Self::Rows => 0,
        }
    }
}

/// A data file that is open for appending.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) content: Content,
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Bytes of data in it.
    pub(super) bytes: u64,
}

impl DataFile {
    /// Opens the file of `content` in `folder`, or makes an empty one.
    pub(super) fn open(folder: &Path, content: Content) -> io::Result<Self> {
        let path = folder.join(content.file_name());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        Ok(Self { content, file, path, bytes: 0 })
    }

    /// Cuts the file to `bytes` bytes of data, after which it goes on.
    pub(super) fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let end = self.content.start() + bytes;
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end))?;
        self.bytes = bytes;
        Ok(())
    }
}

/// The data files that a run needs for `arrays` and, with `rows`, for what is known of each row.
pub(super) fn contents(arrays: Arrays, rows: bool) -> Vec<Content> {
    let values = arrays.names().iter().map(|array| Content::Values(*array));
    values.chain(rows.then_some(Content::Rows)).collect()
}

/// The bytes that a batch adds to a data file.
pub(super) fn encode(batch: &Batch, content: Content, encoding: Encoding) -> Result<Vec<u8>> {
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
pub(super) struct Store<'a> {
    pub(super) folder: &'a Path,
    pub(super) rows: u64,
    pub(super) dim: usize,
    pub(super) dtype: OutputDtype,
    /// Ends the reading when it is set.
    pub(super) interrupt: Arc<AtomicBool>,
}

/// A data file that can be read until somebody asks to stop.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    interrupt: Arc<AtomicBool>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(io::Error::other(Interrupted));
        }
        self.file.read(buffer)
    }
}

impl Store<'_> {
    /// Bytes of a row of numbers.
    pub(super) fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Bytes of an array.
    pub(super) fn array_bytes(&self) -> u64 {
        self.rows * self.row_bytes() as u64
    }

    /// Where the numbers of an array are.
    pub(super) fn path(&self, array: ArrayName) -> PathBuf {
        self.folder.join(array.name())
    }

    /// The bytes of an array from row `first` on.
    pub(super) fn values(&self, array: ArrayName, first: u64) -> Result<impl Read + use<>> {
        let path = self.path(array);
        let open = || -> io::Result<Input> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(VALUES_START + first * self.row_bytes() as u64))?;
            Ok(Input { file, interrupt: Arc::clone(&self.interrupt) })
        };
        let rest = self.array_bytes() - first * self.row_bytes() as u64;
        Ok(BufReader::with_capacity(1 << 20, open().with_context(|| format!("cannot read {path:?}"))?).take(rest))
    }

    /// Copies `rows` rows of an array from row `first` on to `output`.
    pub(super) fn copy_values(&self, array: ArrayName, first: u64, rows: u64, output: &mut dyn Write) -> Result<()> {
        let bytes = rows * self.row_bytes() as u64;
        let copied = io::copy(&mut self.values(array, first)?.take(bytes), output)?;
        if copied != bytes {
            bail!("{:?} ends early", self.path(array));
        }
        Ok(())
    }

    /// CRC-32 of an array's numbers, or of what is known of the rows.
    pub(super) fn checksum(&self, content: Content) -> Result<u32> {
        let mut input: Box<dyn Read> = match content {
            Content::Values(array) => Box::new(self.values(array, 0)?),
            Content::Rows => Box::new(self.rows_input()?),
        };
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(hasher.finalize()),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    fn rows_input(&self) -> Result<Input> {
        let path = self.folder.join(Content::Rows.file_name());
        let file = File::open(&path).with_context(|| format!("cannot read {path:?}"))?;
        Ok(Input { file, interrupt: Arc::clone(&self.interrupt) })
    }

    /// What is known of each row.
    pub(super) fn output_rows(&self) -> Result<OutputRows> {
        Ok(OutputRows { input: BufReader::new(self.rows_input()?), left: self.rows, line: Vec::new() })
    }
}

/// Reads what is known of each row.
#[derive(Debug)]
pub(super) struct OutputRows {
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
