//! The program's own errors on bad input: a marker on an [`anyhow::Error`], whose message is the line that the user
//! reads.
//!
//! The library has [`crate::Error`].

/// A mistake in the input: a wrong option, a missing or damaged file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Makes an [`anyhow::Error`] that is marked as [`BadInput`].
macro_rules! bad_input {
    ($($part:tt)*) => { ::anyhow::Error::new($crate::bad_input::BadInput(format!($($part)*))) };
}
pub(crate) use bad_input;

/// Marks the error of a result as [`BadInput`].
pub trait OrBadInput<T> {
    /// Keeps the value, or puts `line` on top of the error, which becomes its cause.
    ///
    /// # Errors
    /// The error it was called on, marked as [`BadInput`].
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrBadInput<T> for Result<T, E> {
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|cause| cause.into().context(BadInput(line())))
    }
}
