//! What concerns the process as a whole: what libtorch makes necessary at its beginning and end, and what it was started
//! with that Rust's standard library does not tell.

use std::ffi::c_int;
use std::io::Write;

unsafe extern "C" {
    fn prior_embed_prefer_huge_pages();
    fn prior_embed_tame_signals();
    fn prior_embed_leave(code: c_int) -> !;
    fn prior_embed_stdout_was_closed() -> bool;
    fn prior_embed_is_ignored(signal: c_int) -> bool;
}

/// Asks libtorch for memory in huge pages, in which a model is loaded and read faster. To be called before libtorch
/// allocates anything.
pub fn prefer_huge_pages() {
    // SAFETY: takes and gives no pointers. It sets an environment variable, which nobody reads meanwhile: the program has
    // one thread at that time.
    unsafe { prior_embed_prefer_huge_pages() }
}

/// Makes errors of two signals that would end the process: a file that grows beyond what the system allows (SIGXFSZ)
/// fails to be written, and a mapped file that was cut off meanwhile (SIGBUS) is one line and exit code 1.
pub fn tame_signals() {
    // SAFETY: takes and gives no pointers. What it installs calls only what a signal handler may.
    unsafe { prior_embed_tame_signals() }
}

/// Whether the process was started without a standard output. What is written there is lost without an error: Rust's
/// runtime has opened `/dev/null` in its place.
pub fn stdout_was_closed() -> bool {
    // SAFETY: takes and gives no pointers; it reads a constant.
    unsafe { prior_embed_stdout_was_closed() }
}

/// Whether a signal is ignored, which a process inherits from whatever starts it.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: takes and gives no pointers, and changes nothing.
    unsafe { prior_embed_is_ignored(signal) }
}

/// Ends the process with an exit code, once all that it has to write is written.
///
/// libtorch would spend a fifth of a short run on taking apart its thousands of registered operators, for nothing.
pub fn leave(code: u8) -> ! {
    // What is left in this buffer is lost if standard output is closed, as it would be anyway. Standard error has none.
    let _ = std::io::stdout().flush();
    // SAFETY: takes and gives no pointers, and destructors are not promised to run.
    unsafe { prior_embed_leave(c_int::from(code)) }
}
