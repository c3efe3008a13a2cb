//! CSV and TSV: a header, then records, which may span lines where a quoted cell does.

use super::lines::MAX_BYTES;
use super::record::{Draft, Scalar};
use super::source::Text;
use super::table::{Column, Layout};
use super::{Entry, Place, PromptRecord, Rows};
use crate::bad_input;
use anyhow::Result;
use csv::ByteRecord;
use std::io::{self, BufRead, Read};

/// The records of `text` below its header.
///
/// # Errors
/// [`crate::error::BadInput`] if there is no header, or none with a column of prompts.
pub(super) fn rows(text: Text, delimiter: u8, prompt_column: Option<&str>) -> Result<Rows> {
    let feed = Feed::new(text);
    // Records of another length than the header's are for us to name.
    let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(feed);
    let mut table = Table {
        reader,
        record: ByteRecord::new(),
        width: 0,
        layout: Layout { prompt_name: String::new(), columns: Vec::new() },
    };
    let place = table.read_record()?;
    let name = &table.reader.get_ref().text.name;
    let Some(place) = place else {
        return Err(bad_input!("{name} is empty; a header with the names of the columns is needed"));
    };
    let mut columns = Vec::with_capacity(table.record.len());
    for cell in &table.record {
        let Ok(cell) = std::str::from_utf8(cell) else {
            return Err(bad_input!("{name}: {place}: the header is not UTF-8; convert the file"));
        };
        columns.push(Column { name: cell.trim().to_string(), is_text: true });
    }
    table.layout = Layout::find(name, &columns, prompt_column)?;
    table.width = columns.len();
    Ok(Box::new(table))
}

struct Table {
    reader: csv::Reader<Feed>,
    record: ByteRecord,
    /// Number of columns.
    width: usize,
    layout: Layout,
}

impl Iterator for Table {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        match self.read_record() {
            Ok(place) => Some(Ok(Entry::new(place?, self.parse()))),
            Err(error) => Some(Err(error)),
        }
    }
}

impl Table {
    /// Reads the next record and says where it starts, if there is one.
    fn read_record(&mut self) -> Result<Option<Place>> {
        self.reader.get_mut().start_record();
        let read = self.reader.read_byte_record(&mut self.record);
        let feed = self.reader.get_ref();
        let (name, place) = (&feed.text.name, feed.place());
        match read {
            Err(_) if feed.left == 0 => {
                let limit = MAX_BYTES >> 20;
                Err(bad_input!("{name}: {place}: the record is longer than {limit} MiB; is a quote not closed?"))
            }
            Err(error) => Err(feed.text.broken(place, error.into())),
            Ok(true) if feed.is_unclosed() => {
                Err(bad_input!("{name}: {place}: a quote opens in this record that is never closed; close it"))
            }
            Ok(true) => Ok(Some(place)),
            Ok(false) => Ok(None),
        }
    }

    fn parse(&self) -> Result<PromptRecord, String> {
        let Self { record, width, layout, .. } = self;
        if record.len() != *width {
            return Err(format!("{} cells where the header has {width}", record.len()));
        }
        let mut draft = Draft::new(&layout.prompt_name);
        for &(place, field) in &layout.columns {
            let cell = std::str::from_utf8(&record[place])
                .map_err(|_| format!("the cell in column {} is not UTF-8; convert the file", place + 1))?;
            draft.set(field, Scalar::of_cell(field, cell))?;
        }
        draft.finish()
    }
}

/// Hands a text to the parser line by line. So nothing is waited for that a record does not need, it is known where a
/// record starts, and one that never ends cannot fill the memory.
struct Feed {
    text: Text,
    /// The line that was read last, counted from 1, and whether it was read to its end.
    line: u64,
    is_at_line_end: bool,
    is_at_end: bool,
    /// Where the current record starts, once that is known: blank lines before it are no part of it.
    record_line: Option<u64>,
    /// Bytes that the current record may still take.
    left: usize,
    has_odd_quotes: bool,
}

