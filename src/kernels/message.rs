//! Messages from the C++ side.

use crate::Error;
use std::ffi::{CStr, c_char};
use tch::TchError;

/// An error message, valid until the thread's next call into C++, or null for success.
pub(super) type Failure = *mut c_char;

/// Copies a string of the C++ side, which keeps it until the thread's next call.
///
/// # Safety
/// `text` must be NUL-terminated and still be kept.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(super) unsafe fn text_of(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text).to_string_lossy().into_owned() }
}

/// The error that a message is of.
///
/// # Safety
/// As [`text_of`].
pub(super) unsafe fn error_of(failure: Failure) -> Error {
    // SAFETY: the caller's promise.
    Error::Torch(TchError::Torch(unsafe { text_of(failure) }))
}
