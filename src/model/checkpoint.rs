//! Checkpoints: safetensors files, whole or sharded by an index, read where they lie, checked against what a model needs.

mod borrowed;

pub(super) use borrowed::StackedWeight;

use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::{Bytes, Folder};
use crate::model::precision::Precision;
use anyhow::Result;
use borrowed::Borrowed;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Stems of weight files, as diffusers (first) and transformers write them.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Infixes of the variants that the hub holds beside or in place of the plain files; the plain one comes first.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// The tensors of one component, in one or several files, mapped into memory or part of the program.
#[derive(Debug)]
pub struct Checkpoint {
    /// What messages call it: the folder or file that it was opened from.
    origin: String,
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies. The range is inside its file: safetensors checked it against the file's length.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens the weights in a component's folder: `diffusion_pytorch_model.safetensors`, `model.safetensors`, one of
    /// these sharded with an index, or, where no plain file is there, a variant such as `model.fp16.safetensors`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there are none, or a file is truncated, corrupt or at odds with its index.
    pub fn open_folder(folder: &Folder) -> Result<Self> {
        for variant in VARIANTS {
            for stem in STEMS {
                let whole = format!("{stem}{variant}.safetensors");
                if folder.has_file(&whole) {
                    return Self::open_files(folder.to_string(), folder, &[&whole]);
                }
                // Both libraries have put the variant at either end over the years.
                let names = [
                    format!("{stem}.safetensors.index{variant}.json"),
                    format!("{stem}{variant}.safetensors.index.json"),
                ];
                if let Some(index) = names.iter().find(|name| folder.has_file(name)) {
                    return Self::open_sharded(folder, index);
                }
            }
        }
        let expected = STEMS.map(|stem| format!("{stem}.safetensors")).join(" or ");
        let found = if has_pickles(folder) { "only pickles (.bin), which are not read" } else { "none" };
        Err(bad_input!("{folder} must hold weights as {expected}, whole or sharded with an index; it has {found}"))
    }

    /// Opens one file in a folder.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the file is missing, truncated or corrupt.
    pub fn open_file(folder: &Folder, name: &str) -> Result<Self> {
        Self::open_files(folder.path_of(name), folder, &[name])
    }

    fn open_files(origin: String, folder: &Folder, names: &[&str]) -> Result<Self> {
        let mut checkpoint = Self { origin, files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            checkpoint.add_file(folder, name)?;
        }
        Ok(checkpoint)
    }

