//! The fast CPU kernels, in C++ on libtorch: packed linear layers and attention over cached keys and values.
//!
//! This is the only place where Rust and that C++ meet. Every function checks its arguments on the C++ side and turns
//! exceptions into errors.

// The border to C++: each call passes pointers of tensors that outlive it and takes ownership of a new tensor.
#![allow(unsafe_code)]

use anyhow::{Result, anyhow};
use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use tch::Tensor;
use torch_sys::C_tensor;

/// A message, or null for success.
type Failure = *mut c_char;

unsafe extern "C" {
    fn prior_embed_free(message: *mut c_char);
    fn prior_embed_has_packed_linear() -> bool;
    fn prior_embed_pack_linear(out: *mut *mut C_tensor, weight: *const C_tensor) -> Failure;
    fn prior_embed_packed_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        gelu: bool,
    ) -> Failure;
    fn prior_embed_packed_linear_add(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        other: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> Failure;
    fn prior_embed_attend(
        out: *mut *mut C_tensor,
        query: *const C_tensor,
        heads: i64,
        count: i64,
        rows: *const *const C_tensor,
        starts: *const *const C_tensor,
        ends: *const *const C_tensor,
    ) -> Failure;
}

/// What follows the product of a linear layer in the same kernel.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Exact GELU.
    Gelu,
    /// A residual of the output's shape is added.
    Add(&'a Tensor),
}

/// Rows of keys and values, `(rows, 2 · heads · head_dim)`, and for each token the range of rows that it sees.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Keys, then values, of one row each.
    pub rows: &'a Tensor,
    /// First row that each token sees, int64, `(tokens)`.
    pub starts: &'a Tensor,
    /// One past the last.
    pub ends: &'a Tensor,
}

/// Whether this libtorch has oneDNN's packed linear layers; builds for ARM have none.
pub fn has_packed_linear() -> bool {
    // SAFETY: takes and gives no pointers.
    unsafe { prior_embed_has_packed_linear() }
}

/// Packs a weight `(outputs, inputs)`, float32 or bfloat16 on the CPU, for [`packed_linear`] alone.
///
/// # Errors
/// If the type is not supported or memory runs out.
pub fn pack_linear(weight: &Tensor) -> Result<Tensor> {
    // SAFETY: the pointer is a live tensor's.
    take(|out| unsafe { prior_embed_pack_linear(out, weight.as_ptr()) })
}

/// `x Wᵀ + b` and the epilogue, `(…, inputs)` to `(…, outputs)`, on a packed weight.
///
/// # Errors
/// If shapes or types do not fit.
pub fn packed_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
    let (x, weight, bias) = (x.as_ptr(), weight.as_ptr(), bias.map_or(null(), Tensor::as_ptr));
    // SAFETY: the pointers are live tensors', or null where the C++ side takes null for none.
    take(|out| unsafe {
        match epilogue {
            Epilogue::None => prior_embed_packed_linear(out, x, weight, bias, false),
            Epilogue::Gelu => prior_embed_packed_linear(out, x, weight, bias, true),
            Epilogue::Add(other) => prior_embed_packed_linear_add(out, x, other.as_ptr(), weight, bias),
        }
    })
}

/// Softmax attention of each token of `query` `(tokens, heads · head_dim)` over its rows of all segments, on the CPU.
///
/// # Errors
/// If shapes or types do not fit, or a range is out of bounds.
pub fn attend(query: &Tensor, heads: i64, segments: &[Segment]) -> Result<Tensor> {
    let pointers = |pick: fn(&Segment) -> *const C_tensor| segments.iter().map(pick).collect::<Vec<_>>();
    let rows = pointers(|segment| segment.rows.as_ptr());
    let starts = pointers(|segment| segment.starts.as_ptr());
    let ends = pointers(|segment| segment.ends.as_ptr());
    let count = segments.len() as i64;
    // SAFETY: the three arrays have `count` pointers of live tensors each.
    take(|out| unsafe {
        prior_embed_attend(out, query.as_ptr(), heads, count, rows.as_ptr(), starts.as_ptr(), ends.as_ptr())
    })
}

/// Calls a C++ function that fills in a new tensor, and takes that tensor or the message.
fn take(call: impl FnOnce(*mut *mut C_tensor) -> Failure) -> Result<Tensor> {
    let mut out = null_mut();
    let failure = call(&mut out);
    if failure.is_null() {
        // SAFETY: without a failure, `out` is a new tensor that nobody else owns.
        return Ok(unsafe { Tensor::from_ptr(out) });
    }
    // SAFETY: a failure is a string that ends in 0 and is freed once, here.
    let message = unsafe {
        let message = CStr::from_ptr(failure).to_string_lossy().into_owned();
        prior_embed_free(failure);
        message
    };
    Err(anyhow!("libtorch: {message}"))
}
