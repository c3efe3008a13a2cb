//! The journal of a run: what of its rows is safe on disk.
//!
//! JSON, a line each: a header that says what decides the rows, a line a batch, and one when the output is complete. A
//! line counts only when its line break is there and it can be read; the first that does not count ends the journal,
//! since whatever stopped the run may have torn it.

use super::fingerprint::Fingerprint;
use super::shard::RowRuns;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// The version of the format; another version's journal cannot be gone on with.
pub const VERSION: u32 = 1;

/// The longest line that is read; what is longer is no journal.
const LONGEST_LINE: u64 = 64 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// The first line.
    Header(Header),
    /// A batch is in the data files.
    Batch(BatchLine),
    /// The whole output is written, and all that is left is to move it into place.
    Complete {
        /// Rows in it.
        rows: u64,
    },
}

/// What decides the rows and their bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// Numbers in a row.
    pub dim: usize,
    /// Settings by name.
    pub fingerprint: Fingerprint,
    /// Whether no run can go on with the rows.
    #[serde(default)]
    pub is_temporary: bool,
}

/// The state after a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchLine {
    /// Rows so far.
    pub rows: u64,
    /// Bytes so far in each data file.
    pub bytes: Vec<u64>,
    /// CRC-32 of `rows`, `bytes` (little-endian) and the batch's bytes in each data file, in this order.
    pub crc: u32,
    /// The batch's rows by their numbers in the whole, in a sharded run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runs: Option<RowRuns>,
}

impl BatchLine {
    /// Begins the checksum, with what comes before the data.
    pub fn hasher(rows: u64, bytes: &[u64]) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&rows.to_le_bytes());
        bytes.iter().for_each(|bytes| hasher.update(&bytes.to_le_bytes()));
        hasher
    }
}

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal at `path` to go on after its first `bytes` bytes, and forgets the rest.
    ///
    /// # Errors
    /// If the file cannot be opened or cut.
    pub fn open(path: &Path, bytes: u64) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        file.set_len(bytes)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, line: &Line) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

/// Reads a journal's lines from the first on.
#[derive(Debug)]
pub struct Reader {
    /// `None` if there is no journal.
    input: Option<BufReader<File>>,
    path: PathBuf,
    position: u64,
}

impl Reader {
    /// Opens the journal at `path`; one that is not there has no lines.
    ///
    /// # Errors
    /// If it is there and cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let input = match File::open(path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {path:?}")),
        };
        Ok(Self { input, path: path.to_path_buf(), position: 0 })
    }

    /// The next line that counts.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        let Some(input) = &mut self.input else { return Ok(None) };
        let mut text = Vec::new();
        let read = input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text);
        read.with_context(|| format!("cannot read {:?}", self.path))?;
        let line = text.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        match line {
            Some(line) => {
                self.position += text.len() as u64;
                Ok(Some(line))
            }
            None => {
                self.input = None;
                Ok(None)
            }
        }
    }

    /// Bytes of the lines read so far.
    pub fn position(&self) -> u64 {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let mut fingerprint = Fingerprint::default();
        fingerprint.push("--steps", 25);
        let batch = |rows| Line::Batch(BatchLine { rows, bytes: vec![rows * 8], crc: 7, runs: None });
        vec![
            Line::Header(Header { version: VERSION, dim: 2, fingerprint, is_temporary: false }),
            batch(3),
            batch(5),
            Line::Complete { rows: 5 },
        ]
    }

    fn read(path: &Path) -> (Vec<Line>, u64) {
        let mut reader = Reader::open(path).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(line);
        }
        (lines, reader.position())
    }

    #[test]
    fn cut_anywhere_the_whole_lines_before_the_cut_count() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, 0).unwrap();
        lines().iter().for_each(|line| journal.append(line).unwrap());
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let count = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let (read, position) = read(&path);
            assert_eq!(read, lines()[..count]);
            assert!(position as usize <= cut && (position == 0 || whole[position as usize - 1] == b'\n'));
        }
    }

    #[test]
    fn what_follows_a_torn_line_does_not_count_and_is_cut_off() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, 0).unwrap();
        journal.append(&lines()[0]).unwrap();
        let good = std::fs::metadata(&path).unwrap().len();
        journal.file.write_all(b"\0\0\0\n").unwrap();
        journal.append(&lines()[1]).unwrap();
        assert_eq!(read(&path), (lines()[..1].to_vec(), good));
        let mut journal = Journal::open(&path, good).unwrap();
        journal.append(&lines()[2]).unwrap();
        assert_eq!(read(&path).0, [lines()[0].clone(), lines()[2].clone()]);
    }

    #[test]
    fn no_journal_has_no_lines() {
        assert_eq!(read(Path::new("/nowhere/journal")), (vec![], 0));
    }
}
