//! Writes a checkpoint as one safetensors file.

use super::entry::{TensorEntry, float_kind, kind};
use super::store::{Checkpoint, is_constant};
use super::view::is_finite;
use crate::error::{Error, Hint, Result};
use rustix::io::Errno;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use tch::Device;

/// A tensor on its way into a file. safetensors asks for one at a time, so no more than one is in memory.
struct Outgoing<'a, E> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    entry: &'a TensorEntry,
    dtype: Dtype,
    shape: Vec<usize>,
    keep_going: &'a dyn Fn() -> Result<(), E>,
    /// The first error: safetensors takes none from a [`View`].
    failure: &'a RefCell<Option<E>>,
}

impl Checkpoint {
    /// Writes all tensors: floats in `dtype`, or each in its own type without one. `keep_going` is called before each tensor,
    /// and its error ends the writing.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a number is too large for the type or a tensor's type is not supported; the error of `keep_going`;
    /// [`Error::Io`] if the file cannot be written. It may be there in part then.
    pub fn write_safetensors<E: From<Error>>(
        &self,
        path: &Path,
        dtype: Option<Dtype>,
        keep_going: &dyn Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let failure = RefCell::new(None);
        let exported = self.tensors.iter().filter(|(name, _)| !is_constant(name));
        let tensors = exported.map(|(name, entry)| {
            let dtype = dtype.filter(|_| float_kind(entry.dtype).is_some()).unwrap_or(entry.dtype);
            let shape = entry.shape.iter().map(|&size| size as usize).collect();
            (name, Outgoing { checkpoint: self, name, entry, dtype, shape, keep_going, failure: &failure })
        });
        let format = HashMap::from([("format".to_string(), "pt".to_string())]);
        let written = serialize_to_file(tensors, Some(format), path);
        match (failure.into_inner(), written) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(self.write_error(path, error).into()),
            (None, Ok(())) => Ok(()),
        }
    }

    fn write_error(&self, path: &Path, error: SafeTensorError) -> Error {
        match error {
            // The system's answer where it cannot read the bytes that it is to write.
            SafeTensorError::IoError(error) if Errno::from_io_error(&error) == Some(Errno::FAULT) => Error::Io {
                path: self.origin.clone(),
                reason: "was truncated, or its disk failed, while it was read".into(),
                hint: Some(Hint::Other("run again once it is complete".into())),
                source: Some(error.into()),
            },
            error => Error::Io {
                path: path.display().to_string(),
                reason: "cannot be written: is the disk full?".into(),
                hint: None,
                source: Some(match error {
                    SafeTensorError::IoError(error) => error.into(),
                    error => error.into(),
                }),
            },
        }
    }
}

impl<E: From<Error>> Outgoing<'_, E> {
    fn bytes(&self) -> Result<Cow<'_, [u8]>, E> {
        (self.keep_going)()?;
        if self.dtype == self.entry.dtype && self.entry.strided.is_none() {
            return Ok(Cow::Borrowed(self.checkpoint.bytes(self.entry)));
        }
        Ok(Cow::Owned(self.converted()?))
    }

    fn converted(&self) -> Result<Vec<u8>> {
        let (name, dtype) = (self.name, self.dtype);
        let refused = |reason: String| Error::tensor(&self.checkpoint.origin, name, reason);
        let kind =
            kind(dtype).ok_or_else(|| refused(format!("tensor {name} has type {dtype:?}, which is not supported")))?;
        let view = self.checkpoint.view(name, self.entry)?;
        let converted = view.to_owned(kind, Device::Cpu)?;
        if dtype != self.entry.dtype && !is_finite(&converted)? && view.is_finite()? {
            let reason = format!("tensor {name} has numbers that are too large for {dtype:?}");
            return Err(refused(reason).with_hint(Hint::Other("take f32 or bf16".into())));
        }
        let mut bytes = vec![0; self.data_len()];
        converted.f_copy_data_u8(&mut bytes, self.entry.elements() as usize)?;
        Ok(bytes)
    }
}

impl<E: From<Error>> View for Outgoing<'_, E> {
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
