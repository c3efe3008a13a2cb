//! CSV and TSV: a header, then records.
//!
//! In CSV a cell that begins with a quote extends to its closing quote, over line breaks if need be, and a quote in it
//! is doubled (RFC 4180). TSV is often written without regard to quotes: there they have this meaning only on a line
//! where all are closed at the end of a cell; on any other line a quote is a character as any other. A record of CSV
//! with a quote that is never closed, or with text after a closing quote, is bad, and is taken to end with its first
//! line, so that the rows below it are not lost.
//!
//! Many programs write another delimiter than the extension says. It is read off the first line, where that is
//! unambiguous; Excel's line `sep=;` before the header decides it.

use super::field::{Field, RecordBuilder, Scalar};
use super::format::{PromptFormat, ReadOptions};
use super::input::Text;
use super::lines::NUL;
use super::record::{Place, PromptRecord, PromptRow, PromptRows};
use super::records::{Records, split};
use super::table::{Column, ColumnKind, FieldColumns};
use crate::bad_input;
use crate::text::shorten;
use anyhow::Result;

pub(super) static CSV: PromptFormat = PromptFormat {
    name: "csv",
    extensions: &["csv"],
    has_columns: true,
    has_header: true,
    open: |input, options, notices| rows(input.text(notices)?, b',', options),
};

pub(super) static TSV: PromptFormat = PromptFormat {
    name: "tsv",
    extensions: &["tsv"],
    has_columns: true,
    has_header: true,
    open: |input, options, notices| rows(input.text(notices)?, b'\t', options),
};

/// The delimiters that are detected.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// `usual` is the format's own delimiter.
fn rows(mut text: Text, usual: u8, options: &ReadOptions) -> Result<PromptRows> {
    let (delimiter, has_line) = delimiter(&mut text, usual, options)?;
    let mut records = Records::new(text, delimiter);
    if has_line {
        records.next_record()?;
    }
    let first = records.next_record()?;
    let name = &records.text.name;
    let Some((place, state)) = first else {
        if options.no_header {
            return Ok(Box::new(std::iter::empty()));
        }
        return Err(bad_input!("{name} is empty; a header with the names of the columns is needed"));
    };
    let first = if options.no_header { "first line" } else { "header" };
    let broken = |reason: &str| bad_input!("{name}: {place}: in the {first} {reason}");
    let wanted = options.prompt_column.as_deref();
    state.map_err(|reason| broken(&reason))?;
    let (first, columns) = if options.no_header {
        (Some(place), FieldColumns::numbered(name, records.cells().count(), wanted)?)
    } else {
        if records.has_nul() {
            return Err(broken(&format!("there is {NUL}")));
        }
        let mut columns = Vec::new();
        for cell in records.cells() {
            let Ok(cell) = std::str::from_utf8(cell) else {
                return Err(bad_input!("{name}: {place}: the header is not UTF-8; convert the file"));
            };
            columns.push(Column { name: cell.trim().to_string(), kind: ColumnKind::Text });
        }
        (None, FieldColumns::find(name, &columns, options, ", or give --no-header if it has no header")?)
    };
    let column = &columns.prompt_name;
    let column = if options.no_header { column.clone() } else { format!("column {:?}", shorten(column, 40)) };
    let separator = char::from(delimiter);
    let separated =
        if delimiter == usual { String::new() } else { format!(", and {separator:?} separates the columns") };
    records.text.notices.note(format!("the prompts of {name} are in {column}{separated}"));
    let header = names(&records);
    Ok(Box::new(TextTable { first, header, has_header: !options.no_header, records, columns }))
}

/// The cells of the current record, trimmed.
fn names(records: &Records) -> Vec<String> {
    records.cells().map(|cell| String::from_utf8_lossy(cell).trim().to_string()).collect()
}

