//! `--stats FILE`: where the time went, as JSON.

use crate::io::destination::Destination;
use crate::pipeline::Timings;
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;

/// What the file holds.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    pub(super) rows: usize,
    pub(super) seconds: Seconds,
    /// The most memory that the process held; `null` where the system does not tell.
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) settings: Settings,
}

/// Seconds of wall time.
#[derive(Debug, Serialize)]
pub(super) struct Seconds {
    load: f64,
    text: f64,
    prior: f64,
    write: f64,
    total: f64,
}

impl Seconds {
    pub(super) fn new(timings: Timings, write: Duration, total: Duration) -> Self {
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            load: seconds(timings.load),
            text: seconds(timings.text),
            prior: seconds(timings.prior),
            write: seconds(write),
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
    pub(super) threads: i32,
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
