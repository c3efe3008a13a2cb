//! Formats with a row a line.

use super::input::Text;
use super::record::{Place, PromptRecord, PromptRow, PromptRows};
use anyhow::Result;
use std::io::{self, BufRead, Read};

/// The length limit of a line, record or value: a file without line breaks must not fill the memory.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// U+FEFF, which may begin a line where files were concatenated.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// Describes a NUL in a message.
pub(super) const NUL: &str = "a NUL, which no text has; is it UTF-16? convert the file to UTF-8";

/// Calls `parse` for each line of `text` that is not blank, without its line end.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the text cannot be read.
pub(super) fn rows(
    mut text: Text,
    parse: impl FnMut(&str, Place) -> Result<PromptRecord, String> + Send + 'static,
) -> Result<PromptRows> {
    let ending = text.line_ending().map_err(|cause| text.unreadable(Place::Line(1), cause))?;
    Ok(Box::new(Lines { text, parse, ending, line: Vec::new(), number: 0, is_truncated: false }))
}

struct Lines<P> {
    text: Text,
    parse: P,
    /// The last byte of each line.
    ending: u8,
    /// The current line without its end.
    line: Vec<u8>,
    /// Its number, counted from 1.
    number: u64,
    /// Whether the rest of the current line was not read, because it is too long.
    is_truncated: bool,
}

impl<P: FnMut(&str, Place) -> Result<PromptRecord, String>> Iterator for Lines<P> {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        loop {
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(cause) => return Some(Err(self.text.unreadable(Place::Line(self.number), cause))),
            }
            if let Some(record) = self.parse_line() {
                return Some(Ok(PromptRow::new(Place::Line(self.number), record)));
            }
        }
    }
}

impl<P: FnMut(&str, Place) -> Result<PromptRecord, String>> Lines<P> {
    /// Reads the next line; false at the end of the text.
    fn read_line(&mut self) -> io::Result<bool> {
        if std::mem::take(&mut self.is_truncated) {
            // Only now, so that a caller who stops at the bad row does not wait for the line's end.
            self.text.reader.skip_until(self.ending)?;
        }
        self.number += 1;
        self.line.clear();
        let limit = MAX_BYTES as u64 + 1;
        let read = self.text.reader.by_ref().take(limit).read_until(self.ending, &mut self.line)?;
        if self.line.pop_if(|byte| *byte == self.ending).is_none() {
            self.is_truncated = read > MAX_BYTES;
        }
        while self.line.pop_if(|byte| *byte == b'\r').is_some() {}
        Ok(read > 0)
    }

    /// Parses the current line; `None` if it is blank.
    fn parse_line(&mut self) -> Option<Result<PromptRecord, String>> {
        if self.is_truncated {
            return Some(Err(format!("the line is longer than {} MiB", MAX_BYTES >> 20)));
        }
        if memchr::memchr(0, &self.line).is_some() {
            return Some(Err(format!("the line holds {NUL}")));
        }
        match std::str::from_utf8(&self.line).map(|line| line.trim_start_matches(['\n', BYTE_ORDER_MARK])) {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some((self.parse)(line, Place::Line(self.number))),
            Err(error) => {
                Some(Err(format!("the line is not UTF-8 from byte {} on; convert the file", error.valid_up_to() + 1)))
            }
        }
    }
}
