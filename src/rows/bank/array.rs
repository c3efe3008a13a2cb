//! Embeddings in an array of a file: mapped into memory, or of a compressed file in memory.

use super::names::{EMBEDS, extension, shown};
use crate::bad_input;
use crate::files::Bytes;
use crate::rows::arrays::{ArrayFile, npy_header};
use crate::search::{Block, Float};
use anyhow::Result;
use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

/// How a `.npz` begins, and no `.npy` does.
const ZIP: &[u8] = b"PK";

/// An array, `(rows, dim)`.
#[derive(Debug)]
pub(super) struct StoredArray {
    pub(super) rows: usize,
    pub(super) dim: usize,
    float: Float,
    /// Whether columns come one after the other, not rows.
    is_fortran: bool,
    bytes: Bytes,
    /// Where it starts in the bytes.
    start: usize,
}

impl StoredArray {
    /// Opens a file, `-` for standard input.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read, is damaged, or holds no embeddings.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = shown(path);
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            let read = std::io::stdin().read_to_end(&mut bytes);
            read.map_err(|error| bad_input!("cannot read {name} ({error})"))?;
            if bytes.starts_with(ZIP) {
                return Self::of_file(ArrayFile::of_npz(&name, &bytes)?);
            }
            return npy(bytes.into()).map_err(|reason| bad_input!("{name} {reason}"));
        }
        let extension = extension(path);
        if extension.as_deref() == Some("npz") {
            return Self::of_file(ArrayFile::read(path, &|_| true)?);
        }
        let bytes = Bytes::of_file(path).map_err(|error| bad_input!("cannot read {name} ({error})"))?;
        let opened = match extension.as_deref() {
            Some("npy") => npy(bytes),
            Some("safetensors") => safetensors(bytes),
            _ => Err("does not end in .npy, .npz, .safetensors or .parquet, and is no folder".into()),
        };
        opened.map_err(|reason| bad_input!("{name} {reason}"))
    }

    /// The only array of a file in memory, or that of embeddings.
    fn of_file(mut file: ArrayFile) -> Result<Self> {
        let array = file.only_or(EMBEDS)?;
        let array = file.take_any(&array).unwrap_or_default();
        Self::of_values(array).map_err(|reason| bad_input!("{:?} {reason}", file.name))
    }

    /// An array of numbers that are in memory.
    fn of_values(array: ArrayD<f32>) -> Result<Self, String> {
        let shape = array.shape().to_vec();
        let bytes: Vec<u8> = array.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(bytes.into(), 0, &shape, Float::F32, false)
    }

    /// An array from `start` to the end of the bytes.
    fn new(bytes: Bytes, start: usize, shape: &[usize], float: Float, is_fortran: bool) -> Result<Self, String> {
        let (rows, dim) = match *shape {
            [dim] => (1, dim),
            [rows, dim] => (rows, dim),
            _ => return Err(format!("has an array of shape {shape:?}, and embeddings are (rows, dim)")),
        };
        let size = rows.checked_mul(dim).and_then(|count| count.checked_mul(float.size()));
        match size.and_then(|size| start.checked_add(size)) {
            Some(end) if end <= bytes.len() => Ok(Self { rows, dim, float, is_fortran, bytes, start }),
            _ => {
                let found = bytes.len().saturating_sub(start);
                Err(format!("is truncated: it has {found} bytes for an array of shape {shape:?}"))
            }
        }
    }

    /// See [`super::Bank::for_each_block`]; the first row has the number `first`.
    ///
    /// # Errors
    /// Those of `visit`.
    pub(super) fn for_each_block(
        &self,
        first: u64,
        max: usize,
        visit: &mut dyn FnMut(&Block) -> Result<()>,
    ) -> Result<()> {
        let (dim, float) = (self.dim, self.float);
        for row in (0..self.rows).step_by(max) {
            let rows = max.min(self.rows - row);
            let bytes = match self.is_fortran {
                true => Cow::Owned(self.gathered(row, rows)),
                false => Cow::Borrowed(&self.bytes[self.place(row * dim)..self.place((row + rows) * dim)]),
            };
            visit(&Block { first: first + row as u64, dim, float, bytes })?;
            if !self.is_fortran {
                self.bytes.release(self.place(row * dim)..self.place((row + rows) * dim));
            }
        }
        Ok(())
    }

    /// Where a number is in the bytes.
    fn place(&self, number: usize) -> usize {
        self.start + number * self.float.size()
    }

    /// Rows whose columns lie apart.
    fn gathered(&self, row: usize, rows: usize) -> Vec<u8> {
        let numbers = (row..row + rows).flat_map(|row| (0..self.dim).map(move |column| column * self.rows + row));
        let mut bytes = Vec::with_capacity(rows * self.dim * self.float.size());
        numbers.for_each(|number| bytes.extend_from_slice(&self.bytes[self.place(number)..self.place(number + 1)]));
        bytes
    }
}

fn npy(bytes: Bytes) -> Result<StoredArray, String> {
    let (descriptor, is_fortran, shape, start) = npy_header(&bytes).ok_or("is not a valid .npy file")?;
    let float = match descriptor.trim_start_matches(['<', '|', '=']) {
        "f2" => Float::F16,
        "f4" => Float::F32,
        "f8" => Float::F64,
        // numpy has no bfloat16: that of ml_dtypes is two bytes of no known type to it.
        "V2" => Float::Bf16,
        other => return Err(format!("has numbers of type {other:?}, and embeddings are f16, bf16, f32 or f64")),
    };
    StoredArray::new(bytes, start, &shape, float, is_fortran)
}

fn safetensors(bytes: Bytes) -> Result<StoredArray, String> {
    let damaged = |error| format!("is not a valid safetensors file, or is truncated ({error})");
    SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let tensors = metadata.tensors();
    let found = match tensors.len() {
        1 => tensors.iter().next(),
        _ => tensors.get_key_value(EMBEDS),
    };
    let Some((name, info)) = found else {
        return Err(format!("holds {} arrays, and none is called {EMBEDS}", tensors.len()));
    };
    let float = match info.dtype {
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::Bf16,
        Dtype::F32 => Float::F32,
        Dtype::F64 => Float::F64,
        other => return Err(format!("has {name} of type {other:?}, and embeddings are f16, bf16, f32 or f64")),
    };
    // A header of eight bytes says how long the next is.
    let (start, shape) = (8 + header + info.data_offsets.0, info.shape.clone());
    StoredArray::new(bytes, start, &shape, float, false)
}
