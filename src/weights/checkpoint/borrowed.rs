//! Tensors that still lie in their file: read from there straight into what a kernel wants.

use super::entry::{Entry, Strided, kind};
use super::{Checkpoint, Weights};
use crate::bad_input;
use crate::files::Bytes;
use crate::weights::lora::Delta;
use anyhow::Result;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A tensor on the CPU that lies in its file, in the file's type. Its pages leave the process' memory when it is dropped,
/// so that a model is never there twice.
pub(crate) struct Borrowed<'a> {
    /// Not to outlive the file's bytes: only lent, and copied by [`Borrowed::to_owned`].
    view: Tensor,
    file: &'a Bytes,
    range: Range<usize>,
}

impl<'a> Borrowed<'a> {
    /// Lends the tensor of an entry. Where its numbers do not lie one after the other, they are copied so that they do.
    pub(crate) fn new(checkpoint: &'a Checkpoint, entry: &Entry) -> Result<Self> {
        let (origin, dtype) = (&checkpoint.origin, entry.dtype);
        let kind = kind(dtype).ok_or_else(|| bad_input!("{origin}: type {dtype:?} is not read"))?;
        let bytes = checkpoint.bytes(entry);
        let Strided { sizes, strides } = match &entry.strided {
            Some(strided) => strided.clone(),
            None => Strided::contiguous(&entry.shape),
        };
        let view = if bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes()) {
            // SAFETY: whoever made the entry has checked that the bytes are those of the sizes, strides and type; they are
            // aligned, there as long as `checkpoint` lives, which `self` does not outlive, and nothing writes to a weight.
            #[allow(unsafe_code)]
            unsafe {
                Tensor::f_from_blob(bytes.as_ptr(), &sizes, &strides, kind, Device::Cpu)?
            }
        } else {
            let elements = (bytes.len() / kind.elt_size_in_bytes()) as i64;
            Tensor::f_from_data_size(bytes, &[elements], kind)?.f_as_strided(&sizes, &strides, None)?
        };
        let view = view.f_contiguous()?.f_reshape(&entry.shape)?;
        Ok(Self { view, file: &checkpoint.files[entry.file], range: entry.range.clone() })
    }

    /// The tensor plus what LoRAs add, in float32.
    pub(crate) fn with_added(mut self, deltas: &[Delta]) -> Result<Self> {
        let mut sum = self.to_owned(Kind::Float, Device::Cpu)?;
        Delta::add_all(deltas, &mut sum)?;
        self.view = sum;
        Ok(self)
    }

    /// Whether there is neither a NaN nor an infinity in it.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        Ok(self.view.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
    }

    /// A tensor of its own.
    pub(crate) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
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

/// The `weight`s of several layers, one after the other along the first dimension, in their file's type.
pub(crate) struct StackedWeight<'a> {
    /// One part is the tensor itself; several are what `stacked` was made of.
    parts: Vec<Borrowed<'a>>,
    stacked: Option<Tensor>,
}

impl<'a> StackedWeight<'a> {
    /// Reads `weight` of each part, all of the same shape; `None` while the checkpoint is only checked.
    pub(crate) fn borrow(parts: &[Weights<'a>], shape: &[i64]) -> Result<Option<Self>> {
        let parts = parts.iter().map(|part| part.borrow("weight", shape)).collect::<Result<Vec<_>>>()?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let stacked = match parts.len() {
            1 => None,
            _ => Some(Tensor::f_cat(&parts.iter().map(|part| &part.view).collect::<Vec<_>>(), 0)?),
        };
        Ok(Some(Self { parts, stacked }))
    }

    /// As one tensor in the file's type, lent.
    pub(crate) fn tensor(&self) -> &Tensor {
        self.stacked.as_ref().unwrap_or(&self.parts[0].view)
    }

    /// A tensor of its own.
    pub(crate) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
        match &self.stacked {
            Some(stacked) => Ok(stacked.f_to_device(device)?.f_to_kind(kind)?),
            None => self.parts[0].to_owned(kind, device),
        }
    }
}