    fn open_sharded(folder: &Folder, index_name: &str) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index = folder.path_of(index_name);
        let text = folder.read_text(index_name).or_bad_input(|| format!("cannot read {index}"))?;
        let Index { weight_map } = serde_json::from_str(&text)
            .or_bad_input(|| format!("{index} is not an index of shards: a JSON object with a weight_map is needed"))?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        // An index names files beside it; anything else would let a downloaded model read where it should not.
        let is_plain = |name: &str| Path::new(name).file_name().is_some_and(|file_name| file_name == name);
        if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
            return Err(bad_input!("{index}: shard {shard:?} is not a plain file name"));
        }
        let shards: Vec<&str> = shards.into_iter().collect();
        if let Some(missing) = shards.iter().find(|shard| !folder.has_file(shard)) {
            return Err(bad_input!("{index} names {}, which is not there", folder.path_of(missing)));
        }
        let checkpoint = Self::open_files(folder.to_string(), folder, &shards)?;
        let absent: Vec<&str> =
            weight_map.keys().filter(|name| !checkpoint.tensors.contains_key(*name)).map(String::as_str).collect();
        if !absent.is_empty() {
            return Err(bad_input!("{index} lists tensors that no shard holds: {}", absent.join(", ")));
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, folder: &Folder, name: &str) -> Result<()> {
        let path = folder.path_of(name);
        let corrupt = |error: String| bad_input!("{path} is not a sound safetensors file ({error}); fetch it again");
        let bytes = folder.open(name).or_bad_input(|| format!("cannot read {path}"))?;
        if bytes.is_empty() {
            return Err(corrupt("it is empty".into()));
        }
        let (header_len, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| corrupt(error.to_string()))?;
        let start = header_len + size_of::<u64>();
        let file_index = self.files.len();
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
            let shape = shape.map_err(|_| corrupt(format!("tensor {name} is too large")))?;
            let (from, to) = info.data_offsets;
            let entry = Entry { file: file_index, dtype: info.dtype, shape, range: start + from..start + to };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(bad_input!("{}: tensor {name} is in two shards", self.origin));
            }
        }
        self.files.push(bytes);
        Ok(())
    }

    /// Builds a module from the tensors whose names start with `prefix` (empty, or ending in a dot).
    ///
    /// `build` runs twice: once against names, shapes and types alone, so that everything that is wrong goes into one
    /// message, and then to read.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names every missing, unexpected, wrongly shaped and wrongly typed tensor, and
    /// the errors of `build`.
    pub fn build<M>(&self, prefix: &str, placement: Placement, build: impl Fn(&Weights) -> Result<M>) -> Result<M> {
        let report = RefCell::new(Report::default());
        let reading = Weights { checkpoint: self, prefix: prefix.into(), placement, check: None };
        build(&Weights { check: Some(&report), ..reading.clone() })?;
        self.judge(prefix, report.into_inner())?;
        build(&reading)
    }

    fn judge(&self, prefix: &str, mut report: Report) -> Result<()> {
        let unexpected = |name: &&String| {
            // Old transformers saved these constants; they carry nothing.
            name.starts_with(prefix) && !report.seen.contains(*name) && !name.ends_with("position_ids")
        };
        report.unexpected = self.tensors.keys().filter(unexpected).cloned().collect();
        match report.line() {
            Some(line) => Err(bad_input!("{} does not fit its configuration: {line}", self.origin)),
            None => Ok(()),
        }
    }

    /// The names of the tensors that hold a NaN or an infinity. Reads everything: meant for telling why a result is
    /// not finite.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn non_finite_tensors(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, entry) in &self.tensors {
            let Some(kind) = float_kind(entry.dtype) else { continue };
            let tensor = Tensor::f_from_data_size(self.bytes(entry), &entry.shape, kind)?;
            if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// Number of weights, whatever they are for.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|entry| entry.shape.iter().product::<i64>() as u64).sum()
    }

    /// What messages call this checkpoint.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file][entry.range.clone()]
    }
}

/// What a checkpoint lacks or has too much of.
#[derive(Debug, Default)]
struct Report {
    seen: BTreeSet<String>,
    missing: Vec<String>,
    unexpected: Vec<String>,
    wrong: Vec<String>,
}

impl Report {
    fn line(&self) -> Option<String> {
        let groups = [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong", &self.wrong)];
        let parts: Vec<String> = groups
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{} {what} ({})", names.len(), names.join(", ")))
            .collect();
        (!parts.is_empty()).then(|| format!("tensors {}", parts.join("; ")))
    }
}

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
    fn borrow(&self, name: &str, shape: &[i64]) -> Result<Option<Borrowed<'a>>> {
        let name = format!("{}{name}", self.prefix);
        if let Some(report) = self.check {
            self.check_tensor(&mut report.borrow_mut(), name, shape);
            return Ok(None);
        }
        let checkpoint = self.checkpoint;
        let entry = checkpoint.tensors.get(&name);
        let entry = entry.ok_or_else(|| bad_input!("{}: tensor {name} is missing", checkpoint.origin))?;
        Borrowed::new(checkpoint, entry).map(Some)
    }

    fn check_tensor(&self, report: &mut Report, name: String, shape: &[i64]) {
        match self.checkpoint.tensors.get(&name) {
            None => report.missing.push(name.clone()),
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

fn has_pickles(folder: &Folder) -> bool {
    folder.file_names().iter().any(|name| Path::new(name).extension().is_some_and(|extension| extension == "bin"))
}

fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}
