//! A module's view of a checkpoint: tensors by name, checked against what the module needs.

use super::borrowed::Borrowed;
use super::entry::float_kind;
use super::{Checkpoint, Report};
use crate::bad_input;
use crate::nn::precision::Precision;
use anyhow::Result;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Where and how a module is going to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The device that holds the weights.
    pub device: Device,
    /// What products are computed in.
    pub precision: Precision,
}

/// A view of a checkpoint from one module: names are relative to the module's place.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) prefix: String,
    pub(crate) placement: Placement,
    /// Set in the first of the two passes of [`Checkpoint::build`], which checks and does not read.
    pub(crate) check: Option<&'a RefCell<Report>>,
}

impl<'a> Weights<'a> {
    /// The view from the module `name` inside this one.
    pub fn sub(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// Says that tensors whose names start with one of these are parts of a larger model that the module is no part of.
    pub fn leave_to_others(&self, starts: &[&str]) {
        if let Some(report) = self.check {
            report.borrow_mut().others.extend(starts.iter().map(|start| format!("{}{start}", self.prefix)));
        }
    }

    /// The same view in float32, for matrices that are small and matter.
    pub fn exact(&self) -> Self {
        let placement = Placement { precision: Precision::F32, ..self.placement };
        Self { placement, ..self.clone() }
    }

    /// What the module computes in.
    pub fn precision(&self) -> Precision {
        self.placement.precision
    }

    /// Where the module computes.
    pub fn device(&self) -> Device {
        self.placement.device
    }

    /// Reads the tensor `name`, which must have the given shape, in float32 on the device of this view.
    ///
    /// While a checkpoint is only checked, this and everything made from it is an undefined tensor.
    ///
    /// # Errors
    /// If memory runs out. What does not fit is an error of [`Checkpoint::build`].
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.tensor_of_kind(name, shape, Kind::Float)
    }

    /// As [`Weights::tensor`], in the type of this view's matrices.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn matrix(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.tensor_of_kind(name, shape, self.precision().kind())
    }

    fn tensor_of_kind(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor> {
        match self.borrow(name, shape)? {
            Some(borrowed) => borrowed.to_owned(kind, self.device()),
            None => Ok(Tensor::new()),
        }
    }

    /// The tensor `name` where it lies in its file; `None` while the checkpoint is only checked.
    pub(crate) fn borrow(&self, name: &str, shape: &[i64]) -> Result<Option<Borrowed<'a>>> {
        let name = format!("{}{name}", self.prefix);
        if let Some(report) = self.check {
            self.check_tensor(&mut report.borrow_mut(), name, shape);
            return Ok(None);
        }
        let checkpoint = self.checkpoint;
        let entry = checkpoint.tensors.get(&name);
        let entry = entry.ok_or_else(|| bad_input!("{}: tensor {name} is missing", checkpoint.origin))?;
        let borrowed = Borrowed::new(checkpoint, entry)?;
        match checkpoint.deltas.get(&name) {
            Some(deltas) => borrowed.with_added(deltas).map(Some),
            None => Ok(Some(borrowed)),
        }
    }

    fn check_tensor(&self, report: &mut Report, name: String, shape: &[i64]) {
        match self.checkpoint.tensors.get(&name) {
            None => match self.checkpoint.foreign.get(&name) {
                Some(function) => {
                    report.wrong.push(format!("{name} would have to be made by `{function}`, which is not run"))
                }
                None => report.missing.push(name.clone()),
            },
            Some(entry) if entry.shape != shape => {
                report.wrong.push(format!("{name} is {:?} and should be {shape:?}", entry.shape));
            }
            Some(entry) if float_kind(entry.dtype).is_none() => {
                report.wrong.push(format!("{name} has type {:?}, not F32, F16, BF16 or F64", entry.dtype));
            }
            Some(_) => {}
        }
        report.seen.insert(name);
    }
}
