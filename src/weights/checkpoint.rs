//! Checkpoints: safetensors and torch files, whole or sharded by an index, read where they lie, checked against what a
//! model needs.

mod archive;
mod borrowed;
pub mod candidates;
mod entry;
mod export;
mod find;
pub mod index;
mod original;
mod torch;
mod weights;

pub use weights::{Placement, Weights};

pub(crate) use borrowed::StackedWeight;

use super::lora::{Delta, Lora};
use crate::bad_input;
use crate::error::{FETCH_AGAIN, OrBadInput, some_of};
use crate::files::{Bytes, Folder};
use anyhow::Result;
use borrowed::Borrowed;
use entry::{Entry, float_kind, kind};
use find::Found;
use index::ShardIndex;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The names of the files that [`Checkpoint::open_folder`] reads weights from.
///
/// # Errors
/// [`crate::error::BadInput`] if there are none, or an index is broken.
pub fn weight_files(folder: &Folder) -> Result<Vec<String>> {
    match find::weights(folder)? {
        Found::Whole(name) => Ok(vec![name]),
        Found::Sharded(_, index) => Ok(index.shards().into_iter().map(String::from).collect()),
    }
}

/// The tensors of one component, in one or several files, mapped into memory or part of the program.
#[derive(Debug)]
pub struct Checkpoint {
    /// What messages call it: the folder or file that it was opened from.
    origin: String,
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
    /// What stands in the place of a tensor and cannot be read, by name: the function that would make it.
    foreign: BTreeMap<String, String>,
    /// What is added to tensors when they are read, by their names.
    deltas: BTreeMap<String, Vec<Delta>>,
}

impl Checkpoint {
    /// Opens the weights in a component's folder, in the order of the library that its `config.json` is of:
    /// `diffusion_pytorch_model.safetensors`, `model.safetensors`, the same as `.bin`, one of these sharded with an index, or,
    /// where no plain file is there, a variant such as `model.fp16.safetensors`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there are none, or a file is truncated, corrupt or at odds with its index.
    pub fn open_folder(folder: &Folder) -> Result<Self> {
        match find::weights(folder)? {
            Found::Whole(name) => Self::open_files(folder.to_string(), folder, &[&name]),
            Found::Sharded(name, index) => Self::open_sharded(folder, &name, &index),
        }
    }

