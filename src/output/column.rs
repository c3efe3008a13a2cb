//! Columns: what batches are appended to while an output is written.

use super::arrays::{ArrayName, Arrays};
use super::batch::Batch;
use super::dtype::{Encoding, OutputDtype};
use super::record::FileSum;
use crate::dir::{Access, Dir};
use anyhow::{Result, bail};
use crc32fast::Hasher;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// What a column holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    /// The numbers of an array.
    Values(ArrayName),
    /// An [`super::OutputRow`] a line, as JSON.
    Rows,
    /// A format's own bytes, which [`Encode`] makes of a batch.
    Own(Arrays, Encode),
}

/// Makes the bytes of a batch's rows.
pub(crate) type Encode = fn(&Batch, Arrays, Encoding) -> Result<Vec<u8>>;

impl Content {
    /// Whether both are the same array, or what is known of the rows.
    pub(crate) fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Values(one), Self::Values(other)) => one == other,
            (Self::Rows, Self::Rows) => true,
            _ => false,
        }
    }

    /// The bytes that a batch adds.
    ///
    /// # Errors
    /// If the batch lacks an array, or a number does not fit its type or format.
    pub(crate) fn encode(self, batch: &Batch, encoding: Encoding) -> Result<Vec<u8>> {
        match self {
            Self::Values(array) => {
                let Some(values) = batch.values(array) else { bail!("a batch without {}", array.name()) };
                encoding.of(array).encode(values, batch.rows)
            }
            Self::Rows => {
                let mut lines = Vec::new();
                for row in batch.rows {
                    serde_json::to_writer(&mut lines, row)?;
                    lines.push(b'\n');
                }
                Ok(lines)
            }
            Self::Own(arrays, encode) => encode(batch, arrays, encoding),
        }
    }
}

/// Where a column is stored: in a file of the hidden folder, from `start` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) file: String,
    pub(crate) start: u64,
    /// Whether it is the last in its file, which ends where it does.
    pub(crate) is_last: bool,
}

/// A column of a run.
#[derive(Debug, Clone)]
pub(crate) struct ColumnSpec {
    pub(crate) content: Content,
    /// `None` if only its checksum is wanted.
    pub(crate) location: Option<Location>,
    /// Whether it starts afresh with each file of a numbered folder.
    pub(crate) is_numbered: bool,
}

/// A column that is open for appending.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) spec: ColumnSpec,
    pub(crate) file: Option<File>,
    pub(crate) path: PathBuf,
    bytes: u64,
    hasher: Hasher,
}

impl Column {
    /// Opens a column whose file exists.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn open(dir: &Dir, spec: ColumnSpec) -> io::Result<Self> {
        let file = spec.location.as_ref().map(|location| dir.open_file(&location.file, Access::Write)).transpose()?;
        let path = spec.location.as_ref().map_or_else(PathBuf::new, |location| dir.path().join(&location.file));
        Ok(Self { spec, file, path, bytes: 0, hasher: Hasher::new() })
    }

    /// Creates an empty column, and its file unless another column before it has done so.
    ///
    /// # Errors
    /// If it cannot be created.
    pub(crate) fn create(dir: &Dir, spec: ColumnSpec) -> io::Result<Self> {
        if let Some(location) = &spec.location
            && dir.kind(&location.file)?.is_none()
        {
            dir.create(&location.file, Access::Write)?;
        }
        let mut column = Self::open(dir, spec)?;
        column.truncate(FileSum { bytes: 0, crc: 0 })?;
        Ok(column)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Drops what follows the bytes of `sum`.
    ///
    /// # Errors
    /// If the file cannot be truncated.
    pub(crate) fn truncate(&mut self, sum: FileSum) -> io::Result<()> {
        if let (Some(file), Some(location)) = (&mut self.file, &self.spec.location) {
            let end = location.start + sum.bytes;
            if location.is_last {
                file.set_len(end)?;
            }
            file.seek(SeekFrom::Start(end))?;
        }
        (self.bytes, self.hasher) = (sum.bytes, Hasher::new_with_initial_len(sum.crc, sum.bytes));
        Ok(())
    }

    /// Its length and checksum.
    pub(crate) fn sum(&self) -> FileSum {
        FileSum { bytes: self.bytes, crc: self.hasher.clone().finalize() }
    }

    /// The length and checksum of `head` followed by the column.
    pub(crate) fn sum_after(&self, head: &[u8]) -> FileSum {
        let mut hasher = Hasher::new();
        hasher.update(head);
        hasher.combine(&self.hasher);
        FileSum { bytes: head.len() as u64 + self.bytes, crc: hasher.finalize() }
    }

    /// Reads on from the bytes of `from`, and tells whether the bytes of `to` are as they were written.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn has_grown(&self, from: FileSum, to: FileSum) -> io::Result<bool> {
        let (Some(mut file), Some(location)) = (self.file.as_ref(), &self.spec.location) else { return Ok(true) };
        file.seek(SeekFrom::Start(location.start + from.bytes))?;
        let mut hasher = Hasher::new_with_initial_len(from.crc, from.bytes);
        let mut input = file.take(to.bytes - from.bytes);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(input.limit() == 0 && hasher.finalize() == to.crc),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
}

/// Bytes of an array's row.
pub(crate) fn row_bytes(dim: usize, dtype: OutputDtype) -> u64 {
    (dim as u64).saturating_mul(dtype.size() as u64)
}