impl Feed {
    fn new(text: Text) -> Self {
        Self {
            text,
            line: 0,
            is_at_line_end: true,
            is_at_end: false,
            record_line: None,
            left: MAX_BYTES,
            has_odd_quotes: false,
        }
    }

    fn start_record(&mut self) {
        (self.record_line, self.left, self.has_odd_quotes) = (None, MAX_BYTES, false);
    }

    /// Where the current record starts.
    fn place(&self) -> Place {
        Place::Line(self.record_line.unwrap_or(self.line.max(1)))
    }

    /// Whether the current record, which is complete, ended only because the text did. A line break is part of a record
    /// within quotes alone; a quote within a cell without quotes is a character as any other.
    fn is_unclosed(&self) -> bool {
        let spans_lines = self.record_line.is_some_and(|first| first < self.line);
        self.is_at_end && self.record_line.is_some() && (self.is_at_line_end || (spans_lines && self.has_odd_quotes))
    }

    fn note(&mut self, piece: &[u8]) {
        self.line += u64::from(self.is_at_line_end);
        self.is_at_line_end = piece.ends_with(b"\n");
        if self.record_line.is_none() && piece.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.record_line = Some(self.line);
        }
        if self.record_line.is_some() {
            self.left -= piece.len();
            self.has_odd_quotes ^= memchr::memchr_iter(b'"', piece).count() % 2 == 1;
        }
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the record is too long"));
        }
        let available = loop {
            match self.text.reader.fill_buf() {
                // The parser takes every error for the end.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let size = available.len().min(buffer.len()).min(self.left);
        let size = memchr::memchr(b'\n', &available[..size]).map_or(size, |end| end + 1);
        buffer[..size].copy_from_slice(&available[..size]);
        self.text.reader.consume(size);
        if size == 0 {
            self.is_at_end = true;
        } else {
            self.note(&buffer[..size]);
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PromptFormat::{Csv, Tsv};
    use super::super::tests::{Dribble, read_with, record};
    use super::*;

    fn read(text: &str) -> Vec<String> {
        read_with(text, Csv, None)
    }

    #[test]
    fn records_may_span_lines_and_are_known_by_their_first() {
        let text = "id,prompt\r\n1,a red apple\r\n\r\n\n2,\"two\nlines, \"\"quoted\"\"\"\n3,\n4,last";
        let expected = ["line 2: a red apple", "line 5: two\nlines, \"quoted\"", "line 7: ", "line 8: last"];
        assert_eq!(read(text), expected);
        assert_eq!(read(&text.replace('\n', "\r\n").replace("\r\r", "\r")).len(), 4);
        assert_eq!(read_with("prompt\tid\na, b\t1\n", Tsv, None), ["line 2: a, b"]);
    }

    #[test]
    fn columns_are_found_by_name() {
        assert_eq!(read("url,prompt,caption\nu,p,c\n"), ["line 2: p"]);
        assert_eq!(read("id, caption \n1,c\n"), ["line 2: c"], "the only column that is not an option's");
        let wanted = |text: &str, column| read_with(text, Csv, Some(column));
        assert_eq!(wanted("prompt,caption\np,c\n", "caption"), ["line 2: c"]);
        assert_eq!(
            wanted("id,seed\none,two\n", "id"),
            ["line 2: !\"seed\" must be a whole number between 0 and 18446744073709551615, and it is \"two\""]
        );
        let missing = "error: rows has no column \"x\", only \"prompt\", \"id\"; name one with --prompt-column";
        assert_eq!(wanted("prompt,id\np,1\n", "x"), [missing]);
        let unclear = "error: rows has no column \"prompt\", only \"a\", \"b\"; name one with --prompt-column";
        assert_eq!(read("a,b\n1,2\n"), [unclear]);
    }

    #[test]
    fn a_header_that_is_missing_or_ambiguous_is_refused() {
        let empty = "error: rows is empty; a header with the names of the columns is needed";
        assert_eq!(read(""), [empty]);
        assert_eq!(read("\n\r\n"), [empty]);
        assert_eq!(read("prompt,prompt\na,b\n"), ["error: rows has two columns \"prompt\"; rename one of them"]);
        assert_eq!(read("prompt,seed,seed\n"), ["error: rows has two columns \"seed\"; rename one of them"]);
        assert_eq!(read("prompt,url,url\na,b,c\n"), ["line 2: a"], "what is not read may be there twice");
        let read = read_with(b"prompt,\xff\n".to_vec(), Csv, None);
        assert_eq!(read, ["error: rows: line 1: the header is not UTF-8; convert the file"]);
    }

    #[test]
    fn cells_beside_the_prompt_are_its_options() {
        let record_of = |cells: &str| {
            record(format!("prompt,id,negative_prompt,seed,guidance_scale,steps,samples\n{cells}\n"), Csv)
        };
        let full = record_of("a,007,green,18446744073709551615,-2.5, 10 ,3");
        assert_eq!((full.id.as_deref(), full.negative_prompt.as_deref()), (Some("007"), Some("green")));
        assert_eq!((full.seed, full.guidance_scale), (Some(u64::MAX), Some(-2.5)));
        assert_eq!((full.steps, full.samples), (Some(10), Some(3)));
        assert_eq!(record_of("a,,,,,,"), super::super::record::of_prompt("a"), "an empty cell is no value");
    }

    #[test]
    fn a_bad_record_is_named_and_the_next_one_read() {
        let rows = b"prompt,seed\na,1\nb\nc,1,2\n\xff,1\nd,7.0\n\"e\nf\",-1\ng,2\n".to_vec();
        let range = "\"seed\" must be a whole number between 0 and 18446744073709551615, and it is";
        let expected = [
            "line 2: a".to_string(),
            "line 3: !1 cells where the header has 2".into(),
            "line 4: !3 cells where the header has 2".into(),
            "line 5: !the cell in column 1 is not UTF-8; convert the file".into(),
            format!("line 6: !{range} 7.0"),
            format!("line 7: !{range} -1"),
            "line 9: g".into(),
        ];
        assert_eq!(read_with(rows, Csv, None), expected);
    }

    #[test]
    fn a_quote_that_is_never_closed_is_the_end() {
        let end = "error: rows: line 3: a quote opens in this record that is never closed; close it";
        for rest in ["\"b\nc\nd\n", "\"b\nc\nd", "\"b\n"] {
            assert_eq!(read(&format!("prompt\na\n{rest}")), ["line 2: a", end], "{rest:?}");
        }
        assert_eq!(read("prompt\n5\" nail\na \"b\" c"), ["line 2: 5\" nail", "line 3: a \"b\" c"]);
        assert_eq!(read("prompt\n\"a\nb\""), ["line 2: a\nb"], "no line break at the end");
    }

    #[test]
    fn a_record_that_never_ends_does_not_fill_the_memory() {
        let endless = io::Cursor::new("prompt\nfine\n\"").chain(io::repeat(b'x'));
        let read = super::super::tests::read_stream(endless, Csv, None);
        let end = "error: rows: line 3: the record is longer than 16 MiB; is a quote not closed?";
        assert_eq!(read, ["line 2: fine", end]);
        let blank = format!("prompt\n{}a\n", "\r".repeat(MAX_BYTES + 10));
        assert_eq!(self::read(&blank).len(), 1, "blank lines are no part of a record");
    }

    #[test]
    fn a_record_is_given_as_soon_as_it_is_there() {
        for pieces in [["prompt\n", "a\n", "b\n"], ["prompt\r\n", "a\r\n", "b\r\n"], ["prompt\n", "\"a\"\n", "b\n"]] {
            Dribble::check(&pieces, Csv, 2, "line 2: a");
        }
    }
}
