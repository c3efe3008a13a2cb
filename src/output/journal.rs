//! The journal of a run: what of its rows is safe on disk.
//!
//! JSON, a line each, with a checksum of its own: a header that says what decides the rows, a line a batch, and one when
//! the output is complete. What stops a run may tear the last line, and takes its line break with it: such a line does not
//! count. One with a line break that is not as it was written is damage.

use super::fingerprint::Fingerprint;
use super::shard::RowRuns;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The version of the format; another version's journal cannot be gone on with.
pub const VERSION: u32 = 2;

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
        /// Numbers in a row.
        dim: usize,
    },
}

/// A line as it is written.
#[derive(Serialize, Deserialize)]
struct Checked {
    #[serde(flatten)]
    line: Line,
    /// CRC-32 of the line as JSON. The first version had none.
    crc: Option<u32>,
}

impl Checked {
    fn new(line: Line) -> serde_json::Result<Self> {
        let crc = Some(crc32fast::hash(&serde_json::to_vec(&line)?));
        Ok(Self { line, crc })
    }

    /// The line, if it is as it was written or can be told to be another version's.
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
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// Numbers in a row, if that was known before the first.
    pub dim: Option<usize>,
    /// Settings by name.
    pub fingerprint: Fingerprint,
    /// Whether no run can go on with the rows.
    #[serde(default)]
    pub is_temporary: bool,
}

/// The state after a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// A journal that is open for reading and appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// The journal in a file that is open for both; messages call it `path`.
    pub fn new(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it from the first line on.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self) -> io::Result<Reader<'_>> {
        Reader::new(&self.file)
    }

    /// Forgets what comes after the first `bytes` bytes.
    ///
    /// # Errors
    /// If the file cannot be cut.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Appends a line, and gives the bytes of all lines.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, line: Line) -> io::Result<u64> {
        let mut text = serde_json::to_vec(&Checked::new(line)?)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.bytes()
    }

    /// Bytes of all lines.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        super::atomic::sync_data(&self.file)
    }
}

/// How the lines that count end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where the file does.
    Whole,
    /// In a line that was being written.
    Torn,
    /// In one that is not as it was written.
    Damaged,
}

/// Reads a journal's lines from the first on.
#[derive(Debug)]
pub struct Reader<'a> {
    input: BufReader<&'a File>,
    position: u64,
    end: Option<End>,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// If the file cannot be read.
    pub fn new(mut file: &'a File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { input: BufReader::new(file), position: 0, end: None })
    }

    /// The next line that counts.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut text = Vec::new();
        let read = self.input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text)?;
        let whole = text.strip_suffix(b"\n");
        let line = whole.and_then(|text| serde_json::from_slice::<Checked>(text).ok()).and_then(Checked::line);
        match line {
            Some(_) => self.position += read as u64,
            None if read == 0 => self.end = Some(End::Whole),
            None if whole.is_none() && (read as u64) < LONGEST_LINE => self.end = Some(End::Torn),
            None => self.end = Some(End::Damaged),
        }
        Ok(line)
    }

    /// Bytes of the lines read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How the lines end, after the last.
    pub fn end(&self) -> Option<End> {
        self.end
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
            Line::Header(Header { version: VERSION, dim: Some(2), fingerprint, is_temporary: false }),
            batch(3),
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
    fn cut_anywhere_the_whole_lines_before_the_cut_count() {
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
    fn a_line_that_is_not_as_it_was_written_is_damage() {
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
    fn what_follows_the_lines_that_count_is_cut_off() {
        let (_folder, path, whole) = whole();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        std::fs::write(&path, [&whole[..first], b"\0\0\0\n", &whole[first..]].concat()).unwrap();
        assert_eq!(read(&path), (lines()[..1].to_vec(), first as u64, End::Damaged));
        let mut journal = open(&path);
        journal.cut(first as u64).unwrap();
        journal.append(lines()[2].clone()).unwrap();
        assert_eq!(read(&path).0, [lines()[0].clone(), lines()[2].clone()]);
    }

    #[test]
    fn the_header_of_another_version_can_be_told_from_damage() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "{\"header\":{\"version\":1,\"dim\":2,\"fingerprint\":[]}}\n").unwrap();
        let (lines, _, end) = read(&path);
        assert!(matches!(lines.as_slice(), [Line::Header(Header { version: 1, .. })]), "{lines:?}");
        assert_eq!(end, End::Whole);
    }
}
