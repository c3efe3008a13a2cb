//! Standard output. A closed pipe is not an error, and is dealt with here alone.

use crate::kernels::process::stdout_was_closed;
use anyhow::{Context, Result, ensure};
use std::io::{self, ErrorKind, Write};

/// Prints text and a line break.
///
/// # Errors
/// If standard output is closed or full.
pub(super) fn print(text: &str) -> Result<()> {
    write_with(|| writeln!(io::stdout(), "{text}"))
}

/// Runs `write`, which writes to standard output.
///
/// # Errors
/// If standard output is closed or full.
pub(super) fn write_with(write: impl FnOnce() -> io::Result<()>) -> Result<()> {
    check()?;
    match write().and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Checks that the process was started with a standard output.
///
/// # Errors
/// If it was not.
pub(super) fn check() -> Result<()> {
    ensure!(!stdout_was_closed(), "cannot write to standard output: it is closed");
    Ok(())
}
