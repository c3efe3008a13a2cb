//! Errors: one line that says what is wrong, where, and what to do.
//!
//! Everything returns [`anyhow::Result`]. What the user can mend (a wrong option, a broken file) is marked as
//! [`BadInput`] where it is found, with the whole line as its message and the technical cause below it. The marker
//! decides the exit code; `--verbose` shows the causes.

use anyhow::Error;

/// A mistake in what the user gave: a wrong option, a missing or broken file, a model that does not fit.
///
/// Its message is the one line that the user reads.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Makes an [`anyhow::Error`] that is marked as [`BadInput`].
#[macro_export]
macro_rules! bad_input {
    ($($part:tt)*) => { ::anyhow::Error::new($crate::error::BadInput(format!($($part)*))) };
}

/// Marks the error of a result as [`BadInput`] and gives it the line that the user reads.
pub trait OrBadInput<T> {
    /// Keeps the value, or puts `line` on top of the error, which becomes its cause.
    ///
    /// # Errors
    /// The error it was called on, marked as [`BadInput`].
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> OrBadInput<T> for Result<T, E> {
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|cause| cause.into().context(BadInput(line())))
    }
}

/// The process' exit code for an error: 2 for wrong usage or bad input, 1 for a failure while running.
pub fn exit_code(error: &Error) -> u8 {
    if error.downcast_ref::<BadInput>().is_some() { 2 } else { 1 }
}

/// The error as one line: the outermost message or, with `causes`, all of them from the outside in.
///
/// Line breaks inside a message (libtorch's are long) become `; `.
pub fn one_line(error: &Error, causes: bool) -> String {
    let messages: Vec<String> = error.chain().take(if causes { usize::MAX } else { 1 }).map(one_message).collect();
    messages.join(": ")
}

fn one_message(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_exits_with_2_and_anything_else_with_1() {
        assert_eq!(exit_code(&bad_input!("no prompt")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("disk on fire")), 1);
        let caused: anyhow::Result<()> = Err(std::io::Error::other("cause")).or_bad_input(|| "line".into());
        assert_eq!(exit_code(&caused.unwrap_err()), 2);
    }

    #[test]
    fn an_error_is_one_line_with_its_causes_on_demand() {
        let error: anyhow::Result<()> = Err(std::io::Error::other("first\n  second\n")).or_bad_input(|| "line".into());
        let error = error.unwrap_err();
        assert_eq!(one_line(&error, false), "line");
        assert_eq!(one_line(&error, true), "line: first; second");
    }
}
