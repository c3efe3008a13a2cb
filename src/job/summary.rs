//! How a run ended, and what it did.

use crate::pipeline::Timings;
use std::path::PathBuf;
use std::time::Duration;

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is written.
    #[default]
    Done,
    /// An earlier run with the same settings had written everything.
    WasDone,
    /// The reader of the output has closed it.
    ReaderGone,
    /// A signal stopped it.
    Stopped {
        /// The signal.
        signal: i32,
        /// Whether the rows are kept for a run that resumes.
        kept: bool,
    },
}

/// The pictures that a run decoded, those that cannot be used included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decoding {
    /// Threads that decode side by side.
    pub threads: usize,
    /// Time spent reading, decoding and resizing, and waiting for memory, summed over these threads.
    pub time: Duration,
    /// Bytes of the encoded pictures.
    pub bytes: u64,
    /// Their pixels.
    pub pixels: u64,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// Rows of the output, those of an earlier run included.
    pub rows: u64,
    /// Rows that an earlier run wrote.
    pub resumed: u64,
    /// Rows that were to be written, if that was known.
    pub total: Option<u64>,
    /// Rows that are zeros because they could not be used, and the report that lists them.
    pub skipped: Option<(u64, PathBuf)>,
    /// Where time went, summed over all workers.
    pub timings: Timings,
    /// Time spent reading prompts or listing pictures, and waiting for those of a pipe.
    pub read: Duration,
    /// What was decoded.
    pub decoding: Decoding,
    /// Time spent writing.
    pub write: Duration,
    /// Workers.
    pub workers: usize,
    /// CPU threads of all workers.
    pub threads: usize,
    /// Rows computed together.
    pub batch_size: usize,
    /// The memory that was planned for, in bytes; not known for a GPU.
    pub memory: Option<u64>,
}
