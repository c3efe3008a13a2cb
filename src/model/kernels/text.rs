//! Texts that come from the C++ side.

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn prior_embed_free(text: *mut c_char);
}

/// A text of the C++ side, which is freed.
///
/// # Safety
/// It must be one that ends in 0 and nobody else frees.
pub(super) unsafe fn text_of(text: *mut c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        prior_embed_free(text);
        copy
    }
}