/// Detects the delimiter; true if a line of its own gives it.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the first line is ambiguous.
fn delimiter(text: &mut Text, usual: u8, options: &ReadOptions) -> Result<(u8, bool)> {
    let name = text.name.clone();
    let line = match text.first_line() {
        Ok(line) => line.trim_ascii().to_vec(),
        Err(cause) => return Err(text.unreadable(Place::Line(1), cause)),
    };
    if let Some(delimiter) = excel_delimiter(&line) {
        return Ok((delimiter, true));
    }
    let ways: Vec<(u8, Vec<String>)> = std::iter::once(usual)
        .chain(DELIMITERS.into_iter().filter(|delimiter| *delimiter != usual))
        .filter_map(|delimiter| Some((delimiter, split(&line, delimiter)?)))
        .collect();
    let ambiguous = |ways: &[u8]| {
        let [first, second] = [ways.first(), ways.get(1)].map(|way| char::from(*way.unwrap_or(&usual)));
        let line = shorten(&String::from_utf8_lossy(&line), 80);
        bad_input!(
            "{name}: {first:?} and {second:?} could both separate the columns of {line:?}; put a line \"sep={first}\" \
             or \"sep={second}\" before it"
        )
    };
    let cutting: Vec<u8> = ways.iter().filter(|(_, cells)| cells.len() > 1).map(|(delimiter, _)| *delimiter).collect();
    let cuts = cutting.contains(&usual);
    if options.no_header {
        return if cuts || cutting.is_empty() { Ok((usual, false)) } else { Err(ambiguous(&[usual, cutting[0]])) };
    }
    let wanted = options.prompt_column.as_deref().unwrap_or(Field::Prompt.name());
    let named = |cells: &[String]| cells.iter().any(|cell| cell == wanted);
    let naming: Vec<u8> = ways.iter().filter(|(_, cells)| named(cells)).map(|(delimiter, _)| *delimiter).collect();
    match (naming.as_slice(), cutting.as_slice()) {
        ([only], _) | ([], [only]) => Ok((*only, false)),
        ([first, ..], _) if *first == usual => Ok((usual, false)),
        ([_, ..], _) => Err(ambiguous(&naming)),
        ([], []) => Ok((usual, false)),
        // The prompt column is the only one, or is split in two.
        ([], several) => {
            let cells = ways.iter().find(|(delimiter, _)| *delimiter == usual).map(|(_, cells)| cells.as_slice());
            let is_clear = |cell: &String| !cell.bytes().any(|byte| DELIMITERS.contains(&byte));
            if cuts && cells.is_some_and(|cells| cells.iter().all(is_clear)) {
                Ok((usual, false))
            } else {
                Err(ambiguous(several))
            }
        }
    }
}

/// The delimiter in Excel's line `sep=;`.
fn excel_delimiter(line: &[u8]) -> Option<u8> {
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    let (key, value) = line.split_at_checked(4)?;
    // The line is trimmed, and a tab is a space.
    let delimiter = match value {
        [] => b'\t',
        [delimiter] => *delimiter,
        _ => return None,
    };
    (key.eq_ignore_ascii_case(b"sep=") && delimiter.is_ascii() && delimiter != b'"').then_some(delimiter)
}

struct TextTable {
    records: Records,
    /// The place of the current record, if it is a row that was not returned yet.
    first: Option<Place>,
    /// The cells of the first record.
    header: Vec<String>,
    has_header: bool,
    columns: FieldColumns,
}

impl Iterator for TextTable {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        loop {
            let record = match self.first.take() {
                Some(place) => Ok(Some((place, Ok(())))),
                None => self.records.next_record(),
            };
            let (place, state) = match record {
                Ok(record) => record?,
                Err(error) => return Some(Err(error)),
            };
            if !self.records.has_mark() || !self.has_header {
                return Some(Ok(PromptRow::new(place, state.and_then(|()| self.parse()))));
            }
            // A file was appended, with a header of its own.
            if state.is_err() || names(&self.records) != self.header {
                let name = &self.records.text.name;
                return Some(Err(bad_input!(
                    "{name}: {place}: there is a byte order mark, as where files are joined, but not the first header \
                     behind it; read them one by one"
                )));
            }
        }
    }
}

