//! What of the processor decides the last bits of a result: which kernels the libraries choose, and how these cut their
//! work.

use super::Failure;
use super::text::text_of;
use anyhow::{Result, anyhow};
use std::ffi::c_char;
use std::ptr::null_mut;

unsafe extern "C" {
    fn prior_embed_processor(text: *mut *mut c_char) -> Failure;
}

/// Environment variables by which the libraries choose other kernels. ATen's own is in [`Processor::instructions`].
const OVERRIDES: [&str; 5] =
    ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"];

/// A kind of processor: two of the same kind give the same bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// The vectors that libtorch uses, as `AVX512`, and the environment variables that choose others.
    pub instructions: String,
    /// Its extensions for matrices and small types.
    pub extensions: String,
    /// The sizes of a core's caches.
    pub caches: String,
}

impl Processor {
    /// This machine's.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn find() -> Result<Self> {
        let mut text = null_mut();
        // SAFETY: the pointer is a variable's, and is filled in unless there is a failure.
        let failure = unsafe { prior_embed_processor(&mut text) };
        if !failure.is_null() {
            // SAFETY: a failure is a text of the C++ side.
            return Err(anyhow!("libtorch: {}", unsafe { text_of(failure) }));
        }
        // SAFETY: without a failure, this is a text of the C++ side.
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
