//! The properties of the processor that decide the last bits of a result: which kernels the libraries choose, and how
//! these split their work.

use super::message::{Failure, error_of, text_of};
use crate::Result;
use std::ffi::c_char;
use std::ptr::null_mut;

unsafe extern "C" {
    fn prior_embed_processor(text: *mut *mut c_char) -> Failure;
}

/// Environment variables that make the libraries choose other kernels. ATen's is part of [`Processor::instructions`].
const OVERRIDES: [&str; 5] =
    ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"];

/// A kind of processor; equal kinds give equal bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// The vector instructions that libtorch uses, such as `AVX512`, and the environment variables that choose others.
    pub instructions: String,
    /// Instruction set extensions for matrices and small types.
    pub extensions: String,
    /// The sizes of a core's caches.
    pub caches: String,
}

impl Processor {
    /// This machine's processor.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn find() -> Result<Self> {
        let mut text = null_mut();
        // SAFETY: `text` outlives the call, which fills it in unless it fails.
        let failure = unsafe { prior_embed_processor(&mut text) };
        if !failure.is_null() {
            // SAFETY: `failure` is a message that this thread's last call left.
            return Err(unsafe { error_of(failure) });
        }
        // SAFETY: without a failure, `text` is a string that this thread's last call left.
        let text = unsafe { text_of(text) };
        let mut lines = text.lines().map(str::to_string);
        let mut next = || lines.next().unwrap_or_default();
        let (instructions, extensions, caches) = (next(), next(), next());
        let set = OVERRIDES.iter().filter_map(|name| Some(format!(" {name}={}", std::env::var(name).ok()?)));
        Ok(Self { instructions: instructions + &set.collect::<String>(), extensions, caches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_known() {
        let processor = Processor::find().unwrap();
        assert!(!processor.instructions.is_empty(), "{processor:?}");
        assert_eq!(Processor::find().unwrap(), processor);
    }
}
