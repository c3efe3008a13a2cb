//! Tensors in a pickle: which numbers of which storage they are.

use super::PickleError;
use safetensors::tensor::Dtype;

/// The most dimensions of a tensor. No weights have more; libtorch would allow 64, and one tensor may stand for many.
pub(super) const MOST_DIMENSIONS: usize = 8;

/// What the numbers of a storage are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Of this type.
    Of(Dtype),
    /// Bytes that get their type from the tensor.
    Untyped,
    /// Complex or quantized ones, which no weights here are made of: the class of the storage, and a number's bytes.
    Other(&'static str, usize),
}

impl Numbers {
    /// The numbers of the storages of a class in `torch` that no weights here are made of.
    pub(super) fn other(class: &str) -> Option<Self> {
        const CLASSES: [(&str, usize); 7] = [
            ("ComplexFloatStorage", 8),
            ("ComplexDoubleStorage", 16),
            ("QInt8Storage", 1),
            ("QUInt8Storage", 1),
            ("QInt32Storage", 4),
            ("QUInt4x2Storage", 1),
            ("QUInt2x4Storage", 1),
        ];
        CLASSES.iter().find(|(name, _)| *name == class).map(|&(name, bytes)| Self::Other(name, bytes))
    }

    fn bytes(self) -> usize {
        match self {
            Self::Of(dtype) => bytes_of(dtype),
            Self::Untyped => 1,
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// The memory of tensors, which lies outside the pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// What the file calls it.
    pub key: &'a str,
    /// What its numbers are.
    pub numbers: Numbers,
    /// Number of numbers, or of bytes.
    pub len: usize,
}

impl Storage<'_> {
    /// Its size in bytes; `None` if there is no such size.
    pub fn bytes(&self) -> Option<usize> {
        self.len.checked_mul(self.numbers.bytes())
    }
}

/// A tensor that lies inside its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor<'a> {
    /// Where its numbers are.
    pub storage: Storage<'a>,
    /// Their type.
    pub dtype: Dtype,
    /// The place of its first byte in the storage.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// Its sizes.
    pub shape: Vec<i64>,
    /// How many numbers further the next one along each dimension is.
    pub strides: Vec<i64>,
}

impl<'a> StoredTensor<'a> {
    /// Checks that a tensor lies inside its storage, and is no larger.
    pub(super) fn new(
        storage: Storage<'a>,
        dtype: Dtype,
        offset: i64,
        shape: Vec<i64>,
        strides: Vec<i64>,
    ) -> Result<Self, PickleError> {
        let outside = || PickleError::corrupt("a tensor in it reaches outside its storage");
        if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
            return Err(PickleError::corrupt("a tensor in it has sizes and strides that do not fit each other"));
        }
        if offset < 0 || shape.iter().chain(&strides).any(|&size| size < 0) {
            return Err(PickleError::corrupt("a tensor in it has a negative size, stride or place"));
        }
        let (count, span) = extent(&shape, &strides).ok_or_else(outside)?;
        let place = |elements: i64| usize::try_from(elements).ok()?.checked_mul(bytes_of(dtype));
        let in_bytes = || Some((place(offset)?, place(offset.checked_add(span)?)?, place(count)?, storage.bytes()?));
        let (start, end, size, most) = in_bytes().ok_or_else(outside)?;
        // Strides of 0 could make any number of numbers out of one.
        if end > most || size > most {
            return Err(outside());
        }
        Ok(Self { storage, dtype, start, end, shape, strides })
    }
}

/// How many numbers a tensor has, and how many lie from its first to its last; `None` if they are too many.
fn extent(shape: &[i64], strides: &[i64]) -> Option<(i64, i64)> {
    // Also a tensor of nothing has sizes that libtorch multiplies.
    let count = shape.iter().try_fold(1_i64, |count, &size| count.checked_mul(size.max(1)))?;
    if shape.contains(&0) {
        return Some((0, 0));
    }
    let last = shape.iter().zip(strides).try_fold(0_i64, |last, (&size, &stride)| {
        (size - 1).checked_mul(stride).and_then(|further| last.checked_add(further))
    })?;
    Some((count, last.checked_add(1)?))
}

/// Bytes of a number. No type that a pickle can name takes part of a byte.
fn bytes_of(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}
