//! Formats with a row a line.

use super::source::Text;
use super::{Entry, Place, PromptRecord, Rows};
use anyhow::Result;
use std::io::{self, BufRead, Read};

/// A longer line is hardly a prompt, and a file without line breaks must not fill the memory.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The rows of `text`: what `parse` makes of each line that is not blank, a record or what is wrong with it.
pub(super) fn rows(text: Text, parse: impl FnMut(&str) -> Result<PromptRecord, String> + Send + 'static) -> Rows {
    Box::new(Lines { text, parse, line: Vec::new(), number: 0, is_cut: false })
}

struct Lines<P> {
    text: Text,
    parse: P,
    /// The current line without its end.
    line: Vec<u8>,
    /// Its number, counted from 1.
    number: u64,
    /// Whether there is more of the current line.
    is_cut: bool,
}

impl<P: FnMut(&str) -> Result<PromptRecord, String>> Iterator for Lines<P> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(cause) => return Some(Err(self.text.broken(self.place(), cause))),
            }
            if let Some(record) = self.parse_line() {
                return Some(Ok(Entry::new(self.place(), record)));
            }
        }
    }
}

impl<P: FnMut(&str) -> Result<PromptRecord, String>> Lines<P> {
    fn place(&self) -> Place {
        Place::Line(self.number)
    }

    /// Reads the next line; whether there is one.
    fn read_line(&mut self) -> io::Result<bool> {
        if std::mem::take(&mut self.is_cut) {
            // Only now, so that a caller who gives up at the bad row does not wait for its end.
            self.text.reader.skip_until(b'\n')?;
        }
        self.number += 1;
        self.line.clear();
        let limit = MAX_BYTES as u64 + 1;
        let read = self.text.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.pop_if(|byte| *byte == b'\n').is_none() {
            self.is_cut = read > MAX_BYTES;
        }
        self.line.pop_if(|byte| *byte == b'\r');
        Ok(read > 0)
    }

    /// What the current line holds, or `None` if it is blank.
    fn parse_line(&mut self) -> Option<Result<PromptRecord, String>> {
        if self.is_cut {
            return Some(Err(format!("the line is longer than {} MiB", MAX_BYTES >> 20)));
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some((self.parse)(line)),
            Err(error) => {
                Some(Err(format!("the line is not UTF-8 from byte {} on; convert the file", error.valid_up_to() + 1)))
            }
        }
    }
}
