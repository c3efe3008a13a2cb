//! Which operations libtorch runs, for tests.

use super::message::{Failure, error_of, text_of};
use crate::Result;
use std::ffi::c_char;
use std::ptr::null_mut;

unsafe extern "C" {
    fn prior_embed_record() -> Failure;
    fn prior_embed_recorded(out: *mut *mut c_char) -> Failure;
}

/// An operation that libtorch ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its name, `aten::add`.
    pub name: String,
    /// The element count of its outputs.
    pub numel: i64,
}

/// Records the operations of this thread until [`recorded`].
///
/// # Errors
/// If memory runs out.
pub fn record() -> Result<()> {
    // SAFETY: no pointer goes in.
    let failure = unsafe { prior_embed_record() };
    // SAFETY: `failure` is a message that this thread's last call left.
    if failure.is_null() { Ok(()) } else { Err(unsafe { error_of(failure) }) }
}

/// The operations since [`record`], in the order in which they ended.
///
/// # Errors
/// If memory runs out.
pub fn recorded() -> Result<Vec<Operation>> {
    let mut lines = null_mut();
    // SAFETY: the pointer is a local's.
    let failure = unsafe { prior_embed_recorded(&mut lines) };
    if !failure.is_null() {
        // SAFETY: `failure` is a message that this thread's last call left.
        return Err(unsafe { error_of(failure) });
    }
    // SAFETY: after success the string is kept until this thread's next call.
    let lines = unsafe { text_of(lines) };
    let operation = |line: &str| {
        let (name, numel) = line.split_once(' ')?;
        Some(Operation { name: name.to_string(), numel: numel.parse().ok()? })
    };
    Ok(lines.lines().filter_map(operation).collect())
}
