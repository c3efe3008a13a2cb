//! The journal of a run: which of its rows are safe on disk.
//!
//! JSON lines, each with a checksum of its own: a header with what decides the rows, a line per batch, a line per file
//! of a numbered folder, and one when the output is complete. A crash may tear the last line, which then lacks its line
//! break and does not count. A line with a line break that is not as it was written is damage.

use super::fingerprint::Fingerprint;
use super::record::FileSum;
use super::shard::RowRuns;
use crate::atomic::sync_data;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The version of the format. A run does not resume from another version's journal.
pub(crate) const VERSION: u32 = 3;

/// Bytes of a line at most; a longer one is damage.
const MAX_LINE: u64 = 64 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    /// The first line.
    Header(Header),
    /// A batch is in the columns.
    Batch(BatchLine),
    /// The next file of a numbered folder is whole. The folder's columns start afresh.
    File(NumberedFile),
    /// The whole output is written and only needs to be moved into place.
    Complete {
        rows: u64,
        /// The embedding dimension.
        dim: usize,
    },
}

/// A line as it is written.
#[derive(Serialize, Deserialize)]
struct Checked {
    #[serde(flatten)]
    line: Line,
    /// CRC-32 of the line as JSON. Version 1 had none.
    crc: Option<u32>,
}

impl Checked {
    fn new(line: Line) -> serde_json::Result<Self> {
        let crc = Some(crc32fast::hash(&serde_json::to_vec(&line)?));
        Ok(Self { line, crc })
    }

    /// The line, if it is as it was written, or another version's header.
    fn line(self) -> Option<Line> {
        let is_old = matches!(&self.line, Line::Header(header) if header.version < VERSION);
        let crc = self.crc;
        let checked = Self::new(self.line).ok()?;
        (crc == checked.crc || is_old && crc.is_none()).then_some(checked.line)
    }
}

/// What decides the rows and their bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The embedding dimension, if it was known before the first row.
    pub(crate) dim: Option<usize>,
    pub(crate) fingerprint: Fingerprint,
    /// Whether no run can resume from the rows.
    #[serde(default)]
    pub(crate) is_temporary: bool,
}

/// The state after a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchLine {
    /// Rows so far.
    pub(crate) rows: u64,
    /// The embedding dimension.
    pub(crate) dim: usize,
    /// Each column's bytes so far, in a numbered folder those of the current file.
    pub(crate) columns: Vec<FileSum>,
    /// The batch's rows by their indices in the whole, in a sharded run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) runs: Option<RowRuns>,
}

/// A whole file of a numbered folder: one `.npy` file per array, and the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NumberedFile {
    pub(crate) rows: u64,
    /// The order is the folder's.
    pub(crate) sums: Vec<FileSum>,
}

/// A journal that is open for reading and appending.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// A journal in a file that is open for reading and appending; messages call it `path`.
    pub(crate) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it from the start.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read(&self) -> io::Result<Reader<'_>> {
        Reader::new(&self.file)
    }

    /// Truncates it to `bytes` bytes.
    ///
    /// # Errors
    /// If the file cannot be truncated.
    pub(crate) fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Appends a line; returns the bytes of all lines.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn append(&mut self, line: Line) -> io::Result<u64> {
        let mut text = serde_json::to_vec(&Checked::new(line)?)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.bytes()
    }

    /// Bytes of all lines.
    ///
    /// # Errors
    /// If the system does not tell.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Syncs it to disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_data(&self.file)
    }
}

/// How the valid lines end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// At the end of the file.
    Whole,
    /// In a torn line.
    Torn,
    /// In a damaged line.
    Damaged,
}

