//! The events of a job.

use crate::rows::Notice;

/// Receives the events of a job. All methods do nothing by default.
pub trait JobProgress: Send + Sync {
    /// Everything has been checked, and work begins: on `rows` rows, if that is known, of which an earlier run wrote
    /// `done`.
    fn begin(&self, _rows: Option<u64>, _done: u64) {}
    /// A component is about to be loaded.
    fn loading(&self, _component: &str) {}
    /// Work worth `rows` rows is done.
    fn computed(&self, _rows: f64) {}
    /// `rows` rows are written in all, and `batches` batches by this run.
    fn written(&self, _rows: u64, _batches: u64) {}
    /// A prompt was too long and was truncated. `rows` rows show it; none if it is a negative prompt. The text says
    /// which prompt, and where it was cut.
    fn truncated(&self, _rows: u64, _text: &str) {}
    /// Something about the prompts' file that is not an error.
    fn notice(&self, _notice: &Notice) {}
    /// `rows` rows are zeros because they cannot be used; the text says why.
    fn skipped(&self, _rows: u64, _text: &str) {}
    /// All rows are computed, and the output is being completed.
    fn completing(&self, _output: &str) {}
    /// Some time has passed.
    fn tick(&self) {}
    /// The run ends early, and waits for workers to stop.
    fn stopping(&self) {}
    /// No more events will come, except of completing the output.
    fn end(&self) {}
}

/// Ignores all events.
impl JobProgress for () {}
