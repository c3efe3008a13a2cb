//! Where a tensor lies in its file.

use crate::error::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::ops::Range;
use tch::Kind;

/// A tensor in one of a checkpoint's files. Its maker has checked that the range lies in the file, and all elements in
/// the range.
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
        let shape = shape(&info.shape);
        let shape = shape
            .ok_or_else(|| Error::damaged(path, "safetensors", format!("the shape of tensor {name} is too large")))?;
        let (from, to) = info.data_offsets;
        Ok((name, TensorEntry { file, dtype: info.dtype, shape, strided: None, range: start + from..start + to }))
    });
    entries.collect()
}

/// The most dimensions that all of libtorch's functions take.
const MAX_DIMENSIONS: usize = 64;

/// The sizes as libtorch has them; `None` if there are too many, or their product overflows, without those of 0: libtorch
/// multiplies the sizes of an empty tensor too.
fn shape(sizes: &[usize]) -> Option<Vec<i64>> {
    if sizes.len() > MAX_DIMENSIONS {
        return None;
    }
    let shape = sizes.iter().map(|&size| i64::try_from(size).ok()).collect::<Option<Vec<_>>>()?;
    shape.iter().try_fold(1_i64, |product, &size| product.checked_mul(size.max(1)))?;
    Some(shape)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_one_that_libtorch_takes() {
        assert_eq!(shape(&[2, 0, 3]).unwrap(), [2, 0, 3]);
        assert_eq!(shape(&[1; MAX_DIMENSIONS]).unwrap().len(), MAX_DIMENSIONS);
        assert_eq!(shape(&[1; MAX_DIMENSIONS + 1]), None);
        assert_eq!(shape(&[0, usize::MAX / 2, 3]), None);
        let taken = tch::Tensor::zeros([1_i64; MAX_DIMENSIONS], (Kind::Float, tch::Device::Cpu));
        assert_eq!(taken.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Float).unwrap().dim(), MAX_DIMENSIONS - 1);
    }
}
