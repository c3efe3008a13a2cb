//! A module's view of a checkpoint: tensors by name, checked against what the module needs.

use super::entry::float_kind;
use super::report::Report;
use super::store::Checkpoint;
use super::view::TensorView;
use crate::error::{Error, Result};
use crate::weights::precision::Precision;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use tch::{Device, Kind, Tensor};

/// Bytes of weights that a thread is started for, to read them ahead.
const WORTH_READING_AHEAD: usize = 64 << 20;

/// Where and in which precision a module computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The device that holds the weights.
    pub device: Device,
    /// The precision of its products.
    pub precision: Precision,
}

impl Checkpoint {
    /// Builds a module from the tensors whose names start with `prefix` (empty, or ending in a dot).
    ///
    /// `build` runs twice: first against names, shapes and types alone, so that one error lists everything that is
    /// wrong, and then to read.
    ///
    /// Tensors that the module does not ask for are ignored with a warning, as diffusers and transformers do, unless
    /// they show that the module would compute something else: a bias of one of its layers, or a layer after its last.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] with every missing, unexpected and wrong tensor, or [`Error::File`] if this is a known
    /// kind of checkpoint that cannot be used, and the errors of `build`.
    pub fn build<M>(&self, prefix: &str, placement: Placement, build: impl Fn(&Weights) -> Result<M>) -> Result<M> {
        let names = self.checked(prefix, placement, &build)?;
        self.while_reading_ahead(&names, || {
            build(&Weights { checkpoint: self, prefix: prefix.into(), placement, check: None })
        })
    }

    /// The first of the two passes of [`Checkpoint::build`], which reads no numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::build`].
    pub fn check<M>(&self, prefix: &str, placement: Placement, build: impl Fn(&Weights) -> Result<M>) -> Result<()> {
        self.checked(prefix, placement, build).map(drop)
    }

    /// The names of the tensors that a module needs, in the order that it reads them.
    fn checked<M>(
        &self,
        prefix: &str,
        placement: Placement,
        build: impl Fn(&Weights) -> Result<M>,
    ) -> Result<Vec<String>> {
        let report = RefCell::new(Report::default());
        build(&Weights { checkpoint: self, prefix: prefix.into(), placement, check: Some(&report) })?;
        let checked = report.into_inner().finish(self.names(), prefix, self.origin());
        checked.or_else(|error| self.refuse_foreign().and(Err(error)))
    }

    /// What `build` gives, while a thread has these tensors read from the disk: packing waits for it less.
    fn while_reading_ahead<M>(&self, names: &[String], build: impl FnOnce() -> Result<M>) -> Result<M> {
        let entries = names.iter().filter_map(|name| self.tensors.get(name));
        let ranges: Vec<_> = entries.map(|entry| (entry.file, entry.range.clone())).collect();
        if ranges.iter().map(|(_, range)| range.len()).sum::<usize>() < WORTH_READING_AHEAD {
            return build();
        }
        let (files, is_built) = (&self.files, AtomicBool::new(false));
        thread::scope(|scope| {
            // Without a thread, pages are read when they are touched.
            let _ = thread::Builder::new().name("read-ahead".into()).spawn_scoped(scope, || {
                let left = ranges.into_iter().take_while(|_| !is_built.load(Ordering::Relaxed));
                left.for_each(|(file, range)| files[file].read_ahead(range));
            });
            let built = build();
            is_built.store(true, Ordering::Relaxed);
            built
        })
    }
}

/// A checkpoint as one module sees it: names are relative to the module.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    placement: Placement,
    /// Set in the first of the two passes of [`Checkpoint::build`], which checks and does not read.
    check: Option<&'a RefCell<Report>>,
}

impl<'a> Weights<'a> {
    /// The view from the module `name` inside this one.
    pub fn sub(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// Ignores tensors whose names start with one of `prefixes`: the other parts of a larger model.
    pub fn ignore(&self, prefixes: &[&str]) {
        if let Some(report) = self.check {
            report.borrow_mut().ignored.extend(prefixes.iter().map(|prefix| format!("{}{prefix}", self.prefix)));
        }
    }

    /// The same view in float32, for small matrices that matter.
    pub fn exact(&self) -> Self {
        let placement = Placement { precision: Precision::F32, ..self.placement };
        Self { placement, ..self.clone() }
    }

    /// The precision that the module computes in.
    pub fn precision(&self) -> Precision {
        self.placement.precision
    }

    /// The device that the module computes on.
    pub fn device(&self) -> Device {
        self.placement.device
    }

    /// Reads the tensor `name`, which must have this shape, as float32 on the device of this view.
    ///
    /// In the pass that only checks the checkpoint, this and everything made from it is an undefined tensor.
    ///
    /// # Errors
    /// If memory runs out. A tensor that does not fit is an error of [`Checkpoint::build`].
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
        match self.view(name, shape)? {
            Some(view) => view.to_owned(kind, self.device()),
            None => Ok(Tensor::new()),
        }
    }

    /// The tensor `name` as it lies in its file, with its deltas; `None` in the pass that only checks the checkpoint.
    pub(super) fn view(&self, name: &str, shape: &[i64]) -> Result<Option<TensorView<'a>>> {
        let name = format!("{}{name}", self.prefix);
        if let Some(report) = self.check {
            self.check_tensor(&mut report.borrow_mut(), name, shape);
            return Ok(None);
        }
        let checkpoint = self.checkpoint;
        let Some(entry) = checkpoint.tensors.get(&name) else {
            let (path, missing) = (checkpoint.origin.clone(), vec![name]);
            return Err(Error::MissingTensors { path, missing, unexpected: Vec::new(), wrong: Vec::new() });
        };
        let view = checkpoint.view(&name, entry)?;
        match checkpoint.deltas.get(&name) {
            Some(deltas) => view.with_deltas(deltas).map(Some),
            None => Ok(Some(view)),
        }
    }

    fn check_tensor(&self, report: &mut Report, name: String, shape: &[i64]) {
        match self.checkpoint.tensors.get(&name) {
            None => match self.checkpoint.foreign.get(&name) {
                Some(function) => report.wrong.push(format!("{name} is a value of `{function}`, which is not run")),
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
        if report.seen.insert(name.clone()) {
            report.in_order.push(name);
        }
    }
}