    /// Opens one file in a folder: safetensors if its name ends in that, else a file of `torch.save`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the file is missing, truncated or corrupt.
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
        let name = folder.path_of(index_name);
        let checkpoint = Self::open_files(folder.to_string(), folder, &index.shards())?;
        let absent: Vec<&str> = index.tensors().filter(|name| !checkpoint.tensors.contains_key(*name)).collect();
        if !absent.is_empty() {
            return Err(bad_input!("{name} lists tensors that no shard holds: {}", some_of(&absent)));
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, folder: &Folder, name: &str) -> Result<()> {
        let path = folder.path_of(name);
        let bytes = folder.open(name).or_bad_input(|| format!("cannot read {path}"))?;
        let is_safetensors = Path::new(name).extension().is_some_and(|extension| extension == "safetensors");
        let file = self.files.len();
        let entries = match is_safetensors {
            _ if bytes.is_empty() => {
                let format = if is_safetensors { "safetensors" } else { "torch" };
                return Err(bad_input!("{path} is not a sound {format} file (it is empty); {FETCH_AGAIN}"));
            }
            true => entry::safetensors_entries(&bytes, file, &path)?,
            false => {
                let torch::Contents { tensors, foreign } = torch::contents(&bytes, file, &path)?;
                self.foreign.extend(foreign);
                tensors
            }
        };
        for (name, entry) in entries {
            if self.tensors.contains_key(&name) {
                return Err(bad_input!("{}: tensor {name} is in two shards", self.origin));
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(bytes);
        Ok(())
    }

    /// Builds a module from the tensors whose names start with `prefix` (empty, or ending in a dot).
    ///
    /// `build` runs twice: once against names, shapes and types alone, so that everything that is wrong goes into one
    /// message, and then to read.
    ///
    /// Tensors that the module has no use for are left out with a warning, as diffusers and transformers do, unless the
    /// module would compute something else with them: see [`Report::would_count`].
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names every missing, unexpected, wrongly shaped and wrongly typed tensor, and
    /// the errors of `build`.
    pub fn build<M>(&self, prefix: &str, placement: Placement, build: impl Fn(&Weights) -> Result<M>) -> Result<M> {
        self.check(prefix, placement, &build)?;
        build(&Weights { checkpoint: self, prefix: prefix.into(), placement, check: None })
    }

    /// The first of the two passes of [`Checkpoint::build`], which reads nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::build`].
    pub fn check<M>(&self, prefix: &str, placement: Placement, build: impl Fn(&Weights) -> Result<M>) -> Result<()> {
        let report = RefCell::new(Report::default());
        build(&Weights { checkpoint: self, prefix: prefix.into(), placement, check: Some(&report) })?;
        self.judge(prefix, report.into_inner())
    }

    fn judge(&self, prefix: &str, mut report: Report) -> Result<()> {
        let is_unexpected =
            |name: &&String| name.starts_with(prefix) && !report.knows(name) && !export::is_constant(name);
        let unexpected: Vec<String> = self.tensors.keys().filter(is_unexpected).cloned().collect();
        if !report.missing.is_empty() || !report.wrong.is_empty() || report.would_count(&unexpected) {
            // Some may be those that are missing, under other names.
            report.unexpected = unexpected;
        } else if !unexpected.is_empty() {
            log::warn!("{}: tensors that are not needed are left out: {}", self.origin, some_of(&unexpected));
        }
        match report.line() {
            Some(line) => Err(bad_input!("{} does not fit its configuration: {line}", self.origin)),
            None => Ok(()),
        }
    }

    /// Adds a LoRA to the weights that it was trained for, from when they are read.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] that names the key of the LoRA that fits no tensor here.
    pub fn add_lora(&mut self, lora: &Lora) -> Result<()> {
        for layer in lora.layers() {
            let shape = self.tensors.get(&layer.target).map(|entry| &entry.shape[..]);
            let delta = layer.fit(shape, lora.origin(), &self.origin)?;
            self.deltas.entry(layer.target.clone()).or_default().push(delta);
        }
        Ok(())
    }

    /// The names of the tensors that hold a NaN or an infinity. Reads everything: meant for telling why a result is
    /// not finite.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn non_finite_tensors(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, entry) in &self.tensors {
            if float_kind(entry.dtype).is_some() && !Borrowed::new(self, entry)?.is_finite()? {
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads a tensor in float32, whatever its shape; `None` if it is not there or holds no numbers.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            Some(entry) if kind(entry.dtype).is_some() => {
                Borrowed::new(self, entry)?.to_owned(Kind::Float, Device::Cpu).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Number of weights, whatever they are for.
    pub fn parameters(&self) -> u64 {
        self.parameters_beside(&[])
    }

    /// Number of weights whose names start with none of these, which are other networks' parts.
    pub fn parameters_beside(&self, others: &[&str]) -> u64 {
        let own = self.tensors.iter().filter(|(name, _)| !others.iter().any(|other| name.starts_with(other)));
        own.map(|(_, entry)| entry.elements()).fold(0, u64::saturating_add)
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
pub(crate) struct Report {
    seen: BTreeSet<String>,
    /// The starts of names that the module knows to be others' parts of the checkpoint.
    others: Vec<String>,
    missing: Vec<String>,
    unexpected: Vec<String>,
    wrong: Vec<String>,
}

impl Report {
    fn knows(&self, name: &str) -> bool {
        self.seen.contains(name) || self.others.iter().any(|other| name.starts_with(other))
    }

    /// Whether the module would compute something else with one of the tensors that it does not ask for, so that it is not the
    /// one that was saved: what belongs to one of its layers, such as a bias, a scale or a LoRA, and a layer after its last.
    fn would_count(&self, unexpected: &[String]) -> bool {
        let layers: BTreeSet<&str> = self.seen.iter().flat_map(|name| numbered(name)).collect();
        let lists: BTreeSet<&str> = layers.iter().filter_map(|layer| list_of(layer)).collect();
        let is_of_layer = |name: &str| {
            let mut modules = name.match_indices('.').map(|(end, _)| &name[..end]);
            modules.any(|module| self.seen.contains(&format!("{module}.weight")))
        };
        let is_beyond = |name: &str| {
            let mut new = numbered(name).filter(|layer| !layers.contains(layer));
            new.any(|layer| list_of(layer).is_some_and(|list| lists.contains(list)))
        };
        unexpected.iter().any(|name| is_of_layer(name) || is_beyond(name) || name.contains("lora"))
    }

    fn line(&self) -> Option<String> {
        let groups = [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong", &self.wrong)];
        let parts: Vec<String> = groups
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(what, list)| format!("{} {what} ({})", list.len(), some_of(list)))
            .collect();
        (!parts.is_empty()).then(|| format!("tensors {}", parts.join("; ")))
    }
}

/// What a numbered layer is one of.
fn list_of(layer: &str) -> Option<&str> {
    layer.rsplit_once('.').map(|(list, _)| list)
}

/// The starts of a name that end in a number: `a.0` and `a.0.b.1` of `a.0.b.1.weight`.
fn numbered(name: &str) -> impl Iterator<Item = &str> {
    let ends = name.match_indices('.').map(|(end, _)| end);
    ends.map(|end| &name[..end]).filter(|start| {
        let last = start.rsplit('.').next().unwrap_or_default();
        !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_too_many_count_where_the_module_would_compute_something_else() {
        let seen =
            ["embed.class", "blocks.0.to_q.weight", "blocks.1.to_q.weight", "norm.weight", "blocks.1.ff.net.0.weight"];
        let report = Report { seen: seen.map(String::from).into(), ..Report::default() };
        for (name, expected) in [
            ("embed.position_ids", false),
            ("causal_attention_mask", false),
            ("logit_scale", false),
            ("other.0.weight", false),
            ("blocks.1.mask", false),
            ("blocks.1.bias", false),
            ("blocks.2.mask", true),
            ("blocks.2.to_q.weight", true),
            ("blocks.0.to_q.bias", true),
            ("blocks.0.to_q.weight_scale", true),
            ("norm.base_layer.weight", true),
            ("blocks.0.to_q.lora_A.default.weight", true),
            ("blocks.0.processor.to_q_lora.down.weight", true),
            ("blocks.1.ff.net.2.weight", true),
        ] {
            assert_eq!(report.would_count(&[name.to_string()]), expected, "{name}");
        }
    }
}
