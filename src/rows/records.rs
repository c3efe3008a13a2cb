//! Cuts a text into records of cells, as CSV and TSV have them.
//!
//! The csv crate reads on, without a word, where a quote is never closed and where a cell goes on after its quotes: one stray
//! quote would swallow rows, and all rows after them would be others than their numbers say. Here such a record is an error of
//! its own line, and the next line is a record again.

use super::Place;
use super::lines::{BYTE_ORDER_MARK, MAX_BYTES};
use super::source::Text;
use anyhow::Result;
use memchr::{memchr, memchr2, memchr2_iter, memchr3};
use std::io::{self, BufRead};

const UNCLOSED: &str = "a quote opens in this record that is never closed; close it, or double the quotes in the cell";
const MORE: &str = "a cell goes on after its closing quote; double the quotes in the cell";

/// Reads a text record by record, and no further than to the end of the line that a record ends on.
pub(super) struct Records {
    /// The text.
    pub(super) text: Text,
    delimiter: u8,
    /// Bytes that were read. The current record begins at `start` and takes `taken` of them.
    raw: Vec<u8>,
    start: usize,
    taken: usize,
    /// The line that `start` is on, counted from 1.
    line: u64,
    /// Whether the last line break was a carriage return, which a line feed belongs to.
    was_return: bool,
    /// Whether the current record begins with a byte order mark, as that of a file which was joined to another does.
    has_mark: bool,
    is_at_end: bool,
    /// Whether the rest of the line that `raw` ends in is no record.
    skips_line: bool,
    scan: Scan,
}

impl Records {
    pub(super) fn new(text: Text, delimiter: u8) -> Self {
        let (raw, scan) = (Vec::new(), Scan::default());
        Self {
            text,
            delimiter,
            raw,
            start: 0,
            taken: 0,
            line: 1,
            was_return: false,
            has_mark: false,
            is_at_end: false,
            skips_line: false,
            scan,
        }
    }

    /// Reads the next record: where it starts, and what is wrong with its form. One that is of a wrong form ends with
    /// its first line. The cells of another are then in [`Records::cells`].
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the text cannot be read.
    pub(super) fn next_record(&mut self) -> Result<Option<(Place, Result<(), String>)>> {
        let record = self.read_record();
        let place = Place::Line(self.line);
        record.map(|record| record.map(|form| (place, form))).map_err(|cause| self.text.broken(place, cause))
    }

    /// The cells of the record that was read last.
    pub(super) fn cells(&self) -> impl Iterator<Item = &[u8]> {
        self.scan.cells()
    }

    /// Whether the record that was read last came behind a byte order mark.
    pub(super) fn has_mark(&self) -> bool {
        self.has_mark
    }

    /// Whether there is a NUL in the record that was read last.
    pub(super) fn has_nul(&self) -> bool {
        memchr(0, &self.scan.cells).is_some()
    }

    fn read_record(&mut self) -> io::Result<Option<Result<(), String>>> {
        if !self.go_to_next()? {
            return Ok(None);
        }
        loop {
            let record = &self.raw[self.start..];
            let needs_line = self.delimiter == b'\t' && !self.is_at_end;
            let ended = match memchr2(b'\n', b'\r', record) {
                // In TSV a quote is closed on its line or not at all: the line has to be there.
                None if needs_line => Ended::NotYet,
                _ => self.scan.go_on(record, self.delimiter, self.is_at_end),
            };
            match ended {
                Ended::Well => {
                    self.taken = self.scan.place;
                    return Ok(Some(Ok(())));
                }
                Ended::Badly(reason) => return Ok(Some(Err(self.give_up(reason.into())))),
                Ended::NotYet if record.len() >= MAX_BYTES => {
                    let limit = MAX_BYTES >> 20;
                    let reason = format!("the record is longer than {limit} MiB; is a quote not closed?");
                    return Ok(Some(Err(self.give_up(reason))));
                }
                Ended::NotYet => self.read_piece()?,
            }
        }
    }

    /// Takes the first line of the current record, so that those below it are read again.
    fn give_up(&mut self, reason: String) -> String {
        let record = &self.raw[self.start..];
        let line_end = memchr2(b'\n', b'\r', record);
        self.skips_line = line_end.is_none();
        self.taken = line_end.map_or(record.len(), |end| end + 1);
        reason
    }

    /// Moves on to the next record, over blank lines; whether there is one.
    fn go_to_next(&mut self) -> io::Result<bool> {
        let taken = std::mem::take(&mut self.taken);
        self.pass(taken);
        self.scan.reset();
        self.has_mark = false;
        if std::mem::take(&mut self.skips_line) {
            // Only now, so that a caller who gives up at the bad record does not wait for its end.
            self.skip_line()?;
        }
        let mut mark = [0; 4];
        let mark = BYTE_ORDER_MARK.encode_utf8(&mut mark).as_bytes();
        loop {
            let rest = &self.raw[self.start..];
            let may_be_mark = rest.starts_with(&mark[..rest.len().min(mark.len())]);
            match rest {
                [b'\n' | b'\r', ..] => {
                    let size = rest.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
                    self.pass(size);
                }
                [_, ..] if may_be_mark && rest.len() >= mark.len() => {
                    self.has_mark = true;
                    self.pass(mark.len());
                }
                [_, ..] if !may_be_mark || self.is_at_end => return Ok(true),
                [] if self.is_at_end => return Ok(false),
                _ => self.read_piece()?,
            }
        }
    }

