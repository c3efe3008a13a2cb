//! Whether an output is there already: its record says what it is, and its rows whether they are those.

use super::differences;
use super::part::{Part, PartRow};
use crate::bad_input;
use crate::bad_input::BadInput;
use crate::error::one_line;
use crate::output::shard::{Shard, ShardRecord};
use crate::output::{
    Interrupted, Output, WriteOptions, has_stopped_run, read_record, record_file, resolve, shown, stopped_run,
};
use anyhow::{Error, Result};
use std::sync::atomic::Ordering;

/// The number of rows of the run that is to be gone on with, if it is done: nothing is left of it but its outputs, and
/// these are there with records of them. `None` if not, or if the options ask for something else.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if the outputs are there and are not those of this run, with these settings, as it wrote
/// them; [`Interrupted`] at [`WriteOptions::interrupt`].
pub fn finished(options: &WriteOptions) -> Result<Option<u64>> {
    let Some(outputs) = outputs(options)? else { return Ok(None) };
    let mut rows = 0;
    for output in &outputs {
        let part = open(output, options)?;
        let name = shown(&output.path);
        let mut differences =
            differences(&part.record, &ShardRecord { arrays: output.arrays, ..expected(&part.record, options) });
        let (was, is) =
            (Shard { index: part.record.index, count: part.record.count }, options.shard.unwrap_or(Shard::WHOLE));
        if was != is {
            differences.push(format!("--shard was {was}, is {is}"));
        }
        if !differences.is_empty() {
            return Err(bad_input!(
                "{name} is done already, and of another run: {}; give another name, or --overwrite to replace it",
                differences.join("; ")
            ));
        }
        rows = part.record.rows.count();
        check_rows(part, options)
            .map_err(|error| if error.is::<BadInput>() { not_this(&name, &error) } else { error })?;
    }
    Ok(Some(rows))
}

/// Whether `options` asks to go on with a run of which there is nothing but outputs with their records; these, with links
/// followed.
fn outputs(options: &WriteOptions) -> Result<Option<Vec<Output>>> {
    if !options.resume || options.overwrite {
        return Ok(None);
    }
    let outputs = options.outputs.iter().cloned().map(resolve).collect::<Result<Vec<_>>>()?;
    let is_there = |output: &Output| {
        output.path.exists()
            && (options.shard.is_some() || record_file(&output.path).is_some_and(|file| file.is_file()))
    };
    let is_done = outputs.iter().all(is_there) && !outputs.first().is_none_or(has_stopped_run);
    Ok(is_done.then_some(outputs))
}

/// What an earlier run of the same output, stopped or done, had for the setting `name`, if that can be told: a run that
/// goes on takes what it would otherwise choose by itself. Whether it may go on is checked later.
pub fn earlier_setting(options: &WriteOptions, name: &str) -> Option<String> {
    let main = options.outputs.first().filter(|_| options.resume)?;
    let main = resolve(main.clone()).ok()?;
    let fingerprint = match outputs(options) {
        Ok(Some(_)) => open(&main, options).ok()?.record.fingerprint,
        _ => stopped_run(&main)?,
    };
    fingerprint.value(name).map(str::to_string)
}

fn open(output: &Output, options: &WriteOptions) -> Result<Part> {
    let part = match options.shard {
        Some(_) => Part::open_as(&output.path, output.format),
        None => match record_file(&output.path).map(|file| read_record(&file)).transpose()?.flatten() {
            Some(record) => Part::with_record(&output.path, output.format, record),
            None => Err(bad_input!("it has no record")),
        },
    };
    part.map_err(|error| not_this(&shown(&output.path), &error))
}

fn not_this(name: &str, error: &Error) -> Error {
    let why = one_line(error, false);
    bad_input!("{name} is there already, and not as this run wrote it ({why}); give another name, or --overwrite")
}

/// Reads all rows, and compares them with what the record says of them.
fn check_rows(mut part: Part, options: &WriteOptions) -> Result<()> {
    let mut row = PartRow::default();
    for number in part.record.rows.clone().into_rows() {
        if options.interrupt.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        part.next_row(number, &mut row)?;
    }
    part.check_end()
}

/// What the record would say if these options had made it.
fn expected(record: &ShardRecord, options: &WriteOptions) -> ShardRecord {
    ShardRecord {
        count: options.shard.map_or(record.count, |shard| shard.count),
        total_rows: options.total_rows.unwrap_or(record.total_rows),
        dtype: options.out_dtype,
        dim: options.dim.unwrap_or(record.dim),
        fingerprint: options.record_fingerprint(),
        ..record.clone()
    }
}
