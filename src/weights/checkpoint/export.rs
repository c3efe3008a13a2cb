//! Writes a checkpoint as one safetensors file.

use super::Checkpoint;
use super::borrowed::Borrowed;
use super::entry::{Entry, float_kind, kind};
use crate::bad_input;
use anyhow::{Context, Error, Result, anyhow};
use rustix::io::Errno;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use tch::Device;

/// A tensor on its way into a file. The library asks for one at a time, so no more than one is in memory.
struct Outgoing<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    entry: &'a Entry,
    dtype: Dtype,
    shape: Vec<usize>,
    keep_going: &'a dyn Fn() -> Result<()>,
    /// The library has no way to be told: whoever asked it to write looks here.
    failure: &'a RefCell<Option<Error>>,
}

impl Checkpoint {
    /// Writes all tensors, floats in `dtype` or, without one, each in its own; `keep_going` is asked before each.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a number is too large for the type or a tensor's type cannot be read; the error of
    /// `keep_going`; an error if the file cannot be written. Then there may be a part of it.
    pub fn write_safetensors(
        &self,
        path: &Path,
        dtype: Option<Dtype>,
        keep_going: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let failure = RefCell::new(None);
        let outgoing = |(name, entry): (&'_ String, &'_ Entry)| {
            let is_float = float_kind(entry.dtype).is_some();
            let shape = entry.shape.iter().map(|&size| size as usize).collect();
            let dtype = dtype.filter(|_| is_float).unwrap_or(entry.dtype);
            (name.clone(), (dtype, shape))
        };
        let plan: Vec<(String, (Dtype, Vec<usize>))> =
            self.tensors.iter().filter(|(name, _)| !is_constant(name)).map(outgoing).collect();
        let tensors = plan.iter().filter_map(|(name, (dtype, shape))| {
            let entry = self.tensors.get(name)?;
            let (dtype, shape, failure) = (*dtype, shape.clone(), &failure);
            Some((name, Outgoing { checkpoint: self, name, entry, dtype, shape, keep_going, failure }))
        });
        let format = HashMap::from([("format".to_string(), "pt".to_string())]);
        let written = serialize_to_file(tensors, Some(format), path);
        match (failure.into_inner(), written) {
            (Some(error), _) => Err(error),
            // What the system says where it cannot read what it is to write.
            (None, Err(SafeTensorError::IoError(error))) if Errno::from_io_error(&error) == Some(Errno::FAULT) => {
                let origin = &self.origin;
                Err(anyhow!("{origin} was cut off, or its disk failed, while it was read; run again once it is whole"))
            }
            (None, written) => written.with_context(|| format!("cannot write {}: is the disk full?", path.display())),
        }
    }
}

/// Old transformers saved these constants; they carry nothing.
pub(crate) fn is_constant(name: &str) -> bool {
    name.ends_with("position_ids")
}

impl Outgoing<'_> {
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        (self.keep_going)()?;
        if self.dtype == self.entry.dtype && self.entry.strided.is_none() {
            return Ok(Cow::Borrowed(self.checkpoint.bytes(self.entry)));
        }
        let (origin, name, dtype) = (&self.checkpoint.origin, self.name, self.dtype);
        let kind =
            kind(dtype).ok_or_else(|| bad_input!("{origin}: tensor {name} has type {dtype:?}, which is not read"))?;
        let borrowed = Borrowed::new(self.checkpoint, self.entry)?;
        let converted = borrowed.to_owned(kind, Device::Cpu)?;
        if self.dtype != self.entry.dtype && !is_finite(&converted)? && borrowed.is_finite()? {
            return Err(bad_input!("{origin}: tensor {name} has numbers too large for {dtype:?}; take f32 or bf16"));
        }
        let elements = self.entry.elements() as usize;
        let mut bytes = vec![0; self.data_len()];
        converted.f_copy_data_u8(&mut bytes, elements)?;
        Ok(Cow::Owned(bytes))
    }
}

fn is_finite(tensor: &tch::Tensor) -> Result<bool> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.failure.borrow().is_some() {
            return Cow::Borrowed(&[]);
        }
        self.bytes().unwrap_or_else(|error| {
            *self.failure.borrow_mut() = Some(error);
            Cow::Borrowed(&[])
        })
    }

    fn data_len(&self) -> usize {
        self.entry.elements() as usize * self.dtype.bitsize() / 8
    }
}
