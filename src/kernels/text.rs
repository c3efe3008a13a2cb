//! Texts that come from the C++ side.

use std::ffi::{CStr, c_char};

/// A copy of a text of the C++ side, which keeps it until the thread's next call.
///
/// # Safety
/// It must be one that ends in 0 and is still kept.
pub(super) unsafe fn text_of(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text).to_string_lossy().into_owned() }
}
