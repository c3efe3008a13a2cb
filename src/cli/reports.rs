//! The reports beside an output: on rows that cannot be used, and that of `--stats` on time and memory.

use crate::bad_input;
use crate::job::{IfExists, OnError, Report};
use crate::output::destination::Destination;
use crate::output::{Arrays, OutputFormat, WriteOptions, is_stream};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// The report on rows that cannot be used. With --overwrite, that of an earlier run is replaced together with its
/// output. `is_counted`: something else tells how many there are.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it cannot be written, or nothing would tell of these rows.
pub(super) fn on_rows(write: &WriteOptions, on_error: OnError, is_counted: bool) -> Result<Option<Report>> {
    let (main, skips) = (write.base_path(), on_error == OnError::Skip);
    if is_stream(&main) {
        if skips && !is_counted {
            return Err(bad_input!(
                "--on-error skip with --quiet and a stream as --out would hide which rows are skipped; leave out \
                 --quiet, or add --stats FILE, which counts them"
            ));
        }
        return Ok(None);
    }
    let report = || Report::beside(&main, IfExists::of(write.overwrite, write.resume));
    (skips || write.overwrite).then(report).transpose()
}

/// The file of --stats, which is no other output of the run.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if it is, or cannot be written.
pub(super) fn stats(path: Option<&Path>, write: &WriteOptions, report: Option<&Report>) -> Result<Option<Destination>> {
    let Some(stats) = path.map(|path| Destination::open(path, write.overwrite)).transpose()? else { return Ok(None) };
    if let Some(output) = write.outputs.iter().find(|output| stats.is_at(&output.path)) {
        let name = match output.arrays {
            _ if output.format == OutputFormat::Picture => "--picture",
            Arrays::NEGATIVE => "--negative-out",
            Arrays::TEXT => "--text-out",
            Arrays::SCORES => "--scores",
            _ => "--out",
        };
        return Err(bad_input!("{name} and --stats are the same file; give two names"));
    }
    if report.is_some_and(|report| stats.is_at(report.path())) {
        return Err(bad_input!("--stats and the report on skipped rows are the same file; give another name"));
    }
    Ok(Some(stats))
}

/// Writes what --stats asks for.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(destination: Destination, stats: &impl Serialize) -> Result<()> {
    destination.write(|output| {
        serde_json::to_writer_pretty(&mut *output, stats)?;
        Ok(writeln!(output)?)
    })
}

/// The most memory that this process has held, in bytes; `None` if the system does not tell.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
