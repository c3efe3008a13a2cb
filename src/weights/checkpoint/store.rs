//! The tensors of a component, in one file or several.

use super::entry::{TensorEntry, float_kind, kind, safetensors_entries};
use super::find::{self, Found};
use super::index::ShardIndex;
use super::torch;
use super::view::TensorView;
use crate::error::{Error, Hint, Result};
use crate::files::{Bytes, Folder};
use crate::text;
use crate::weights::delta::Delta;
use crate::weights::parameter_count::ParameterCount;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The names of the files that [`Checkpoint::open_folder`] reads weights from.
///
/// # Errors
/// [`Error::File`] if there are none, or an index is damaged.
pub fn weight_files(folder: &Folder) -> Result<Vec<String>> {
    match find::weights(folder)? {
        Found::Whole(name) => Ok(vec![name]),
        Found::Sharded(_, index) => Ok(index.shards().into_iter().map(String::from).collect()),
    }
}

/// The tensors of one component, in one file or several, mapped into memory or built into the program.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its name in messages: the folder or file that it was opened from.
    pub(super) origin: String,
    pub(super) files: Vec<Bytes>,
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    /// Values of torch files that are not plain tensors, by name: the function that would make them, which is not run.
    pub(super) foreign: BTreeMap<String, String>,
    /// The deltas that are added to tensors when they are read, by name.
    pub(super) deltas: BTreeMap<String, Vec<Delta>>,
}

impl Checkpoint {
    /// Opens the weights in a component's folder, in the order of the library that its `config.json` is of:
    /// `diffusion_pytorch_model.safetensors`, `model.safetensors`, the same as `.bin`, one of these in shards with an
    /// index, or, without any plain file, a variant such as `model.fp16.safetensors`.
    ///
    /// # Errors
    /// [`Error::File`] if there are none, or a file is truncated, damaged or at odds with its index.
    pub fn open_folder(folder: &Folder) -> Result<Self> {
        match find::weights(folder)? {
            Found::Whole(name) => Self::open_files(folder.to_string(), folder, &[&name]),
            Found::Sharded(name, index) => Self::open_sharded(folder, &name, &index),
        }
    }

    /// Opens one file in a folder: safetensors by its extension, else a file of `torch.save`.
    ///
    /// # Errors
    /// [`Error::File`] if the file is missing, truncated or damaged.
    pub fn open_file(folder: &Folder, name: &str) -> Result<Self> {
        Self::open_files(folder.path_of(name), folder, &[name])
    }

    fn open_files(origin: String, folder: &Folder, names: &[&str]) -> Result<Self> {
        let mut checkpoint = Self {
            origin,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            foreign: BTreeMap::new(),
            deltas: BTreeMap::new(),
        };
        for name in names {
            checkpoint.add_file(folder, name)?;
        }
        Ok(checkpoint)
    }

    fn open_sharded(folder: &Folder, index_name: &str, index: &ShardIndex) -> Result<Self> {
        let checkpoint = Self::open_files(folder.to_string(), folder, &index.shards())?;
        let absent: Vec<&str> = index.tensors().filter(|name| !checkpoint.tensors.contains_key(*name)).collect();
        if !absent.is_empty() {
            let reason = format!("lists tensors that are in no shard: {}", text::list(&absent));
            return Err(Error::file(folder.path_of(index_name), reason).with_hint(Hint::FetchAgain));
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, folder: &Folder, name: &str) -> Result<()> {
        let path = folder.path_of(name);
        let bytes = folder.open(name)?;
        let is_safetensors = Path::new(name).extension().is_some_and(|extension| extension == "safetensors");
        if bytes.is_empty() {
            return Err(Error::damaged(path, if is_safetensors { "safetensors" } else { "torch" }, "it is empty"));
        }
        let file = self.files.len();
        let entries = if is_safetensors {
            safetensors_entries(&bytes, file, &path)?
        } else {
            let torch::Contents { tensors, foreign } = torch::contents(&bytes, file, &path)?;
            self.foreign.extend(foreign);
            tensors
        };
        for (name, entry) in entries {
            if self.tensors.contains_key(&name) {
                let reason = format!("tensor {name} is in two shards");
                return Err(Error::tensor(&self.origin, name, reason));
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(bytes);
        Ok(())
    }

    /// Adds `delta` to the tensor `name` whenever it is read.
    pub(in crate::weights) fn add_delta(&mut self, name: &str, delta: Delta) {
        self.deltas.entry(name.into()).or_default().push(delta);
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// The names of the tensors that hold a NaN or an infinity. Reads everything: meant to explain a result that is not
    /// finite.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn non_finite_tensors(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, entry) in &self.tensors {
            if float_kind(entry.dtype).is_some() && !self.view(name, entry)?.is_finite()? {
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads a tensor of any shape as float32; `None` if there is none, or its type is not supported.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            Some(entry) if kind(entry.dtype).is_some() => {
                self.view(name, entry)?.to_owned(Kind::Float, Device::Cpu).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The element count of all tensors.
    pub fn parameters(&self) -> u64 {
        self.parameters_beside(&[]).all
    }

    /// The elements of the tensors whose names start with none of `prefixes`, which are those of other networks.
    pub fn parameters_beside(&self, prefixes: &[&str]) -> ParameterCount {
        let own = self.tensors.iter().filter(|(name, _)| !prefixes.iter().any(|prefix| name.starts_with(prefix)));
        own.fold(ParameterCount::default(), |sum, (name, entry)| {
            let elements = entry.elements();
            // A table of embeddings is looked up, in the type of what is computed.
            let is_of_products = entry.shape.len() == 2 && name.ends_with("weight") && !name.contains("embedding.");
            let stays = is_of_products && matches!(entry.dtype, Dtype::F16 | Dtype::BF16);
            ParameterCount {
                all: sum.all.saturating_add(elements),
                sixteen_bit: sum.sixteen_bit.saturating_add(if stays { elements } else { 0 }),
            }
        })
    }

    /// Its name in messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The tensor of an entry of this checkpoint, without its deltas.
    pub(super) fn view(&self, name: &str, entry: &TensorEntry) -> Result<TensorView<'_>> {
        TensorView::new(&self.files[entry.file], entry, name, &self.origin)
    }

    pub(super) fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        &self.files[entry.file][entry.range.clone()]
    }
}

/// Whether a tensor is a constant that old versions of transformers saved; it carries no information.
pub(super) fn is_constant(name: &str) -> bool {
    name.ends_with("position_ids")
}
