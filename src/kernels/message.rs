//! Messages from the C++ side.

use crate::{Error, Result};
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use tch::{TchError, Tensor};
use torch_sys::C_tensor;

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

/// Calls a C++ function that fills in a new tensor, and takes ownership of it, or makes an error of the message.
pub(super) fn take(call: impl FnOnce(*mut *mut C_tensor) -> Failure) -> Result<Tensor> {
    let mut out = null_mut();
    let failure = call(&mut out);
    if failure.is_null() {
        // SAFETY: after success, `out` is a new tensor without another owner.
        return Ok(unsafe { Tensor::from_ptr(out) });
    }
    // SAFETY: `failure` is a message that this thread's last call left.
    Err(unsafe { error_of(failure) })
}
