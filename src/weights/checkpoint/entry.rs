//! Where a tensor lies in its file.

use crate::bad_input;
use crate::error::{FETCH_AGAIN, OrBadInput};
use anyhow::Result;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::ops::Range;
use tch::Kind;

/// A tensor in one of a checkpoint's files. Whoever makes one has checked the range against the file's length, and that
/// the numbers are all inside it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) file: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// How its numbers lie, unless they lie one after the other. Its sizes hold as many numbers as `shape`.
    pub(crate) strided: Option<Strided>,
    pub(crate) range: Range<usize>,
}

/// Numbers that do not lie one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strided {
    pub(crate) sizes: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

impl Strided {
    /// The layout of numbers that lie one after the other.
    pub(crate) fn contiguous(sizes: &[i64]) -> Self {
        let mut strides = vec![1; sizes.len()];
        for place in (1..sizes.len()).rev() {
            strides[place - 1] = i64::saturating_mul(strides[place], sizes[place].max(1));
        }
        Self { sizes: sizes.to_vec(), strides }
    }

    /// Whether the numbers lie one after the other. A dimension of 1 may have any stride.
    pub(crate) fn is_contiguous(&self) -> bool {
        let contiguous = Self::contiguous(&self.sizes);
        let strides = self.strides.iter().zip(&contiguous.strides).zip(&self.sizes);
        self.sizes.contains(&0) || strides.into_iter().all(|((stride, wanted), &size)| size == 1 || stride == wanted)
    }
}

impl Entry {
    /// Number of numbers.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64))
    }
}

/// The tensors in a safetensors file. `path` is what messages call it.
///
/// # Errors
/// [`crate::error::BadInput`] if it is truncated or corrupt.
pub(crate) fn safetensors_entries(bytes: &[u8], file: usize, path: &str) -> Result<Vec<(String, Entry)>> {
    let line = |why: &str| format!("{path} is not a sound safetensors file ({why}); {FETCH_AGAIN}");
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| bad_input!("{}", line(&error.to_string())))?;
    let start = header_len + size_of::<u64>();
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let shape = info.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
        let shape = shape.or_bad_input(|| line(&format!("tensor {name} is too large")))?;
        let (from, to) = info.data_offsets;
        Ok((name, Entry { file, dtype: info.dtype, shape, strided: None, range: start + from..start + to }))
    });
    entries.collect()
}

/// libtorch's type of a number; `None` for those that it does not read.
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

/// The same for the types of weights.
pub(crate) fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}
