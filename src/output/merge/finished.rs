//! Whether an output is finished already: its record says what it is, and the checksums whether it is intact.

use super::part::Part;
use crate::bad_input;
use crate::bad_input::{BadInput, OrBadInput};
use crate::dir::{Access, Dir};
use crate::output::batch::Interrupted;
use crate::output::claim::stopped_run;
use crate::output::formats::OutputFormat;
use crate::output::options::{Output, SHARD, WriteOptions};
use crate::output::paths::{has_stopped_run, record_file, resolve, shard_file, shown, working_folder};
use crate::output::record::{FileSum, ITSELF, OutputRecord};
use crate::output::shard::Shard;
use crate::output::sink::PartRow;
use anyhow::{Context, Error, Result, anyhow};
use std::path::Path;
use std::sync::atomic::Ordering;

/// The number of rows of the run that is to be resumed, if it is finished: nothing is left of it but its outputs and
/// their records. `None` if not, or if the options ask for something else.
///
/// # Errors
/// [`BadInput`] if the outputs exist and are not those of this run, as it wrote them; [`Interrupted`] at
/// [`WriteOptions::interrupt`].
pub fn finished(options: &WriteOptions) -> Result<Option<u64>> {
    let Some(outputs) = outputs(options)? else { return Ok(None) };
    let mut rows = 0;
    for output in &outputs {
        let name = shown(&output.path);
        let record = record(output, options).map_err(|error| not_this(&name, &error))?;
        let mut differences = record.differences(&OutputRecord { arrays: output.arrays, ..expected(&record, options) });
        let was = Shard { index: record.index, count: record.count };
        let is = options.shard.unwrap_or(Shard::WHOLE);
        if was != is {
            differences.push(format!("{SHARD} was {was}, is {is}"));
        }
        if !differences.is_empty() {
            return Err(bad_input!(
                "{name} is done already, and of another run: {}; give another name, or --overwrite to replace it",
                differences.join("; ")
            ));
        }
        rows = record.rows.count();
        check_contents(output, record, options)
            .map_err(|error| if error.is::<BadInput>() { not_this(&name, &error) } else { error })?;
    }
    Ok(Some(rows))
}

/// The outputs, with links followed, if `options` asks to resume a run of which nothing else is left.
fn outputs(options: &WriteOptions) -> Result<Option<Vec<Output>>> {
    if !options.resume || options.overwrite {
        return Ok(None);
    }
    let outputs = options.outputs.iter().cloned().map(resolve).collect::<Result<Vec<_>>>()?;
    let is_there = |output: &Output| {
        let record = match options.shard {
            // Another shard may have made the folder.
            Some(shard) if output.format == OutputFormat::Folder => Some(shard_file(output, shard)),
            Some(_) => return output.path.exists(),
            None => record_file(&output.path),
        };
        output.path.exists() && record.is_some_and(|file| file.is_file())
    };
    let is_stopped = |main: &Output| has_stopped_run(main, options.shard);
    let is_done = outputs.iter().all(is_there) && !outputs.first().is_none_or(is_stopped);
    Ok(is_done.then_some(outputs))
}

/// What an earlier run of the same output, stopped or finished, had for the setting `name`, if that can be told: a
/// resumed run takes what it would otherwise choose by itself. Whether it may resume is checked later.
pub fn earlier_setting(options: &WriteOptions, name: &str) -> Option<String> {
    let main = options.outputs.first().filter(|_| options.resume)?;
    let main = resolve(main.clone()).ok()?;
    let fingerprint = match outputs(options) {
        Ok(Some(_)) => record(&main, options).ok()?.fingerprint,
        _ => stopped_run(&working_folder(&main, options.shard))?,
    };
    fingerprint.value(name).map(str::to_string)
}

fn record(output: &Output, options: &WriteOptions) -> Result<OutputRecord> {
    let file = match options.shard {
        Some(_) if output.format != OutputFormat::Folder && output.format.sink().holds_numbers() => {
            return Ok(Part::open_as(&output.path, output.format)?.record);
        }
        Some(shard) => Some(shard_file(output, shard)),
        None => record_file(&output.path),
    };
    let record = file.map(|file| OutputRecord::read(&file)).transpose()?.flatten();
    let record = record.ok_or_else(|| bad_input!("it has no record"))?;
    record.check().or_bad_input(|| "its record contradicts itself".into())?;
    Ok(record)
}

fn not_this(name: &str, error: &Error) -> Error {
    bad_input!("{name} is there already, and not as this run wrote it ({error}); give another name, or --overwrite")
}

/// Compares an output with the checksums in its record.
fn check_contents(output: &Output, record: OutputRecord, options: &WriteOptions) -> Result<()> {
    let check_interrupt = || match options.interrupt.load(Ordering::Relaxed) {
        true => Err(Error::new(Interrupted)),
        false => Ok(()),
    };
    if !record.checksums.files.is_empty() {
        for (path, sum) in &record.checksums.files {
            check_interrupt()?;
            let (file, path) = match path.as_str() {
                ITSELF => (output.path.clone(), "it"),
                path => (output.path.join(path), path),
            };
            let found = sum_of(&file).or_bad_input(|| format!("cannot read {path}"))?;
            if found != *sum {
                return Err(bad_input!("{path} is damaged"));
            }
        }
        return Ok(());
    }
    let rows = record.rows.clone();
    let mut part = Part::with_record(&output.path, output.format, record)?;
    let mut row = PartRow::default();
    for number in rows.into_rows() {
        check_interrupt()?;
        part.next_row(number, &mut row)?;
    }
    part.check_end()
}

fn sum_of(path: &Path) -> Result<FileSum> {
    let name = path.file_name().ok_or_else(|| anyhow!("not a file"))?;
    let dir = Dir::open(crate::files::parent(path)).context("its folder")?;
    Ok(FileSum::of(dir.open_any_file(name, Access::Read)?)?)
}

/// The record that these options would leave.
fn expected(record: &OutputRecord, options: &WriteOptions) -> OutputRecord {
    OutputRecord {
        count: options.shard.map_or(record.count, |shard| shard.count),
        total_rows: options.total_rows.unwrap_or(record.total_rows),
        dtype: options.out_dtype,
        dim: options.dim.map_or(record.dim, |dim| options.width(record.arrays, dim)),
        fingerprint: options.record_fingerprint(),
        ..record.clone()
    }
}
