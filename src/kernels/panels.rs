//! Weights in panels of outputs: a linear layer in float32 whose weights are read once, in the type they are stored in.

use super::epilogue::Epilogue;
use super::message::{Failure, take};
use crate::Result;
use std::ptr::null;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn prior_embed_panel_width() -> i64;
    fn prior_embed_pack_panels(out: *mut *mut C_tensor, weight: *const C_tensor, width: i64) -> Failure;
    fn prior_embed_panel_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        outputs: i64,
        bias: *const C_tensor,
        other: *const C_tensor,
        gelu: bool,
    ) -> Failure;
}

/// The outputs of a panel of a [`PanelWeight`] on this processor: 32 with AVX-512, 16 with AVX2; `None` if it has
/// neither.
pub fn panel_width() -> Option<i64> {
    // SAFETY: takes and gives no pointers.
    let width = unsafe { prior_embed_panel_width() };
    (width > 0).then_some(width)
}

/// A weight of float32, float16 or bfloat16 for products in float32, packed in the order in which the kernel reads it.
/// To the last bit, a row of a product does not depend on the rows beside it.
#[derive(Debug)]
pub struct PanelWeight {
    packed: Tensor,
    outputs: i64,
}

impl PanelWeight {
    /// Packs a weight `(outputs, inputs)` on the CPU, in its own type, into panels of `width` outputs: [`panel_width`], or
    /// less.
    ///
    /// # Errors
    /// If it is of another type or on another device, or memory runs out.
    pub fn pack(weight: &Tensor, width: i64) -> Result<Self> {
        // SAFETY: the pointer is a live tensor's.
        let packed = take(|out| unsafe { prior_embed_pack_panels(out, weight.as_ptr(), width) })?;
        let (outputs, _) = weight.size2()?;
        Ok(Self { packed, outputs })
    }

    /// `x Wᵀ + b` and the epilogue, `(…, inputs)` to `(…, outputs)`, all in float32.
    ///
    /// # Errors
    /// If shapes or types do not fit, or the processor does not have panels of this width.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
        let (gelu, other) = epilogue.pointers();
        let bias = bias.map_or(null(), Tensor::as_ptr);
        // SAFETY: the pointers are live tensors', or null where the C++ side takes null for none.
        take(|out| unsafe {
            prior_embed_panel_linear(out, x.as_ptr(), self.packed.as_ptr(), self.outputs, bias, other, gelu)
        })
    }
}
