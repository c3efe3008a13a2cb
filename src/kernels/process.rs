//! The program's process: what libtorch makes necessary at its start and end, and what the standard library does not
//! tell of its environment. The library leaves the process alone.

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;

unsafe extern "C" {
    fn prior_embed_prefer_huge_pages();
    fn prior_embed_tame_signals();
    fn prior_embed_leave(code: c_int) -> !;
    fn prior_embed_stdout_was_closed() -> bool;
    fn prior_embed_is_ignored(signal: c_int) -> bool;
    fn prior_embed_libtorch_version() -> *const c_char;
}

/// Makes libtorch allocate huge pages, in which a model is loaded and read faster. To be called before libtorch
/// allocates anything.
pub fn prefer_huge_pages() {
    // SAFETY: takes and gives no pointers. It sets an environment variable while the program has a single thread, so
    // that none reads it meanwhile.
    unsafe { prior_embed_prefer_huge_pages() }
}

/// Turns two signals that would end the process into errors: writing beyond the file size limit (SIGXFSZ) fails, and
/// reading a mapped file that was truncated meanwhile (SIGBUS) gives a line on standard error and exit code 1.
pub fn tame_signals() {
    // SAFETY: takes and gives no pointers. The handler that it installs calls async-signal-safe functions only.
    unsafe { prior_embed_tame_signals() }
}

/// Whether the process was started with standard output closed. Writes to it succeed anyway: Rust's runtime opens
/// `/dev/null` in its place.
pub fn stdout_was_closed() -> bool {
    // SAFETY: takes and gives no pointers; it reads a constant.
    unsafe { prior_embed_stdout_was_closed() }
}

/// Whether a signal is ignored, which a process inherits from its parent.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: takes and gives no pointers, and changes nothing.
    unsafe { prior_embed_is_ignored(signal) }
}

/// The version of libtorch that the program was built against: `2.13.0`.
pub fn libtorch_version() -> String {
    // SAFETY: a string literal, which ends in a zero and lives as long as the program.
    unsafe { CStr::from_ptr(prior_embed_libtorch_version()) }.to_string_lossy().into_owned()
}

/// Flushes standard output and ends the process without running destructors.
///
/// libtorch would spend a fifth of a short run on unregistering its thousands of operators.
pub fn leave(code: u8) -> ! {
    // If standard output is closed, its buffer is lost anyway. Standard error has none.
    let _ = std::io::stdout().flush();
    // SAFETY: takes and gives no pointers, and no code relies on destructors.
    unsafe { prior_embed_leave(c_int::from(code)) }
}
