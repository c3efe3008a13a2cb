//! Where a tensor lies in its file.

use crate::error::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::ops::Range;
use tch::Kind;

/// A tensor in one of a checkpoint's files. Its maker has checked that the range lies in the file, and all elements in the
/// range.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    /// The index of its file.
    pub(crate) file: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// Its memory layout, unless it is contiguous. The sizes have the element count of `shape`.
    pub(crate) strided: Option<Strided>,
    /// Its bytes in the file.
    pub(crate) range: Range<usize>,
}

/// The memory layout of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strided {
    pub(crate) sizes: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

impl Strided {
    /// The contiguous layout of these sizes.
    pub(crate) fn contiguous(sizes: &[i64]) -> Self {
        let mut strides = vec![1; sizes.len()];
        for place in (1..sizes.len()).rev() {
            strides[place - 1] = i64::saturating_mul(strides[place], sizes[place].max(1));
        }
        Self { sizes: sizes.to_vec(), strides }
    }

    /// Whether the elements are contiguous. A dimension of 1 may have any stride.
    pub(crate) fn is_contiguous(&self) -> bool {
        let contiguous = Self::contiguous(&self.sizes);
        let strides = self.strides.iter().zip(&contiguous.strides).zip(&self.sizes);
        self.sizes.contains(&0) || strides.into_iter().all(|((stride, wanted), &size)| size == 1 || stride == wanted)
    }
}

impl TensorEntry {
    /// The element count.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64))
    }
}

/// The tensors in a safetensors file. `path` is its name in messages.
///
/// # Errors
/// [`Error::File`] if it is truncated or damaged.
pub(crate) fn safetensors_entries(bytes: &[u8], file: usize, path: &str) -> Result<Vec<(String, TensorEntry)>> {
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| Error::damaged(path, "safetensors", error))?;
    let start = header_len + size_of::<u64>();
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let shape = info.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
        let too_large = |_| Error::damaged(path, "safetensors", format!("tensor {name} is too large"));
        let shape = shape.map_err(too_large)?;
        let (from, to) = info.data_offsets;
        Ok((name, TensorEntry { file, dtype: info.dtype, shape, strided: None, range: start + from..start + to }))
    });
    entries.collect()
}

/// libtorch's name for an element type; `None` for those that are not supported.
pub(crate) fn kind(dtype: Dtype) -> Option<Kind> {
    float_kind(dtype).or(match dtype {
        Dtype::I64 => Some(Kind::Int64),
        Dtype::I32 => Some(Kind::Int),
        Dtype::I16 => Some(Kind::Int16),
        Dtype::I8 => Some(Kind::Int8),
        Dtype::U8 => Some(Kind::Uint8),
        Dtype::BOOL => Some(Kind::Bool),
        _ => None,
    })
}

/// As [`kind`], for the types of weights alone.
pub(crate) fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}