/// Reads a journal's lines from the start.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    input: BufReader<&'a File>,
    position: u64,
    end: Option<End>,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn new(mut file: &'a File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { input: BufReader::new(file), position: 0, end: None })
    }

    /// The next valid line.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<Line>> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut text = Vec::new();
        let read = self.input.by_ref().take(MAX_LINE).read_until(b'\n', &mut text)?;
        let whole = text.strip_suffix(b"\n");
        let line = whole.and_then(|text| serde_json::from_slice::<Checked>(text).ok()).and_then(Checked::line);
        match line {
            Some(_) => self.position += read as u64,
            None if read == 0 => self.end = Some(End::Whole),
            None if whole.is_none() && (read as u64) < MAX_LINE => self.end = Some(End::Torn),
            None => self.end = Some(End::Damaged),
        }
        Ok(line)
    }

    /// Bytes of the lines that were read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// How the lines end, once the last was read.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let mut fingerprint = Fingerprint::default();
        fingerprint.push("--steps", 25);
        let sum = |bytes| FileSum { bytes, crc: 7 };
        let batch = |rows| Line::Batch(BatchLine { rows, dim: 2, columns: vec![sum(rows * 8)], runs: None });
        vec![
            Line::Header(Header { version: VERSION, dim: Some(2), fingerprint, is_temporary: false }),
            batch(3),
            Line::File(NumberedFile { rows: 4, sums: vec![sum(160), sum(99)] }),
            batch(5),
            Line::Complete { rows: 5, dim: 2 },
        ]
    }

    fn open(path: &Path) -> Journal {
        let file = File::options().read(true).append(true).create(true).open(path).unwrap();
        Journal::new(file, path.to_path_buf())
    }

    fn read(path: &Path) -> (Vec<Line>, u64, End) {
        let journal = open(path);
        let mut reader = journal.read().unwrap();
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(line);
        }
        (lines, reader.position(), reader.end().unwrap())
    }

    /// A journal of all lines, and its bytes.
    fn whole() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal");
        let mut journal = open(&path);
        let len = lines().into_iter().map(|line| journal.append(line).unwrap()).last().unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, len);
        (folder, path, whole)
    }

    #[test]
    fn truncated_anywhere_the_whole_lines_count() {
        let (_folder, path, whole) = whole();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let count = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let (read, position, end) = read(&path);
            assert_eq!(read, lines()[..count]);
            assert!(position as usize <= cut && (position == 0 || whole[position as usize - 1] == b'\n'));
            assert_eq!(end, if position as usize == cut { End::Whole } else { End::Torn });
        }
    }

    #[test]
    fn a_changed_line_is_damage() {
        let (_folder, path, whole) = whole();
        for place in 0..whole.len() {
            // Digits stay digits, so that the line stays JSON.
            for flip in [1, 0x20] {
                let mut changed = whole.clone();
                changed[place] ^= flip;
                std::fs::write(&path, &changed).unwrap();
                let (read, _, end) = read(&path);
                let line = whole[..place].iter().filter(|byte| **byte == b'\n').count();
                let is_last_break = place + 1 == whole.len();
                assert!(read == lines()[..line], "{place}: {read:?}");
                assert_eq!(end, if is_last_break { End::Torn } else { End::Damaged }, "{place}");
            }
        }
    }

    #[test]
    fn lines_after_damage_do_not_count() {
        let (_folder, path, whole) = whole();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        std::fs::write(&path, [&whole[..first], b"\0\0\0\n", &whole[first..]].concat()).unwrap();
        assert_eq!(read(&path), (lines()[..1].to_vec(), first as u64, End::Damaged));
        let mut journal = open(&path);
        journal.truncate(first as u64).unwrap();
        journal.append(lines()[2].clone()).unwrap();
        assert_eq!(read(&path).0, [lines()[0].clone(), lines()[2].clone()]);
    }

    #[test]
    fn another_versions_header_is_not_damage() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "{\"header\":{\"version\":1,\"dim\":2,\"fingerprint\":[]}}\n").unwrap();
        let (lines, _, end) = read(&path);
        assert!(matches!(lines.as_slice(), [Line::Header(Header { version: 1, .. })]), "{lines:?}");
        assert_eq!(end, End::Whole);
    }
}
