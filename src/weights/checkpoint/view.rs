//! A tensor as it lies in its file, from which kernels take it straight into their own layout.

use super::entry::{Strided, TensorEntry, kind};
use crate::error::{Error, Result};
use crate::files::Bytes;
use crate::weights::delta::Delta;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A tensor on the CPU, borrowed from its file, in the file's type. Its pages leave the process' memory when the view is
/// dropped, so that a model is never in memory twice.
pub(crate) struct TensorView<'a> {
    /// Must not outlive the file's bytes: it is only lent, and copied by [`TensorView::to_owned`].
    view: Tensor,
    file: &'a Bytes,
    range: Range<usize>,
}

impl<'a> TensorView<'a> {
    /// Borrows the tensor `name` of an entry. Elements that are not contiguous are copied.
    ///
    /// # Errors
    /// [`Error::Tensor`] if libtorch does not have its type; if memory runs out.
    pub(super) fn new(file: &'a Bytes, entry: &TensorEntry, name: &str, origin: &str) -> Result<Self> {
        let kind = kind(entry.dtype).ok_or_else(|| {
            let reason = format!("tensor {name} has type {:?}, which is not supported", entry.dtype);
            Error::tensor(origin, name, reason)
        })?;
        let bytes = &file[entry.range.clone()];
        let Strided { sizes, strides } = match &entry.strided {
            Some(strided) => strided.clone(),
            None => Strided::contiguous(&entry.shape),
        };
        let view = if bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes()) {
            // SAFETY: the maker of an entry has checked its bytes against its sizes, strides and type. They are aligned, nothing
            // writes to them, and `file` outlives `self`.
            #[allow(unsafe_code)]
            unsafe {
                Tensor::f_from_blob(bytes.as_ptr(), &sizes, &strides, kind, Device::Cpu)?
            }
        } else {
            let elements = (bytes.len() / kind.elt_size_in_bytes()) as i64;
            Tensor::f_from_data_size(bytes, &[elements], kind)?.f_as_strided(&sizes, &strides, None)?
        };
        let view = view.f_contiguous()?.f_reshape(&entry.shape)?;
        Ok(Self { view, file, range: entry.range.clone() })
    }

    /// The tensor with `deltas` added, in float32.
    pub(super) fn with_deltas(mut self, deltas: &[Delta]) -> Result<Self> {
        let mut sum = self.to_owned(Kind::Float, Device::Cpu)?;
        Delta::add_all(deltas, &mut sum)?;
        self.view = sum;
        Ok(self)
    }

    /// The tensor, which must not outlive this view.
    pub(super) fn tensor(&self) -> &Tensor {
        &self.view
    }

    /// Whether it holds neither a NaN nor an infinity.
    pub(super) fn is_finite(&self) -> Result<bool> {
        is_finite(&self.view)
    }

    /// A copy of the tensor.
    pub(super) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
        let mut owned = Tensor::f_empty(self.view.size(), (kind, device))?;
        owned.f_copy_(&self.view)?;
        Ok(owned)
    }
}

impl Drop for TensorView<'_> {
    fn drop(&mut self) {
        self.file.release(self.range.clone());
    }
}

/// Whether a tensor holds neither a NaN nor an infinity.
pub(super) fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}
