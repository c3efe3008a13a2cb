//! Splits a text into records of cells, as CSV and TSV have them, with the parser of the csv crate.
//!
//! The parser accepts everything: a stray quote at the start of a cell would swallow all rows up to the next quote.
//! Here a record whose quotes are wrong is an error of its first line, and the next line is a record again. That takes
//! the raw text, which the csv crate's own reader does not give access to.

use super::input::Text;
use super::lines::{BYTE_ORDER_MARK, MAX_BYTES};
use super::record::Place;
use anyhow::Result;
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use memchr::{memchr, memchr2, memchr2_iter};
use std::io::{self, BufRead};
use std::iter;

const UNCLOSED: &str = "a quote opens in this record that is never closed; close it, or double the quotes in the cell";
const MORE: &str = "a cell goes on after its closing quote; double the quotes in the cell";

/// Reads records, each no further than to the end of its last line.
pub(super) struct Records {
    pub(super) text: Text,
    delimiter: u8,
    parser: Reader,
    /// Takes a quote for a character as any other.
    plain_parser: Reader,
    /// The cells of the current record.
    cells: Cells,
    /// Text that was read. The current record begins at `start` and is `len` bytes long.
    raw: Vec<u8>,
    start: usize,
    len: usize,
    /// The line that `start` is on, counted from 1.
    line: u64,
    /// Whether the byte before `start` is a carriage return, to which a line feed at `start` belongs.
    after_return: bool,
    /// Whether the current record begins with a byte order mark, like that of a file appended to another.
    has_mark: bool,
    is_at_end: bool,
    /// Whether the rest of the current line is to be skipped.
    is_truncated: bool,
}

impl Records {
    pub(super) fn new(text: Text, delimiter: u8) -> Self {
        let mut builder = ReaderBuilder::new();
        builder.delimiter(delimiter);
        Self {
            text,
            delimiter,
            parser: builder.build(),
            plain_parser: builder.quoting(false).build(),
            cells: Cells::default(),
            raw: Vec::new(),
            start: 0,
            len: 0,
            line: 1,
            after_return: false,
            has_mark: false,
            is_at_end: false,
            is_truncated: false,
        }
    }

    /// Reads the next record: its place, and what is wrong with its form. [`Records::cells`] then has its cells.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the text cannot be read.
    pub(super) fn next_record(&mut self) -> Result<Option<(Place, Result<(), String>)>> {
        let record = self.read_record();
        let place = Place::Line(self.line);
        record.map(|record| record.map(|form| (place, form))).map_err(|cause| self.text.unreadable(place, cause))
    }

    /// The cells of the current record.
    pub(super) fn cells(&self) -> impl Iterator<Item = &[u8]> {
        self.cells.iter()
    }

    pub(super) fn has_mark(&self) -> bool {
        self.has_mark
    }

    /// Whether there is a NUL in the current record.
    pub(super) fn has_nul(&self) -> bool {
        memchr(0, &self.raw[self.start..self.start + self.len]).is_some()
    }

    fn read_record(&mut self) -> io::Result<Option<Result<(), String>>> {
        if !self.go_to_next()? {
            return Ok(None);
        }
        self.cells.clear();
        self.parser.reset();
        let is_tsv = self.delimiter == b'\t';
        let reason = loop {
            let record = &self.raw[self.start..];
            let line_end = memchr2(b'\n', b'\r', record).map(|end| end + 1);
            // In TSV a record is a line, and is parsed when it is there.
            let known = if is_tsv { &record[..line_end.unwrap_or(0)] } else { record };
            let (read, is_complete) = self.cells.parse(&mut self.parser, &known[self.len..]);
            self.len += read;
            if is_complete && self.cells.is_exact(record, self.delimiter) {
                return Ok(Some(Ok(())));
            }
            if is_tsv && !known.is_empty() {
                self.cells.clear();
                self.plain_parser.reset();
                (self.len, _) = self.cells.parse(&mut self.plain_parser, known);
                return Ok(Some(Ok(())));
            }
            if is_complete {
                break MORE.into();
            }
            if self.is_at_end {
                break UNCLOSED.into();
            }
            if record.len() >= MAX_BYTES {
                break format!("the record is longer than {} MiB; is a quote not closed?", MAX_BYTES >> 20);
            }
            self.read_piece()?;
        };
        let record = &self.raw[self.start..];
        let line_end = memchr2(b'\n', b'\r', record).map(|end| end + 1);
        self.len = line_end.unwrap_or(record.len());
        self.is_truncated = line_end.is_none();
        Ok(Some(Err(reason)))
    }

