//! Progress of downloads and runs: a bar on a terminal, elsewhere a line a minute.

use super::screen::Screen;
use super::warnings::RowWarnings;
use crate::hub;
use crate::job::JobProgress;
use crate::rows::Notice;
use crate::text::printable;
use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a line is printed where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// How often the bar of a run moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// What that bar counts a row as, so that it also moves within a row.
const PARTS_OF_A_ROW: f64 = 1000.0;

/// Shows the progress of a download.
pub(super) struct FetchProgress<'a> {
    screen: &'a Screen,
    model: String,
    bytes: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'a> FetchProgress<'a> {
    /// Shows nothing until something is downloaded.
    pub(super) fn new(screen: &'a Screen) -> Self {
        Self { screen, model: String::new(), bytes: 0, bar: None, last_line: Instant::now() }
    }
}

impl hub::DownloadProgress for FetchProgress<'_> {
    fn begin(&mut self, model: &str, files: usize, bytes: u64) {
        let files = if files == 1 { "1 file".to_string() } else { format!("{files} files") };
        self.screen.note(&format!("downloading {model}: {files}, {}", size(bytes)));
        (self.model, self.bytes, self.last_line) = (model.into(), bytes, Instant::now());
        if self.screen.has_bars() {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
            self.bar = Some(self.screen.bar(Some(bytes), template));
        }
    }

    fn position(&mut self, path: &str, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(printable(path));
            bar.set_position(bytes);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let (model, bytes, all) = (&self.model, size(bytes), size(self.bytes));
            self.screen.note(&format!("downloading {model}: {bytes} of {all}, now {path}"));
        }
    }

    fn note(&mut self, line: &str) {
        self.screen.note(line);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A number of bytes with its unit: `1.5 MB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Shows the progress of a run.
pub(super) struct RunProgress {
    screen: Screen,
    state: Mutex<State>,
}

/// How far a run is.
struct State {
    /// Printed when the run begins.
    note: Option<String>,
    spinner: Option<ProgressBar>,
    bar: Option<ProgressBar>,
    total: Option<u64>,
    /// Rows that an earlier run wrote.
    resumed: u64,
    written: u64,
    batches: u64,
    truncated: RowWarnings,
    skipped: RowWarnings,
    /// Rows computed by this run, in fractions of a row.
    computed: f64,
    /// When this run began to compute.
    start: Instant,
    last_line: Instant,
    last_move: Instant,
}

impl RunProgress {
    /// Shows nothing until the run begins, and then `note` first.
    pub(super) fn new(screen: &Screen, note: Option<String>) -> Self {
        let now = Instant::now();
        let state = State {
            note,
            spinner: None,
            bar: None,
            total: None,
            resumed: 0,
            written: 0,
            batches: 0,
            truncated: RowWarnings::new(log::log_enabled!(log::Level::Info)),
            skipped: RowWarnings::new(log::log_enabled!(log::Level::Info)),
            computed: 0.0,
            start: now,
            last_line: now,
            last_move: now,
        };
        Self { screen: screen.clone(), state: Mutex::new(state) }
    }

    /// Rows of this run whose prompts were truncated, and rows that could not be used and are in no report.
    pub(super) fn truncated_and_skipped(&self) -> (u64, u64) {
        let state = self.state();
        (state.truncated.rows(), state.skipped.rows())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobProgress for RunProgress {
    fn begin(&self, rows: Option<u64>, done: u64) {
        let mut state = self.state();
        if let Some(note) = state.note.take() {
            self.screen.note(&note);
        }
        if done > 0 {
            self.screen.note(&format!("resuming after {} of an earlier run", self::rows(done)));
        }
        (state.total, state.resumed, state.written) = (rows, done, done);
        (state.start, state.last_line) = (Instant::now(), Instant::now());
    }

    fn loading(&self, component: &str) {
        let mut state = self.state();
        // Once there is a bar, other workers load beside it.
        if state.bar.is_none() && self.screen.has_bars() {
            let screen = &self.screen;
            state.spinner.get_or_insert_with(|| screen.spinner()).set_message(format!("loading {component}"));
        }
    }

    fn computed(&self, rows: f64) {
        let mut state = self.state();
        if state.computed == 0.0 {
            // Loading is over.
            state.start = Instant::now();
            if let Some(spinner) = state.spinner.take() {
                spinner.finish_and_clear();
            }
            let length = state.total.map(|rows| (rows as f64 * PARTS_OF_A_ROW) as u64);
            state.bar = self.screen.has_bars().then(|| self.screen.bar(length, "{wide_bar} {msg}"));
        }
        state.computed += rows;
    }

    fn written(&self, rows: u64, batches: u64) {
        let mut state = self.state();
        (state.written, state.batches) = (rows, batches);
    }

    fn truncated(&self, rows: u64, text: &str) {
        if self.state().truncated.add(rows, text) {
            log::warn!("{text}");
        }
    }

    fn notice(&self, notice: &Notice) {
        match notice {
            Notice { is_warning: true, text } => log::warn!("{text}"),
            // Whoever wrote a script knows this.
            Notice { text, .. } if std::io::stderr().is_terminal() => self.screen.note(text),
            Notice { text, .. } => log::info!("{text}"),
        }
    }

    fn skipped(&self, rows: u64, text: &str) {
        if self.state().skipped.add(rows, text) {
            log::warn!("{text}");
        }
    }

    fn completing(&self, output: &str) {
        let mut state = self.state();
        let line = format!("writing {output}");
        if self.screen.has_bars() {
            state.spinner.get_or_insert_with(|| self.screen.spinner()).set_message(line);
        } else if state.start.elapsed() >= LINE_INTERVAL {
            self.screen.note(&line);
        }
    }

    fn tick(&self) {
        let mut state = self.state();
        if let Some(bar) = state.bar.clone() {
            if state.last_move.elapsed() >= BAR_INTERVAL {
                state.last_move = Instant::now();
                if !self.screen.has_bars() {
                    // The terminal is gone: print lines instead.
                    state.bar = None;
                    return;
                }
                bar.set_message(state.line(state.start.elapsed()));
                bar.set_position(((state.resumed as f64 + state.computed) * PARTS_OF_A_ROW) as u64);
            }
        } else if state.last_line.elapsed() >= LINE_INTERVAL && !self.screen.has_bars() {
            state.last_line = Instant::now();
            self.screen.note(&state.line(state.start.elapsed()));
        }
    }

    fn stopping(&self) {
        self.screen.note("stopping after the current step; press Ctrl-C again to stop at once");
    }

    fn end(&self) {
        let mut state = self.state();
        let state = &mut *state;
        state.spinner.take().iter().chain(&state.bar.take()).for_each(ProgressBar::finish_and_clear);
        if let Some(count) = state.truncated.take_rest() {
            log::warn!("the prompts of {} were too long and were truncated; -v lists them all", self::rows(count));
        }
        if let Some(count) = state.skipped.take_rest() {
            log::warn!("{} could not be used and are zeros; -v lists them all", self::rows(count));
        }
    }
}

impl State {
    /// How far the run is after some time: `1280 of 4000 rows, 95.2 rows/s, 0:28 left, batch 20`.
    fn line(&self, elapsed: Duration) -> String {
        let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
        let mut line = format!("{}{of} rows", self.written);
        let rate = self.computed / elapsed.as_secs_f64();
        if rate > 0.0 && rate.is_finite() {
            line += &format!(", {} rows/s", if rate < 10.0 { format!("{rate:.2}") } else { format!("{rate:.1}") });
            if let Some(total) = self.total {
                let left = total as f64 - self.resumed as f64 - self.computed;
                line += &format!(", {} left", clock((left / rate).max(0.0)));
            }
        }
        line + &format!(", batch {}", self.batches + 1)
    }
}

/// Seconds as on a clock: `0:28`, `2:01:28`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A number of rows in words.
pub(super) fn rows(count: u64) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_the_run_is_and_how_long_it_takes() {
        let progress = RunProgress::new(&Screen::for_test(), None);
        let line = |seconds| progress.state().line(Duration::from_secs(seconds));
        progress.begin(Some(4000), 1000);
        assert_eq!(line(5), "1000 of 4000 rows, batch 1");
        progress.computed(640.0);
        progress.written(1640, 10);
        assert_eq!(line(10), "1640 of 4000 rows, 64.0 rows/s, 0:37 left, batch 11");
        progress.begin(None, 0);
        assert_eq!(line(640), "0 rows, 1.00 rows/s, batch 11");
    }

    #[test]
    fn times_look_like_a_clock() {
        let times = [0.4, 59.6, 3599.0, 7288.0].map(clock);
        assert_eq!(times, ["0:00", "1:00", "59:59", "2:01:28"]);
    }
}
