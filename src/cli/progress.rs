//! What a person sees while the program runs, all of it on standard error: bars on a terminal, warnings, the error.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use log::{LevelFilter, Log, Metadata, Record};
use std::time::Duration;

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
            self.bars.suspend(|| eprintln!("prior-embed: {line}"));
        }
    }

    /// Prints the line that ends a failed run.
    pub fn error(&self, line: &str) {
        // A library may have left a bar behind.
        let _ = self.bars.clear();
        eprintln!("prior-embed: error: {line}");
    }

    /// A spinner for work of unknown length; its message says what goes on.
    pub fn spinner(&self) -> ProgressBar {
        let spinner = self.add(ProgressBar::new_spinner());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// A bar for `len` denoising steps.
    pub fn steps(&self, len: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} steps, {eta} left");
        let bar = self.add(ProgressBar::new(len));
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// indicatif draws nothing where standard error is not a terminal.
    fn add(&self, bar: ProgressBar) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { self.bars.add(bar) }
    }
}

impl Log for Screen {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("prior_embed")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_lowercase();
            self.bars.suspend(|| eprintln!("prior-embed: {level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}
