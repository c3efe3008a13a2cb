//! Progress events of a run.

use crate::error::{Component, Error, Result};
use std::fmt;

/// Receives progress events. Every method has a default; `()` is the no-op receiver.
pub trait Progress {
    /// The weights of a component are about to be loaded.
    fn loading(&mut self, _component: Component) {}

    /// A prompt has more tokens than the text encoder takes, and was truncated. Logs a warning by default.
    fn truncated(&mut self, truncation: &Truncation) {
        log::warn!("{truncation}");
    }

    /// `done` of all `total` denoising steps are done.
    fn step(&mut self, _done: usize, _total: usize) {}

    /// `done` of `total` bytes of a repository are downloaded. A model with components from elsewhere has several.
    fn downloaded(&mut self, _done: u64, _total: u64) {}

    /// Whether to give up. Asked before each stage and after each step, which then ends with [`Error::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// # Errors
/// [`Error::Cancelled`] if `progress` says so.
pub(super) fn check_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

impl Progress for () {}

/// A prompt that was truncated. Its `Display` is a sentence that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Truncation<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// The part that was left out, as its tokens read.
    pub removed: &'a str,
    /// How many tokens a prompt may have, start and end included.
    pub max_tokens: usize,
    /// The rows of the output with this prompt; empty for a negative prompt.
    pub rows: Vec<usize>,
}

impl fmt::Display for Truncation<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let (prompt, removed) = (shorten(self.prompt), shorten(self.removed));
        let max = self.max_tokens;
        write!(formatter, "prompt {prompt:?} is longer than {max} tokens; truncated: {removed:?}")
    }
}

/// The beginning of a prompt, short enough for a message.
pub(super) fn shorten(prompt: &str) -> String {
    const MAX_CHARS: usize = 200;
    match prompt.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}… ({} more characters)", &prompt[..end], prompt[end..].chars().count()),
        None => prompt.to_string(),
    }
}
