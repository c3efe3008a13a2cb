//! The program's own errors on bad input: a marker on an [`anyhow::Error`], whose message is the line that the user
//! reads.
//!
//! The library has [`crate::Error`].

use crate::error::{Error, Hint};

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

/// [`Hint::FetchAgain`] at the end of a [`BadInput`]'s line.
pub const FETCH_AGAIN: &str = "fetch it again";

/// The same error with `advice` in place of [`Hint::FetchAgain`], if it is about a damaged file in `folder`.
pub fn with_advice(error: anyhow::Error, folder: &str, advice: &str) -> anyhow::Error {
    match error.downcast::<Error>() {
        Ok(error) => {
            let is_damaged =
                error.hint() == Some(&Hint::FetchAgain) && error.path().is_some_and(|path| path.contains(folder));
            if is_damaged { error.with_hint(Hint::Other(advice.to_string().into())).into() } else { error.into() }
        }
        // Until the pipeline's own errors are typed too.
        Err(error) => {
            let line = error.to_string();
            match line.strip_suffix(FETCH_AGAIN).filter(|line| line.contains(folder)) {
                Some(start) if error.is::<BadInput>() => error.context(BadInput(format!("{start}{advice}"))),
                _ => error,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::errors::{exit_code, one_line};

    #[test]
    fn damaged_files_in_a_known_folder_have_an_advice_of_their_own() {
        let advise = |error: Error| with_advice(error.into(), "/cache/x", "repair it");
        let damaged = |path: &str| Error::file(path, "is truncated").with_hint(Hint::FetchAgain);
        let advised = advise(damaged("/cache/x/a.json"));
        assert_eq!(
            (one_line(&advised, false), exit_code(&advised)),
            ("/cache/x/a.json is truncated; repair it".into(), 2)
        );
        assert_eq!(one_line(&advise(damaged("/home/a.json")), false), "/home/a.json is truncated; fetch it again");
        let other = Error::file("/cache/x/a.json", "is not supported");
        assert_eq!(one_line(&advise(other), false), "/cache/x/a.json is not supported");
    }
}
