//! Counters for Prometheus, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// Upper bounds of the buckets of times, in seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// Upper bounds of the buckets of batch sizes, in rows.
const ROWS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// All counters.
#[derive(Debug)]
pub(super) struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// By route and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    request_seconds: Histogram,
    rows: u64,
    failed_rows: u64,
    batch_rows: Histogram,
    queue_seconds: Histogram,
    compute_seconds: Histogram,
    tokens: u64,
    cache_hits: u64,
    cache_misses: u64,
}

/// What is not counted but measured when it is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gauges {
    pub(super) is_ready: bool,
    pub(super) queue_rows: usize,
    pub(super) connections: usize,
    pub(super) cache_bytes: usize,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let counts = Counts {
            requests: BTreeMap::new(),
            request_seconds: Histogram::new(&SECONDS),
            rows: 0,
            failed_rows: 0,
            batch_rows: Histogram::new(&ROWS),
            queue_seconds: Histogram::new(&SECONDS),
            compute_seconds: Histogram::new(&SECONDS),
            tokens: 0,
            cache_hits: 0,
            cache_misses: 0,
        };
        Self { counts: Mutex::new(counts) }
    }

    /// A request was answered, or its client has left.
    pub(super) fn request(&self, route: &'static str, status: u16, time: Duration) {
        let mut counts = self.lock();
        *counts.requests.entry((route, status)).or_default() += 1;
        counts.request_seconds.add(time.as_secs_f64());
    }

    /// A batch is about to be computed, whose rows have waited for so long.
    pub(super) fn batch(&self, waited: impl Iterator<Item = Duration>) {
        let mut counts = self.lock();
        let mut rows = 0;
        for time in waited {
            counts.queue_seconds.add(time.as_secs_f64());
            rows += 1;
        }
        counts.batch_rows.add(f64::from(rows));
    }

    /// A batch took so long.
    pub(super) fn computed(&self, time: Duration) {
        self.lock().compute_seconds.add(time.as_secs_f64());
    }

    /// So many rows were computed.
    pub(super) fn rows(&self, done: usize, failed: usize) {
        let mut counts = self.lock();
        counts.rows += done as u64;
        counts.failed_rows += failed as u64;
    }

    /// Rows were asked for that have so many tokens; so many were in the cache.
    pub(super) fn asked(&self, tokens: usize, hits: usize, misses: usize) {
        let mut counts = self.lock();
        counts.tokens += tokens as u64;
        counts.cache_hits += hits as u64;
        counts.cache_misses += misses as u64;
    }

    /// All counters as text.
    pub(super) fn text(&self, gauges: Gauges) -> String {
        let counts = self.lock();
        let mut text = Text::default();
        text.about("requests_total", "counter", "Requests by route and status; 499 is a client that left.");
        for ((route, status), count) in &counts.requests {
            text.line(&format!("requests_total{{route=\"{route}\",status=\"{status}\"}}"), *count as f64);
        }
        text.histogram(
            "request_seconds",
            "Time from the head of a request to the head of its response.",
            &counts.request_seconds,
        );
        text.one("rows_total", "counter", "Rows computed.", counts.rows as f64);
        text.one("failed_rows_total", "counter", "Rows that the model failed on.", counts.failed_rows as f64);
        text.histogram("batch_rows", "Rows of a batch.", &counts.batch_rows);
        text.histogram("queue_seconds", "Time that a row waited.", &counts.queue_seconds);
        text.histogram("compute_seconds", "Time that a batch took to compute.", &counts.compute_seconds);
        text.one("tokens_total", "counter", "Tokens of prompts, start and end included.", counts.tokens as f64);
        text.one("cache_hits_total", "counter", "Rows that were in the cache.", counts.cache_hits as f64);
        text.one("cache_misses_total", "counter", "Rows that were not in the cache.", counts.cache_misses as f64);
        text.one("cache_bytes", "gauge", "Memory of the cache.", gauges.cache_bytes as f64);
        text.one("queue_rows", "gauge", "Rows that wait.", gauges.queue_rows as f64);
        text.one("connections", "gauge", "Open connections.", gauges.connections as f64);
        text.one("ready", "gauge", "1 if the model is loaded and the server takes requests.", gauges.is_ready.into());
        drop(counts);
        if let Some(bytes) = resident_bytes() {
            text.text += "# HELP process_resident_memory_bytes Resident memory.\n";
            text.text +=
                &format!("# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}\n");
        }
        text.text
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values counted in buckets.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }
}

#[derive(Default)]
struct Text {
    text: String,
}

impl Text {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        self.text += &format!("# HELP prior_embed_{name} {help}\n# TYPE prior_embed_{name} {kind}\n");
    }

    fn line(&mut self, name: &str, value: f64) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "prior_embed_{name} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.about(name, kind, help);
        self.line(name, value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.about(name, "histogram", help);
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".into()]);
        let mut total = 0;
        for (bound, count) in bounds.zip(&histogram.counts) {
            total += count;
            self.line(&format!("{name}_bucket{{le=\"{bound}\"}}"), total as f64);
        }
        self.line(&format!("{name}_sum"), histogram.sum);
        self.line(&format!("{name}_count"), total as f64);
    }
}

/// Resident memory of the process, if the system tells.
fn resident_bytes() -> Option<u64> {
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = System::new();
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), false, memory);
    system.process(process).map(sysinfo::Process::memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bounds() {
        let metrics = Metrics::new();
        let batch = |rows: usize| metrics.batch((0..rows).map(|_| Duration::ZERO));
        [1, 2, 2, 64, 65, 1000].into_iter().for_each(batch);
        metrics.request("/embed", 200, Duration::from_millis(3));
        let text = metrics.text(Gauges { is_ready: true, queue_rows: 3, connections: 1, cache_bytes: 0 });
        for line in [
            "batch_rows_bucket{le=\"1\"} 1",
            "batch_rows_bucket{le=\"2\"} 3",
            "batch_rows_bucket{le=\"64\"} 4",
            "batch_rows_bucket{le=\"+Inf\"} 6",
            "batch_rows_sum 1134",
            "batch_rows_count 6",
            "requests_total{route=\"/embed\",status=\"200\"} 1",
            "request_seconds_bucket{le=\"0.0025\"} 0",
            "queue_rows 3",
        ] {
            assert!(text.lines().any(|found| found == format!("prior_embed_{line}")), "{line} is not in\n{text}");
        }
        let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        assert!(memory.unwrap().parse::<u64>().unwrap() > 1 << 20);
    }
}
