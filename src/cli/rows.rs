//! `prior-embed rows FILE`: what a prompt file holds, as a run reads and numbers it.

use super::args::{at_least_one, text, warn_no_effect};
use super::context::Context;
use super::stdout::{print, write_with};
use super::values::{on_error, prompt_format, range};
use crate::bad_input;
use crate::job::{OnError, refused};
use crate::rows::{BadRow, PromptFormat, PromptReader, PromptRecord, PromptRow, ReadOptions};
use anyhow::Result;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;

/// Print the rows of a prompt file as JSON Lines: what a run reads, and how it numbers it
///
/// Each line has `row`, the number of the first row that the prompt gives, and what the file says of it: `prompt`, `id`,
/// `negative_prompt`, `seed`, `guidance_scale`, `steps` and `samples`. What only a model can tell is not checked: more
/// steps than it supports, for example.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File of prompts: .txt, .jsonl, .csv, .tsv or .parquet; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Format of the prompts if not by extension: txt, jsonl, csv, tsv or parquet
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = prompt_format())]
    format_in: Option<&'static PromptFormat>,

    /// Column, or key in .jsonl, of the prompts [default: prompt, or the only one]
    #[arg(long, value_name = "NAME", value_parser = text())]
    prompt_column: Option<String>,

    /// The .csv or .tsv file has no header line; --prompt-column is then a number, from 1
    #[arg(long)]
    no_header: bool,

    /// What to do with a row that cannot be used: fail, or skip, which prints `place` and `reason` in the prompt's stead
    #[arg(long, value_name = "WHAT", default_value = "fail", hide_possible_values = true, value_parser = on_error())]
    on_error: OnError,

    /// Rows of a prompt without `samples` of its own
    #[arg(long, value_name = "K", default_value_t = 1, allow_negative_numbers = true,
          value_parser = at_least_one("a number of samples"))]
    samples_per_prompt: usize,

    /// Print only the prompts at places A to B, counted from 0, without B
    #[arg(long, value_name = "A..B", value_parser = range)]
    range: Option<Range<u64>>,

    /// Print only how many prompts and rows there are, as JSON
    #[arg(long)]
    count: bool,
}

/// A line, whose keys are those of a prompt file.
#[derive(Serialize)]
struct Line<'a> {
    row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<usize>,
    place: String,
}

/// A line for a row that cannot be used.
#[derive(Serialize)]
struct BadLine<'a> {
    row: u64,
    place: String,
    reason: &'a str,
}

/// What `--count` prints.
#[derive(Serialize)]
struct Count {
    prompts: u64,
    rows: u64,
}

/// Prints the rows.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the file cannot be read, or a row cannot be used and that is an error; if printing
/// fails.
pub(super) fn run(args: &Args, _: &Context) -> Result<u8> {
    if args.count && args.range.is_some() {
        warn_no_effect("--range", "--count is of all prompts");
    }
    let read = ReadOptions {
        format: args.format_in,
        prompt_column: args.prompt_column.clone(),
        no_header: args.no_header,
        ..ReadOptions::default()
    };
    let mut rows = Rows { reader: PromptReader::open(&args.file.clone().into(), &read)?, args, prompts: 0, rows: 0 };
    if args.count {
        while rows.next_row()?.is_some() {}
        print(&serde_json::to_string(&Count { prompts: rows.prompts, rows: rows.rows })?)?;
        return Ok(0);
    }
    let mut failure = None;
    write_with(|| {
        let mut out = BufWriter::new(io::stdout().lock());
        failure = rows.print(&mut out)?.err();
        out.flush()
    })?;
    failure.map_or(Ok(0), Err)
}

/// The rows of a file, numbered.
struct Rows<'a> {
    reader: PromptReader,
    args: &'a Args,
    /// Prompts so far, those that cannot be used among them.
    prompts: u64,
    /// Rows so far.
    rows: u64,
}

impl Rows<'_> {
    /// The next prompt and the number of its first row.
    fn next_row(&mut self) -> Result<Option<(u64, PromptRow)>> {
        let Some(entry) = self.reader.next().transpose()? else { return Ok(None) };
        for notice in self.reader.take_notices() {
            let level = if notice.is_warning { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "{}", notice.text);
        }
        let own = match &entry {
            PromptRow::Bad(row) if self.args.on_error == OnError::Fail => {
                return Err(refused(self.reader.name(), row));
            }
            PromptRow::Bad(_) => None,
            PromptRow::Prompt { record, .. } => record.samples,
        };
        let (row, samples) = (self.rows, own.unwrap_or(self.args.samples_per_prompt) as u64);
        let name = self.reader.name();
        self.rows = row.checked_add(samples).ok_or_else(|| bad_input!("{name}: more rows than can be counted"))?;
        self.prompts += 1;
        Ok(Some((row, entry)))
    }

    /// Prints those that are asked for. The inner result is that of reading.
    fn print(&mut self, out: &mut impl Write) -> io::Result<Result<()>> {
        let range = self.args.range.clone().unwrap_or(0..u64::MAX);
        while self.prompts < range.end {
            let (row, entry) = match self.next_row() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            };
            if self.prompts <= range.start {
                continue;
            }
            match &entry {
                PromptRow::Prompt { place, record } => serde_json::to_writer(&mut *out, &line(row, place, record))?,
                PromptRow::Bad(BadRow { place, reason }) => {
                    serde_json::to_writer(&mut *out, &BadLine { row, place: place.to_string(), reason })?;
                }
            }
            out.write_all(b"\n")?;
        }
        Ok(Ok(()))
    }
}

fn line<'a>(row: u64, place: &impl ToString, record: &'a PromptRecord) -> Line<'a> {
    Line {
        row,
        id: record.id.as_deref(),
        prompt: &record.prompt,
        negative_prompt: record.negative_prompt.as_deref(),
        seed: record.seed,
        guidance_scale: record.guidance_scale,
        steps: record.steps,
        samples: record.samples,
        place: place.to_string(),
    }
}
