//! Tensors that still lie in their file: read from there straight into what a kernel wants.

use super::{Checkpoint, Entry, Weights, float_kind};
use crate::bad_input;
use crate::files::Bytes;
use anyhow::Result;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A tensor on the CPU that lies in its file, in the file's type. Its pages leave the process' memory when it is dropped,
/// so that a model is never there twice.
pub(super) struct Borrowed<'a> {
    /// Not to outlive the file's bytes: only lent, and copied by [`Borrowed::to_owned`].
    view: Tensor,
    file: &'a Bytes,
    range: Range<usize>,
}

impl<'a> Borrowed<'a> {
    /// Lends the tensor of an entry.
    pub(super) fn new(checkpoint: &'a Checkpoint, entry: &Entry) -> Result<Self> {
        let kind = float_kind(entry.dtype).ok_or_else(|| bad_input!("{}: no float type", checkpoint.origin))?;
        let bytes = checkpoint.bytes(entry);
        let view = if bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes()) {
            let strides = contiguous_strides(&entry.shape);
            // SAFETY: safetensors has checked that the bytes are those of the shape and type; they are aligned, there as
            // long as `checkpoint` lives, which `self` does not outlive, and nothing writes to a weight.
            #[allow(unsafe_code)]
            unsafe {
                Tensor::f_from_blob(bytes.as_ptr(), &entry.shape, &strides, kind, Device::Cpu)?
            }
        } else {
            Tensor::f_from_data_size(bytes, &entry.shape, kind)?
        };
        Ok(Self { view, file: &checkpoint.files[entry.file], range: entry.range.clone() })
    }

    /// A tensor of its own.
    pub(super) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
        let mut owned = Tensor::f_empty(self.view.size(), (kind, device))?;
        owned.f_copy_(&self.view)?;
        Ok(owned)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.file.release(self.range.clone());
    }
}

fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for place in (1..shape.len()).rev() {
        strides[place - 1] = strides[place] * shape[place].max(1);
    }
    strides
}

/// The `weight`s of several layers, one after the other along the first dimension, in their file's type.
pub(in crate::model) struct StackedWeight<'a> {
    /// One part is the tensor itself; several are what `stacked` was made of.
    parts: Vec<Borrowed<'a>>,
    stacked: Option<Tensor>,
}

impl<'a> StackedWeight<'a> {
    /// Reads `weight` of each part, all of the same shape; `None` while the checkpoint is only checked.
    pub(in crate::model) fn borrow(parts: &[Weights<'a>], shape: &[i64]) -> Result<Option<Self>> {
        let parts = parts.iter().map(|part| part.borrow("weight", shape)).collect::<Result<Vec<_>>>()?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let stacked = match parts.len() {
            1 => None,
            _ => Some(Tensor::f_cat(&parts.iter().map(|part| &part.view).collect::<Vec<_>>(), 0)?),
        };
        Ok(Some(Self { parts, stacked }))
    }

    /// As one tensor in the file's type, lent.
    pub(in crate::model) fn tensor(&self) -> &Tensor {
        self.stacked.as_ref().unwrap_or(&self.parts[0].view)
    }

    /// A tensor of its own.
    pub(in crate::model) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
        match &self.stacked {
            Some(stacked) => Ok(stacked.f_to_device(device)?.f_to_kind(kind)?),
            None => self.parts[0].to_owned(kind, device),
        }
    }
}