impl TextTable {
    /// The current record.
    fn parse(&self) -> Result<PromptRecord, String> {
        let Self { records, header, columns, .. } = self;
        let cells: Vec<&[u8]> = records.cells().collect();
        if cells.len() != header.len() {
            let first = if self.has_header { "header" } else { "first line" };
            return Err(format!("{} cells where the {first} has {}", cells.len(), header.len()));
        }
        if records.has_nul() {
            return Err(format!("the record holds {NUL}"));
        }
        let mut builder = RecordBuilder::new(columns.names());
        for &(index, field) in &columns.columns {
            let cell = std::str::from_utf8(cells[index])
                .map_err(|_| format!("the cell in column {} is not UTF-8; convert the file", index + 1))?;
            builder.set(field, Scalar::of_cell(field, cell))?;
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::lines::MAX_BYTES;
    use crate::rows::tests::{Dribble, read_stream, read_with, record};
    use std::io::{self, Read};

    fn read(text: &str) -> Vec<String> {
        read_with(text, &CSV, None)
    }

    #[test]
    fn records_may_span_lines() {
        let text = "id,prompt\r\n1,a red apple\r\n\r\n\n2,\"two\nlines, \"\"quoted\"\"\"\n3,\n4,last";
        let expected = ["line 2: a red apple", "line 5: two\nlines, \"quoted\"", "line 7: ", "line 8: last"];
        assert_eq!(read(text), expected);
        assert_eq!(read(&text.replace('\n', "\r\n").replace("\r\r", "\r")).len(), 4);
        assert_eq!(read_with("prompt\tid\na, b\t1\n", &TSV, None), ["line 2: a, b"]);
    }

    #[test]
    fn columns_are_found_by_name() {
        assert_eq!(read("url,prompt,caption\nu,p,c\n"), ["line 2: p"]);
        assert_eq!(read("id, caption \n1,c\n"), ["line 2: c"], "the only column that is not a setting");
        let wanted = |text: &str, column| read_with(text, &CSV, Some(column));
        assert_eq!(wanted("prompt,caption\np,c\n", "caption"), ["line 2: c"]);
        assert_eq!(
            wanted("id,seed\none,two\n", "id"),
            ["line 2: !\"seed\" must be a whole number between 0 and 18446744073709551615, not \"two\""]
        );
        let advice = "name one with --prompt-column, or give --no-header if it has no header";
        let missing = format!("error: rows has no column \"x\", only \"prompt\", \"id\"; {advice}");
        assert_eq!(wanted("prompt,id\np,1\n", "x"), [missing]);
        let unclear = format!("error: rows has no column \"prompt\", only \"a\", \"b\"; {advice}");
        assert_eq!(read("a,b\n1,2\n"), [unclear]);
    }

    #[test]
    fn a_header_that_is_missing_or_ambiguous_is_refused() {
        let empty = "error: rows is empty; a header with the names of the columns is needed";
        assert_eq!(read(""), [empty]);
        assert_eq!(read("\n\r\n"), [empty]);
        assert_eq!(read("prompt,prompt\na,b\n"), ["error: rows has two columns \"prompt\"; rename one of them"]);
        assert_eq!(read("prompt,seed,seed\n"), ["error: rows has two columns \"seed\"; rename one of them"]);
        assert_eq!(read("prompt,url,url\na,b,c\n"), ["line 2: a"], "columns that are not read may have the same name");
        let read = read_with(b"prompt,\xff\n".to_vec(), &CSV, None);
        assert_eq!(read, ["error: rows: line 1: the header is not UTF-8; convert the file"]);
    }

    #[test]
    fn cells_beside_the_prompt_are_settings() {
        let record_of = |cells: &str| {
            record(format!("prompt,id,negative_prompt,seed,guidance_scale,steps,samples\n{cells}\n"), &CSV)
        };
        let full = record_of("a,007,green,18446744073709551615,-2.5, 10 ,3");
        assert_eq!((full.id.as_deref(), full.negative_prompt.as_deref()), (Some("007"), Some("green")));
        assert_eq!((full.seed, full.guidance_scale), (Some(u64::MAX), Some(-2.5)));
        assert_eq!((full.steps, full.samples), (Some(10), Some(3)));
        assert_eq!(record_of("a,,,,,,"), PromptRecord::new("a"), "an empty cell is no value");
    }

    #[test]
    fn a_bad_record_is_a_bad_row() {
        let rows = b"prompt,seed\na,1\nb\nc,1,2\n\xff,1\nd,7.5\n\"e\nf\",-1\ng,2\n".to_vec();
        let range = "\"seed\" must be a whole number between 0 and 18446744073709551615, not";
        let expected = [
            "line 2: a".to_string(),
            "line 3: !1 cells where the header has 2".into(),
            "line 4: !3 cells where the header has 2".into(),
            "line 5: !the cell in column 1 is not UTF-8; convert the file".into(),
            format!("line 6: !{range} 7.5"),
            format!("line 7: !{range} -1"),
            "line 9: g".into(),
        ];
        assert_eq!(read_with(rows, &CSV, None), expected);
    }

    #[test]
    fn a_quote_that_is_never_closed_spoils_only_its_line() {
        let open =
            "line 3: !a quote opens in this record that is never closed; close it, or double the quotes in the cell";
        for rest in ["\"b\nc\nd\n", "\"b\nc\nd"] {
            assert_eq!(read(&format!("prompt\na\n{rest}")), ["line 2: a", open, "line 4: c", "line 5: d"], "{rest:?}");
        }
        assert_eq!(read("prompt\na\n\"b\n"), ["line 2: a", open]);
        assert_eq!(read("prompt\n5\" nail\na \"b\" c"), ["line 2: 5\" nail", "line 3: a \"b\" c"]);
        assert_eq!(read("prompt\n\"a\nb\""), ["line 2: a\nb"], "no line break at the end");
        assert_eq!(read("\"prompt\na\n").len(), 1, "a header too");
    }

    #[test]
    fn a_cell_that_goes_on_after_its_closing_quote_spoils_only_its_line() {
        let more = "!a cell goes on after its closing quote; double the quotes in the cell";
        let text = "prompt,id\n\"big\" cat,1\na,2\n\"b,3\nc,4\n\"d\",5\n\"e\n\"\"f\"\"\",6\n";
        let expected = [
            format!("line 2: {more}"),
            "line 3: a".into(),
            format!("line 4: {more}"),
            "line 5: c".into(),
            "line 6: d".into(),
            "line 7: e\n\"f\"".into(),
        ];
        assert_eq!(read(text), expected);
        assert_eq!(read(&text.replace('\n', "\r\n")).len(), 6);
    }

    #[test]
    fn quotes_in_tsv_are_characters_unless_all_are_closed_on_their_line() {
        let tsv = |text: &str| read_with(text, &TSV, None);
        let text = "prompt\tid\n\"a\tb\"\t1\n\"big\" cat\t2\n\"open\t3\nx\"\t4\n\"say \"\"hi\"\"\"\t5\r\n\"\"\t6";
        let prompts = ["a\tb", "\"big\" cat", "\"open", "x\"", "say \"hi\"", ""];
        let expected: Vec<String> = (2..).zip(prompts).map(|(line, prompt)| format!("line {line}: {prompt}")).collect();
        assert_eq!(tsv(text), expected);
        assert_eq!(tsv("prompt\n\"last"), ["line 2: \"last"]);
    }

    #[test]
    fn a_record_that_never_ends_does_not_fill_the_memory() {
        let endless = || io::repeat(b'x').take(MAX_BYTES as u64 + 10);
        let long = "line 3: !the record is longer than 16 MiB; is a quote not closed?";
        for start in ["prompt\nfine\n\"", "prompt\nfine\n"] {
            let text = io::Cursor::new(start).chain(endless()).chain(io::Cursor::new("\nnext\n"));
            assert_eq!(read_stream(text, &CSV, None), ["line 2: fine", long, "line 4: next"]);
        }
        let line = "x".repeat(1023) + "\n";
        let count = MAX_BYTES / line.len() + 10;
        let rows = read(&format!("prompt\n\"{}", line.repeat(count)));
        assert_eq!((rows.len(), &*rows[0], rows[1].len()), (count, &*long.replace('3', "2"), "line 3: ".len() + 1023));
        let blank = format!("prompt\n{}a\n", "\r".repeat(MAX_BYTES + 10));
        assert_eq!(self::read(&blank).len(), 1, "blank lines are not part of a record");
        assert_eq!(read("prompt\ra\rb"), ["line 2: a", "line 3: b"], "lines may end in carriage returns");
    }

    #[test]
    fn a_record_is_returned_as_soon_as_it_has_arrived() {
        for pieces in [["prompt\n", "a\n", "b\n"], ["prompt\r\n", "a\r\n", "b\r\n"], ["prompt\n", "\"a\"\n", "b\n"]] {
            Dribble::check(&pieces, &CSV, 2, "line 2: a");
        }
    }
}
