//! Formats with a row a line.

use super::source::Text;
use super::{Entry, Place, PromptRecord, Rows, record};
use anyhow::Result;
use std::io::{self, BufRead, Read};

/// A longer line is hardly a prompt, and a file without line breaks must not fill the memory.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A character that is no part of a text, but stands where one begins, or began before it was joined to another.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is wrong with a text that has NULs in it.
pub(super) const NUL: &str = "a NUL, which no text has; is it UTF-16? convert the file to UTF-8";

/// The rows of `text` as prompts, a line each.
///
/// # Errors
/// [`crate::error::BadInput`] if the text cannot be read.
pub(super) fn prompts(text: Text) -> Result<Rows> {
    let (name, notices) = (text.name.clone(), text.notices.clone());
    let mut has_warned = false;
    rows(text, move |line, place| {
        if memchr::memchr2(b'\r', b'\n', line.as_bytes()).is_some() {
            return Err(
                "the line holds a carriage return without a line feed, or the other way round; have all lines end \
                        alike, or use .jsonl"
                    .into(),
            );
        }
        if line.contains(BYTE_ORDER_MARK) && !std::mem::replace(&mut has_warned, true) {
            notices.warn(format!(
                "{name}: {place}: there is a byte order mark (U+FEFF) within the line; if files were joined there, a line \
                 break is missing"
            ));
        }
        Ok(record::of_prompt(line))
    })
}

/// The rows of `text`: what `parse` makes of each line that is not blank, a record or what is wrong with it.
///
/// # Errors
/// [`crate::error::BadInput`] if the text cannot be read.
pub(super) fn rows(
    mut text: Text,
    parse: impl FnMut(&str, Place) -> Result<PromptRecord, String> + Send + 'static,
) -> Result<Rows> {
    let ending = text.line_ending().map_err(|cause| text.broken(Place::Line(1), cause))?;
    Ok(Box::new(Lines { text, parse, ending, line: Vec::new(), number: 0, is_cut: false }))
}

struct Lines<P> {
    text: Text,
    parse: P,
    /// The byte that lines end in.
    ending: u8,
    /// The current line without its end.
    line: Vec<u8>,
    /// Its number, counted from 1.
    number: u64,
    /// Whether there is more of the current line.
    is_cut: bool,
}

impl<P: FnMut(&str, Place) -> Result<PromptRecord, String>> Iterator for Lines<P> {
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

impl<P: FnMut(&str, Place) -> Result<PromptRecord, String>> Lines<P> {
    fn place(&self) -> Place {
        Place::Line(self.number)
    }

    /// Reads the next line; whether there is one.
    fn read_line(&mut self) -> io::Result<bool> {
        if std::mem::take(&mut self.is_cut) {
            // Only now, so that a caller who gives up at the bad row does not wait for its end.
            self.text.reader.skip_until(self.ending)?;
        }
        self.number += 1;
        self.line.clear();
        let limit = MAX_BYTES as u64 + 1;
        let read = self.text.reader.by_ref().take(limit).read_until(self.ending, &mut self.line)?;
        if self.line.pop_if(|byte| *byte == self.ending).is_none() {
            self.is_cut = read > MAX_BYTES;
        }
        while self.line.pop_if(|byte| *byte == b'\r').is_some() {}
        Ok(read > 0)
    }

    /// What the current line holds, or `None` if it is blank.
    fn parse_line(&mut self) -> Option<Result<PromptRecord, String>> {
        if self.is_cut {
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