    /// Passes over what is left of a line.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let available = match self.text.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            let end = memchr2(b'\n', b'\r', available);
            let size = end.map_or(available.len(), |end| end + 1);
            self.was_return = end.is_some_and(|end| available[end] == b'\r');
            self.text.reader.consume(size);
            if end.is_some() || size == 0 {
                self.line += u64::from(end.is_some());
                return Ok(());
            }
        }
    }

    /// Passes over bytes that were read, and counts the lines that end in them.
    fn pass(&mut self, size: usize) {
        let bytes = &self.raw[self.start..self.start + size];
        for place in memchr2_iter(b'\n', b'\r', bytes) {
            let is_second =
                bytes[place] == b'\n' && if place == 0 { self.was_return } else { bytes[place - 1] == b'\r' };
            self.line += u64::from(!is_second);
        }
        self.was_return = bytes.last().map_or(self.was_return, |last| *last == b'\r');
        self.start += size;
    }

    /// Reads on, to the end of the line at most.
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
        Ok(())
    }
}

/// The cells of the first line, without spaces around them; `None` if a delimiter cannot cut it so.
pub(super) fn split(text: &[u8], delimiter: u8) -> Option<Vec<String>> {
    let mut scan = Scan::default();
    let line = text.trim_ascii_start();
    let Ended::Well = scan.go_on(line, delimiter, true) else { return None };
    scan.cells().map(|cell| std::str::from_utf8(cell).ok().map(|cell| cell.trim().to_string())).collect()
}

/// How far a record was looked through. It is looked through once, however many pieces it comes in.
#[derive(Debug, Default)]
struct Scan {
    /// What the cells hold, one behind the other, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
    place: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// Before a cell.
    #[default]
    Start,
    /// In a cell without quotes.
    Plain,
    /// In a cell within quotes.
    Quoted,
    /// After a quote in such a cell, which closes it or is half of a pair.
    Quote,
}

enum Ended {
    Well,
    Badly(&'static str),
    NotYet,
}

impl Scan {
    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.cells[start..*end])
    }

    fn reset(&mut self) {
        self.cells.clear();
        self.ends.clear();
        (self.place, self.state) = (0, State::Start);
    }

    /// Goes on with a record, of which more bytes may be there than before.
    fn go_on(&mut self, record: &[u8], delimiter: u8, is_at_end: bool) -> Ended {
        while let Some((&byte, _)) = record[self.place..].split_first() {
            let rest = &record[self.place..];
            match self.state {
                State::Start if byte == b'"' && delimiter == b'\t' => self.quote_in_tsv(rest),
                State::Start if byte == b'"' => (self.place, self.state) = (self.place + 1, State::Quoted),
                State::Start | State::Plain => {
                    self.take(rest, memchr3(delimiter, b'\n', b'\r', rest));
                    self.state = State::Plain;
                }
                State::Quoted => {
                    let end = memchr(b'"', rest);
                    self.take(rest, end);
                    if end.is_some() {
                        (self.place, self.state) = (self.place + 1, State::Quote);
                    }
                    continue;
                }
                State::Quote if byte == b'"' => {
                    self.take(rest, Some(1));
                    self.state = State::Quoted;
                    continue;
                }
                State::Quote if byte == delimiter || byte == b'\n' || byte == b'\r' => {}
                State::Quote => return Ended::Badly(MORE),
            }
            match (self.state, record.get(self.place)) {
                (State::Plain | State::Quote, Some(&byte)) if byte == delimiter || byte == b'\n' || byte == b'\r' => {
                    self.ends.push(self.cells.len());
                    (self.place, self.state) = (self.place + 1, State::Start);
                    if byte != delimiter {
                        return Ended::Well;
                    }
                }
                _ => {}
            }
        }
        match self.state {
            _ if !is_at_end => Ended::NotYet,
            State::Quoted => Ended::Badly(UNCLOSED),
            _ => {
                self.ends.push(self.cells.len());
                Ended::Well
            }
        }
    }

    /// Takes bytes up to `end`, or all, into the current cell.
    fn take(&mut self, rest: &[u8], end: Option<usize>) {
        let end = end.unwrap_or(rest.len());
        self.cells.extend(&rest[..end]);
        self.place += end;
    }

    /// Takes a cell of TSV that begins with a quote, if it is one within quotes; or else what it is will be seen.
    fn quote_in_tsv(&mut self, rest: &[u8]) {
        let before = self.cells.len();
        let mut place = 1;
        while let Some(end) = memchr3(b'"', b'\n', b'\r', &rest[place..]) {
            self.cells.extend(&rest[place..place + end]);
            place += end;
            match (rest[place], rest.get(place + 1)) {
                (b'"', Some(b'"')) => {
                    self.cells.push(b'"');
                    place += 2;
                }
                (b'"', None | Some(b'\t' | b'\n' | b'\r')) => {
                    (self.place, self.state) = (self.place + place + 1, State::Quote);
                    return;
                }
                _ => break,
            }
        }
        self.cells.truncate(before);
        self.state = State::Plain;
    }
}
