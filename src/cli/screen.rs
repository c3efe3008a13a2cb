//! Standard error: bars on a terminal, warnings, the error.

use crate::text::printable;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Standard error, where lines and bars do not break each other.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    quiet: bool,
    /// Whether lines are JSON.
    is_json: Arc<AtomicBool>,
}

impl Screen {
    /// Also becomes the logger of the process.
    pub(super) fn new(quiet: bool, verbose: bool) -> Self {
        let screen = Self { bars: MultiProgress::new(), quiet, is_json: Arc::default() };
        log::set_max_level(match (quiet, verbose) {
            (true, _) => LevelFilter::Off,
            (_, true) => LevelFilter::Info,
            _ => LevelFilter::Warn,
        });
        // Fails only if there is a logger already, which will do.
        let _ = log::set_boxed_logger(Box::new(screen.clone()));
        screen
    }

    /// A screen that is no logger.
    #[cfg(test)]
    pub(super) fn for_test() -> Self {
        Self { bars: MultiProgress::new(), quiet: true, is_json: Arc::default() }
    }

    /// Whether only errors are printed.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Writes a JSON object a line from now on.
    #[cfg(feature = "serve")]
    pub(super) fn write_json(&self) {
        self.is_json.store(true, Ordering::Relaxed);
    }

    /// Prints a line that is not a warning.
    pub(super) fn note(&self, line: &str) {
        if !self.quiet {
            self.line("info", &printable(line));
        }
    }

    /// Whether bars are drawn: standard error is a terminal, and still there. Where it is gone, indicatif would panic,
    /// or keep in memory what it cannot draw.
    pub(super) fn has_bars(&self) -> bool {
        if !io::stderr().is_terminal() {
            self.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        !self.bars.is_hidden()
    }

    /// Prints a line above the bars.
    fn line(&self, level: &str, line: &str) {
        let tell = || match self.is_json.load(Ordering::Relaxed) {
            true => tell_json(level, line),
            false => tell(line),
        };
        if self.has_bars() { self.bars.suspend(tell) } else { tell() }
    }

    /// Prints the line that ends a failed run.
    pub(super) fn error(&self, line: &str) {
        // An error may leave a bar behind.
        let _ = self.bars.clear();
        match self.is_json.load(Ordering::Relaxed) {
            true => tell_json("error", line),
            false => tell(&format!("error: {line}")),
        }
    }

    /// A spinner for work of unknown length.
    pub(super) fn spinner(&self) -> ProgressBar {
        let spinner = self.add(ProgressBar::new_spinner());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// A bar of a length, or a spinner if that is not known. `template` is indicatif's.
    pub(super) fn bar(&self, length: Option<u64>, template: &str) -> ProgressBar {
        let Some(length) = length else { return self.spinner() };
        let style = ProgressStyle::with_template(template);
        self.add(ProgressBar::new(length)).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// indicatif draws nothing if standard error is not a terminal, or cannot move its cursor.
    fn add(&self, bar: ProgressBar) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { self.bars.add(bar) }
    }
}

/// Writes a line to standard error. If that is closed or full, there is nobody left to tell.
pub(super) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("prior-embed: {line}\n").as_bytes());
}

/// The same as a JSON object, with the seconds since 1970.
fn tell_json(level: &str, line: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = now.as_millis() as f64 / 1e3;
    let object = serde_json::json!({ "time": time, "level": level, "message": line });
    let _ = io::stderr().write_all(format!("{object}\n").as_bytes());
}

/// Whether a line is not a repeated one, among the first few: pipelines side by side load the same model.
fn is_new(line: &str) -> bool {
    const MAX_LINES: usize = 64;
    static SHOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = !shown.iter().any(|other| other == line);
    if is_new && shown.len() < MAX_LINES {
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
            let text = printable(&record.args().to_string());
            let line = format!("{level}: {text}");
            if is_new(&line) {
                let is_json = self.is_json.load(Ordering::Relaxed);
                self.line(&level, if is_json { &text } else { &line });
            }
        }
    }

    fn flush(&self) {}
}
