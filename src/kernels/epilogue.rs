//! What a linear layer computes after its product.

use std::ptr::null;
use tch::Tensor;
use torch_sys::C_tensor;

/// Computed after the product of a linear layer, in the same kernel.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Exact GELU.
    Gelu,
    /// A residual of the output's shape is added.
    Add(&'a Tensor),
}

impl Epilogue<'_> {
    /// Whether there is a GELU, and what is added or null.
    pub(super) fn pointers(self) -> (bool, *const C_tensor) {
        match self {
            Self::None => (false, null()),
            Self::Gelu => (true, null()),
            Self::Add(other) => (false, other.as_ptr()),
        }
    }
}
