//! `--stats FILE`: where the time went, as JSON.

use crate::job::Summary;
use crate::output::destination::Destination;
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;

/// What the file holds.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    pub(super) rows: u64,
    /// Those of them that an earlier run left.
    pub(super) resumed_rows: u64,
    /// Rows of this run whose prompts were too long and cut off.
    pub(super) cut_off_rows: u64,
    /// Rows that are zeros because they could not be used.
    pub(super) skipped_rows: u64,
    /// Rows of this run, by the time from the start of the process to the end.
    pub(super) rows_per_second: f64,
    pub(super) seconds: Seconds,
    /// The most memory that the process held; `null` where the system does not tell.
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) settings: Settings,
}

/// Seconds of wall time. Those of `load`, `text`, `tokenize` and `prior` are all workers' together, and reading happens
/// beside their work; `tokenize` is part of `text`.
#[derive(Debug, Serialize)]
pub(super) struct Seconds {
    load: f64,
    text: f64,
    tokenize: f64,
    prior: f64,
    read: f64,
    write: f64,
    total: f64,
}

impl Seconds {
    pub(super) fn new(summary: &Summary, total: Duration) -> Self {
        let timings = summary.timings;
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            load: seconds(timings.load),
            text: seconds(timings.text),
            tokenize: seconds(timings.tokenize),
            prior: seconds(timings.prior),
            read: seconds(summary.read),
            write: seconds(summary.write),
            total: seconds(total),
        }
    }
}

/// The settings that the run had, with those that were `auto` as they turned out.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    pub(super) model: String,
    pub(super) lora: Vec<String>,
    pub(super) steps: usize,
    pub(super) guidance_scale: f64,
    pub(super) seed: u64,
    pub(super) samples_per_prompt: usize,
    pub(super) negative_prompt: Option<String>,
    pub(super) scheduler: &'static str,
    pub(super) device: String,
    pub(super) dtype: &'static str,
    /// CPU threads of all workers together.
    pub(super) threads: usize,
    /// Pipelines that worked side by side.
    pub(super) workers: usize,
    pub(super) batch_size: usize,
}

impl Stats {
    pub(super) fn write(&self, destination: Destination) -> Result<()> {
        destination.write(|output| {
            serde_json::to_writer_pretty(&mut *output, self)?;
            Ok(writeln!(output)?)
        })
    }
}

/// The most memory that this process has held, in bytes.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
