//! What a person sees while the program runs, all of it on standard error: bars on a terminal, warnings, the error.

use crate::hub::Watcher;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use log::{LevelFilter, Log, Metadata, Record};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line tells how a download gets on where a bar cannot be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

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

    /// A bar for `len` bytes to download.
    fn bytes(&self, len: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
        let bar = self.add(ProgressBar::new(len));
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// indicatif draws nothing where standard error is not a terminal.
    fn add(&self, bar: ProgressBar) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { self.bars.add(bar) }
    }
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

impl Watcher for FetchProgress<'_> {
    fn begin(&mut self, model: &str, files: usize, bytes: u64) {
        let files = if files == 1 { "1 file".to_string() } else { format!("{files} files") };
        self.screen.note(&format!("downloading {model}: {files}, {}", size(bytes)));
        (self.model, self.bytes, self.last_line) = (model.into(), bytes, Instant::now());
        if std::io::stderr().is_terminal() {
            self.bar = Some(self.screen.bytes(bytes));
        }
    }

    fn position(&mut self, path: &str, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(path.to_string());
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
