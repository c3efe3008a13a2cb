//! What a person sees while the program runs, all of it on standard error: bars on a terminal, warnings, the error.

use super::errors::printable;
use super::notices::Notices;
use crate::hub;
use crate::job::Watcher;
use crate::rows::Notice;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a line tells how a download or a run gets on where a bar cannot be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// How often the bar of a run moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// What that bar counts a row as, so that it also moves within one.
const PARTS_OF_A_ROW: f64 = 1000.0;

/// Standard error, shared by bars and lines so that neither breaks the other.
#[derive(Debug, Clone)]
pub struct Screen {
    bars: MultiProgress,
    quiet: bool,
}

impl Screen {
    /// Also makes the screen the place where the library's log lines go.
    pub fn new(quiet: bool, verbose: bool) -> Self {
        let screen = Self { bars: MultiProgress::new(), quiet };
        log::set_max_level(match (quiet, verbose) {
            (true, _) => LevelFilter::Off,
            (_, true) => LevelFilter::Info,
            _ => LevelFilter::Warn,
        });
        // Fails only if a logger is there already, which then does as well.
        let _ = log::set_boxed_logger(Box::new(screen.clone()));
        screen
    }

    /// Prints a line that is no warning, which is worth a look all the same.
    pub fn note(&self, line: &str) {
        if !self.quiet {
            self.line(&printable(line));
        }
    }

