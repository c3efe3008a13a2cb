//! Tensors in a pickle, as parts of storages.

use super::error::PickleError;
use safetensors::tensor::Dtype;

/// The maximum number of dimensions. No weights have more; libtorch would allow 64, and each costs memory.
pub(super) const MAX_DIMENSIONS: usize = 8;

/// The type of a storage's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// A type that weights may have.
    Of(Dtype),
    /// Bytes, whose type the tensor names.
    Untyped,
    /// Complex or quantized numbers, which are not supported: the class of the storage, and the bytes per element.
    Other(&'static str, usize),
}

impl ElementType {
    /// The element type of a storage class in `torch` that is not supported.
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

/// The memory of tensors, which is outside the pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// Its name in the file.
    pub key: &'a str,
    pub(super) element: ElementType,
    /// The element count.
    pub len: usize,
}

impl Storage<'_> {
    /// Its size in bytes; `None` if that overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.len.checked_mul(self.element.bytes())
    }
}

/// A tensor, which lies inside its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor<'a> {
    /// Its memory.
    pub storage: Storage<'a>,
    /// Its element type.
    pub dtype: Dtype,
    /// The offset in bytes of its first element in the storage.
    pub start: usize,
    /// The offset in bytes after its last element.
    pub end: usize,
    /// The size of each dimension.
    pub shape: Vec<i64>,
    /// The stride of each dimension, in elements.
    pub strides: Vec<i64>,
}

impl<'a> StoredTensor<'a> {
    /// Checks that a tensor lies inside its storage, and that a copy of it would not be larger.
    pub(super) fn new(
        storage: Storage<'a>,
        dtype: Dtype,
        offset: i64,
        shape: Vec<i64>,
        strides: Vec<i64>,
    ) -> Result<Self, PickleError> {
        let outside = || PickleError::corrupt("a tensor in it reaches outside its storage");
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return Err(PickleError::corrupt("a tensor in it has sizes and strides of different lengths"));
        }
        if offset < 0 || shape.iter().chain(&strides).any(|&size| size < 0) {
            return Err(PickleError::corrupt("a tensor in it has a negative size, stride or offset"));
        }
        let (count, span) = extent(&shape, &strides).ok_or_else(outside)?;
        let bytes = |elements: i64| usize::try_from(elements).ok()?.checked_mul(bytes_of(dtype));
        let in_bytes = || Some((bytes(offset)?, bytes(offset.checked_add(span)?)?, bytes(count)?, storage.bytes()?));
        let (start, end, size, available) = in_bytes().ok_or_else(outside)?;
        // Strides of 0 could repeat one element any number of times.
        if end > available || size > available {
            return Err(outside());
        }
        Ok(Self { storage, dtype, start, end, shape, strides })
    }
}

/// The element count of a tensor, and the number of elements from its first to its last in memory; `None` on overflow.
fn extent(shape: &[i64], strides: &[i64]) -> Option<(i64, i64)> {
    // libtorch multiplies the sizes of an empty tensor too.
    let count = shape.iter().try_fold(1_i64, |count, &size| count.checked_mul(size.max(1)))?;
    if shape.contains(&0) {
        return Some((0, 0));
    }
    let last = shape.iter().zip(strides).try_fold(0_i64, |last, (&size, &stride)| {
        (size - 1).checked_mul(stride).and_then(|further| last.checked_add(further))
    })?;
    Some((count, last.checked_add(1)?))
}

/// Bytes per element. No type that a pickle can name is smaller than a byte.
fn bytes_of(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}
