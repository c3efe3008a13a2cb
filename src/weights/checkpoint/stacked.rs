//! The weights of several layers as one, for a product that computes them together.

use super::view::TensorView;
use super::weights::Weights;
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// The `weight`s of several layers, concatenated along the first dimension, in their file's type.
pub(crate) struct StackedWeight<'a> {
    /// A single part is the tensor itself; several are what `stacked` was made of.
    parts: Vec<TensorView<'a>>,
    stacked: Option<Tensor>,
}

impl<'a> StackedWeight<'a> {
    /// Reads `weight` of each layer, all of the same shape; `None` in the pass that only checks the checkpoint.
    ///
    /// # Errors
    /// If memory runs out.
    pub(crate) fn borrow(layers: &[Weights<'a>], shape: &[i64]) -> Result<Option<Self>> {
        let parts = layers.iter().map(|layer| layer.view("weight", shape)).collect::<Result<Vec<_>>>()?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let stacked = match parts.len() {
            1 => None,
            _ => Some(Tensor::f_cat(&parts.iter().map(TensorView::tensor).collect::<Vec<_>>(), 0)?),
        };
        Ok(Some(Self { parts, stacked }))
    }

    /// The stacked tensor in the file's type, borrowed.
    pub(crate) fn tensor(&self) -> &Tensor {
        self.stacked.as_ref().unwrap_or_else(|| self.parts[0].tensor())
    }

    /// A copy of the stacked tensor.
    ///
    /// # Errors
    /// If memory runs out.
    pub(crate) fn to_owned(&self, kind: Kind, device: Device) -> Result<Tensor> {
        match &self.stacked {
            Some(stacked) => Ok(stacked.f_to_device(device)?.f_to_kind(kind)?),
            None => self.parts[0].to_owned(kind, device),
        }
    }
}