    /// Whether bars are drawn: on a terminal that can, and while it is there. indicatif would panic, or keep what it cannot
    /// draw, where one is gone.
    fn has_bars(&self) -> bool {
        if !std::io::stderr().is_terminal() {
            self.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        !self.bars.is_hidden()
    }

    /// Prints a line above the bars.
    fn line(&self, line: &str) {
        if self.has_bars() { self.bars.suspend(|| tell(line)) } else { tell(line) }
    }

    /// Prints the line that ends a failed run.
    pub fn error(&self, line: &str) {
        // A library may have left a bar behind.
        let _ = self.bars.clear();
        tell(&format!("error: {line}"));
    }

    /// A spinner for work of unknown length; its message says what goes on.
    pub fn spinner(&self) -> ProgressBar {
        let spinner = self.add(ProgressBar::new_spinner());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// A bar for rows, in parts of a row; without a length, where their number is not known, a spinner.
    fn rows(&self, rows: Option<u64>) -> ProgressBar {
        let Some(rows) = rows else { return self.spinner() };
        let style = ProgressStyle::with_template("{wide_bar} {msg}");
        let bar = self.add(ProgressBar::new((rows as f64 * PARTS_OF_A_ROW) as u64));
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// A bar for `len` bytes to download.
    fn bytes(&self, len: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
        let bar = self.add(ProgressBar::new(len));
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// indicatif draws nothing where standard error is no terminal, or one that cannot go back in a line.
    fn add(&self, bar: ProgressBar) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { self.bars.add(bar) }
    }
}

/// Writes a line to standard error at once. Where that is closed or full, nobody is left to tell.
pub fn tell(line: &str) {
    let _ = std::io::stderr().write_all(format!("prior-embed: {line}\n").as_bytes());
}

/// Shows how a download gets on: a bar on a terminal, elsewhere a line a minute.
pub struct FetchProgress<'a> {
    screen: &'a Screen,
    model: String,
    bytes: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'a> FetchProgress<'a> {
    /// Shows nothing until something is downloaded.
    pub fn new(screen: &'a Screen) -> Self {
        Self { screen, model: String::new(), bytes: 0, bar: None, last_line: Instant::now() }
    }
}

impl hub::Progress for FetchProgress<'_> {
    fn begin(&mut self, model: &str, files: usize, bytes: u64) {
        let files = if files == 1 { "1 file".to_string() } else { format!("{files} files") };
        self.screen.note(&format!("downloading {model}: {files}, {}", size(bytes)));
        (self.model, self.bytes, self.last_line) = (model.into(), bytes, Instant::now());
        if self.screen.has_bars() {
            self.bar = Some(self.screen.bytes(bytes));
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

/// A number of bytes as people say it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Shows how a run gets on: a bar on a terminal, elsewhere a line a minute.
pub struct RunProgress {
    screen: Screen,
    state: Mutex<State>,
}

/// How far a run is.
struct State {
    /// What is said when the run begins.
    note: Option<String>,
    spinner: Option<ProgressBar>,
    bar: Option<ProgressBar>,
    total: Option<u64>,
    /// Rows that an earlier run left.
    resumed: u64,
    written: u64,
    batches: u64,
    cut_off: Notices,
    skipped: Notices,
    /// Rows computed by this run, with the parts that are done of those under way.
    computed: f64,
    /// When this run began to compute.
    start: Instant,
    last_line: Instant,
    last_move: Instant,
}

impl RunProgress {
    /// Shows nothing until the run begins, and then `note` first.
    pub fn new(screen: &Screen, note: Option<String>) -> Self {
        let now = Instant::now();
        let state = State {
            note,
            spinner: None,
            bar: None,
            total: None,
            resumed: 0,
            written: 0,
            batches: 0,
            cut_off: Notices::new(log::log_enabled!(log::Level::Info)),
            skipped: Notices::new(log::log_enabled!(log::Level::Info)),
            computed: 0.0,
            start: now,
            last_line: now,
            last_move: now,
        };
        Self { screen: screen.clone(), state: Mutex::new(state) }
    }

    /// Rows whose prompts were cut off by this run, and rows that could not be used and no report tells of.
    pub fn cut_off_and_skipped(&self) -> (u64, u64) {
        let state = self.state();
        (state.cut_off.rows(), state.skipped.rows())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for RunProgress {
    fn begin(&self, rows: Option<u64>, done: u64) {
        let mut state = self.state();
        if let Some(note) = state.note.take() {
            self.screen.note(&note);
        }
        if done > 0 {
            self.screen.note(&format!("going on after {} of an earlier run", self::rows(done)));
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
            state.bar = self.screen.has_bars().then(|| self.screen.rows(state.total));
        }
        state.computed += rows;
    }

    fn written(&self, rows: u64, batches: u64) {
        let mut state = self.state();
        (state.written, state.batches) = (rows, batches);
    }

    fn cut_off(&self, rows: u64, text: &str) {
        if self.state().cut_off.add(rows, text) {
            log::warn!("{text}");
        }
    }

    fn notice(&self, notice: &Notice) {
        match notice {
            Notice { is_warning: true, text } => log::warn!("{text}"),
            // What is plain to whoever wrote the file is no news in a script.
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
                    // The terminal is gone; lines take over.
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

    fn end(&self) {
        let mut state = self.state();
        let state = &mut *state;
        state.spinner.take().iter().chain(&state.bar.take()).for_each(ProgressBar::finish_and_clear);
        if let Some(count) = state.cut_off.take_rest() {
            log::warn!("the prompts of {} were too long and cut off; -v names all", self::rows(count));
        }
        if let Some(count) = state.skipped.take_rest() {
            log::warn!("{} could not be used and are zeros; -v names all", self::rows(count));
        }
    }
}

impl State {
    /// How far the run is after so much time: `1280 of 4000 rows, 95.2 rows/s, 0:28 left, batch 20`.
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

/// Seconds as people read them: `0:28`, `2:01:28`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A number of rows in words.
pub fn rows(count: u64) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}

/// Whether a line was not shown before, as far as the first few are remembered: pipelines side by side load the same model.
fn is_new(line: &str) -> bool {
    const MOST: usize = 64;
    static SHOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = !shown.iter().any(|other| other == line);
    if is_new && shown.len() < MOST {
        shown.push(line.to_string());
    }
    is_new
}

impl Log for Screen {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("prior_embed")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Warn => "warning".to_string(),
                level => level.as_str().to_lowercase(),
            };
            let line = format!("{level}: {}", printable(&record.args().to_string()));
            if is_new(&line) {
                self.line(&line);
            }
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_the_run_is_and_how_long_it_takes() {
        let progress = RunProgress::new(&Screen { bars: MultiProgress::new(), quiet: true }, None);
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
    fn times_are_told_as_on_a_clock() {
        let times = [0.4, 59.6, 3599.0, 7288.0].map(clock);
        assert_eq!(times, ["0:00", "1:00", "59:59", "2:01:28"]);
    }
}