    /// Moves `start` to the next record, over blank lines; false at the end of the text.
    fn go_to_next(&mut self) -> io::Result<bool> {
        let mut mark = [0; 3];
        let mark = BYTE_ORDER_MARK.encode_utf8(&mut mark).as_bytes();
        self.advance(self.len);
        (self.len, self.has_mark) = (0, false);
        loop {
            let rest = &self.raw[self.start..];
            if self.is_truncated && !rest.is_empty() {
                let line_end = memchr2(b'\n', b'\r', rest).map(|end| end + 1);
                self.is_truncated = line_end.is_none();
                self.advance(line_end.unwrap_or(rest.len()));
            } else if rest.starts_with(mark) {
                self.has_mark = true;
                self.advance(mark.len());
            } else if let [b'\n' | b'\r', ..] = rest {
                self.advance(1);
            } else if !mark.starts_with(rest) {
                return Ok(true);
            } else if self.is_at_end {
                return Ok(false);
            } else {
                self.read_piece()?;
            }
        }
    }

    /// Moves `start`, and counts the line breaks.
    fn advance(&mut self, size: usize) {
        let bytes = &self.raw[self.start..self.start + size];
        for place in memchr2_iter(b'\n', b'\r', bytes) {
            let after_return = if place == 0 { self.after_return } else { bytes[place - 1] == b'\r' };
            self.line += u64::from(!(bytes[place] == b'\n' && after_return));
        }
        self.after_return = bytes.last().map_or(self.after_return, |last| *last == b'\r');
        self.start += size;
    }

    /// Reads on as far as text has arrived, and to the end of the line at most. The last line gets an end if it has
    /// none.
    fn read_piece(&mut self) -> io::Result<()> {
        if self.start > self.raw.len() / 2 {
            self.raw.drain(..std::mem::take(&mut self.start));
        }
        let available = loop {
            match self.text.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let size = memchr(b'\n', available).map_or(available.len(), |end| end + 1);
        self.raw.extend(&available[..size]);
        self.text.reader.consume(size);
        self.is_at_end = size == 0;
        if self.is_at_end {
            self.raw.push(b'\n');
        }
        Ok(())
    }
}

/// The cells of a line, trimmed; `None` if the line is not valid.
pub(super) fn split(line: &[u8], delimiter: u8) -> Option<Vec<String>> {
    let line = [line.trim_ascii_start(), b"\n"].concat();
    let mut builder = ReaderBuilder::new();
    builder.delimiter(delimiter);
    let mut cells = Cells::default();
    let (_, is_complete) = cells.parse(&mut builder.build(), &line);
    if !is_complete || !cells.is_exact(&line, delimiter) {
        if delimiter != b'\t' {
            return None;
        }
        cells.clear();
        cells.parse(&mut builder.quoting(false).build(), &line);
    }
    cells.iter().map(|cell| std::str::from_utf8(cell).ok().map(|cell| cell.trim().to_string())).collect()
}

/// The cells of a record.
#[derive(Default)]
struct Cells {
    /// Their content, one after the other, and the end of each. Both have room for more.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// How much of `bytes` and `ends` is in use.
    len: usize,
    count: usize,
}

impl Cells {
    fn clear(&mut self) {
        (self.len, self.count) = (0, 0);
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let ends = &self.ends[..self.count];
        iter::once(0).chain(ends.iter().copied()).zip(ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// Parses `input`, which goes on where the last one ended: how many bytes of it are of the record, and whether that
    /// is complete.
    fn parse(&mut self, parser: &mut Reader, input: &[u8]) -> (usize, bool) {
        let mut read = 0;
        // The parser takes an empty input for the end of the text.
        while read < input.len() {
            let (bytes, ends) = (&mut self.bytes[self.len..], &mut self.ends[self.count..]);
            let (result, bytes_read, written, ended) = parser.read_record(&input[read..], bytes, ends);
            read += bytes_read;
            self.len += written;
            self.count += ended;
            match result {
                ReadRecordResult::OutputFull => self.bytes.resize(2 * self.bytes.len() + 1024, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len() + 16, 0),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record | ReadRecordResult::End => return (read, true),
            }
        }
        (read, false)
    }

    /// Whether `record` is these cells and nothing else: that in a quoted cell nothing follows its closing quote.
    fn is_exact(&self, record: &[u8], delimiter: u8) -> bool {
        let mut rest = record;
        self.iter().all(|cell| {
            if rest.first() == Some(&b'"') {
                let doubled = cell.iter().flat_map(|byte| iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 }));
                let is_quoted = iter::once(b'"').chain(doubled).chain([b'"']).all(|byte| take(&mut rest) == Some(byte));
                is_quoted && take(&mut rest).is_some_and(|byte| byte == delimiter || byte == b'\n' || byte == b'\r')
            } else {
                rest = rest.get(cell.len() + 1..).unwrap_or_default();
                true
            }
        })
    }
}

/// Takes the first byte.
fn take(bytes: &mut &[u8]) -> Option<u8> {
    bytes.split_off_first().copied()
}
